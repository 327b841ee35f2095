"""Images that wait for a server's disk: recorded before the action is written, taken back where it is refused, swept where it never began.

Two stores cannot be written at once. The image comes first, because a host that hands one in must find it waiting; each of the two writes
is made once for a request, whoever sends it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from fabric.api.catalogue import Catalogue
from fabric.api.cells import Cells
from fabric.api.once import Change, Once, owner_of
from fabric.clock import Clock
from fabric.errors import AlreadyExists, FabricError
from fabric.ids import Ids
from fabric.images.core import snapshots
from fabric.model.identity import Principal
from fabric.model.image import Image, ImageState
from fabric.model.instance import Answered, Instance, Location
from fabric.store.base import Store, Txn
from fabric.store.codec import decode, encode
from fabric.store.keys import ANSWERED, IMAGE, IMAGE_NAME, INSTANCE, LOCATION

log = structlog.get_logger()

LOOK_S: Final = 5.0
"""Between two looks at the images that wait. They are few, and known from a picture."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The image of a request, and whether it waits still: one that was made before may have come, or been removed."""

    image_id: str
    is_waiting: bool


class WaitingImages:
    """See the module. `run` sweeps."""

    def __init__(
        self,
        catalogue: Catalogue,
        cells: Cells,
        *,
        clock: Clock,
        ids: Ids,
        jitter: Callable[[], float],
    ) -> None:
        self._catalogue = catalogue
        self._store: Store = catalogue.store
        self._cells = cells
        self._clock = clock
        self._ids = ids
        self._jitter = jitter
        self._once = Once(self._store, clock=clock, jitter=jitter)

    async def queue(
        self,
        instance: Instance,
        principal: Principal,
        answered: Answered,
        *,
        name: str,
        properties: Mapping[str, str],
        may_differ: bool = False,
        hidden: bool = False,
    ) -> Asked:
        """The image of this request, made now or before.

        `may_differ`: where the name is taken, the image gets one that begins like it; nobody has chosen it.
        Raises AlreadyExists for a name that is taken, Conflict for a request_id of another request, Unavailable.
        """
        project_id = instance.request.guest.project_id

        async def decide() -> Change:
            image_id = self._ids.new_id()
            made_of = instance.request.guest.image
            name_key = IMAGE_NAME.at(project_id, name)
            base_key = name_key if made_of is None else IMAGE.at(made_of.id)
            seen = await self._store.get(name_key, base_key)
            own = name
            if name_key in seen.entries:
                if not may_differ:
                    raise AlreadyExists(f"the project has an image {name!r} already", name=name)
                own = f"{name}-{image_id[:8]}"
                name_key = IMAGE_NAME.at(project_id, own)
            base = None if made_of is None else seen.value(base_key)
            image = snapshots.queued(
                instance,
                image_id=image_id,
                name=own,
                properties=properties,
                base=None if base is None else decode(Image, base),
                now_ms=self._clock.now_ms(),
                hidden=hidden,
            )
            return Change(
                resource_id=image.id,
                unchanged={name_key: 0},
                put={name_key: encode(image.id), IMAGE.at(image.id): encode(image)},
            )

        done = await self._once.make(
            decide,
            request_id=_asked(answered.request_id),
            method=answered.method,
            body=answered.body_sha256,
            principal=principal,
        )
        image, _ = await self._read(done.resource_id)
        return Asked(done.resource_id, is_waiting=image is not None and image.state is ImageState.QUEUED)

    async def asked_before(self, request_id: str, principal: Principal) -> str:
        """The id of the image that this request made; empty where that is not remembered. Raises Unavailable."""
        key = ANSWERED.at(owner_of(principal), _asked(request_id))
        value = (await self._store.get(key)).value(key)
        return "" if value is None else decode(Answered, value).resource_id

    async def take_back(self, image_id: str, principal: Principal, answered: Answered) -> None:
        """Nothing waits for this image after all: its request was refused, and may be made again. Raises Unavailable."""
        await self._drop(image_id, also=(ANSWERED.at(owner_of(principal), _asked(answered.request_id)),))

    async def run(self) -> None:
        """Remove what waits in vain, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S * (0.75 + 0.5 * self._jitter()))
            waiting = [
                image
                for image in self._catalogue.images.values()
                if image.state is ImageState.QUEUED and snapshots.INSTANCE in image.properties
            ]
            for image in waiting:
                try:
                    await self._look(image)
                except FabricError as failed:
                    log.info("image.kept_waiting", image=image.id, why=failed.message)

    async def _look(self, image: Image) -> None:
        instance = await self._instance(image.properties[snapshots.INSTANCE])
        if snapshots.is_given_up(image, instance, now_ms=self._clock.now_ms()):
            log.info("image.given_up", image=image.id, instance=image.properties[snapshots.INSTANCE])
            await self._drop(image.id)

    async def _instance(self, instance_id: str) -> Instance | None:
        """The record of a server, None where there is none. Raises Unavailable, also where its cell cannot be reached."""
        key = LOCATION.at(instance_id)
        value = (await self._store.get(key)).value(key)
        if value is None:
            return None
        view = self._cells[decode(Location, value).cell]
        record = (await view.get(INSTANCE.at(instance_id))).value(INSTANCE.at(instance_id))
        return None if record is None else decode(Instance, record)

    async def _read(self, image_id: str) -> tuple[Image | None, int]:
        key = IMAGE.at(image_id)
        seen = await self._store.get(key)
        value = seen.value(key)
        return (None if value is None else decode(Image, value)), seen.seen(key)

    async def _drop(self, image_id: str, *, also: tuple[str, ...] = ()) -> None:
        image, revision = await self._read(image_id)
        if image is None or image.state is not ImageState.QUEUED:
            return
        key = IMAGE.at(image_id)
        # A refusal means that its bytes have come, or somebody else has removed it.
        await self._store.commit(
            Txn(
                unchanged={key: revision},
                delete=(key, IMAGE_NAME.at(image.project_id, image.name), *also),
            )
        )


def _asked(request_id: str) -> str:
    """The name under which the image of a request is remembered, beside the action's own. No client's request_id has a space."""
    return f"{request_id} image"
