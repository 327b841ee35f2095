"""What an action needs beside its row of the lifecycle table: the things its request names, looked up, and what it changes of the record.

Most need nothing. What is here is asked before the intent is written, and may be asked again for the same request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fabric.api.catalogue import Catalogue
from fabric.api.core.devices import Beside
from fabric.api.core.moves import Work
from fabric.api.named import named_by
from fabric.api.prepared import NOTHING, Prepared
from fabric.api.preparing_devices import DevicePreparing
from fabric.api.preparing_edits import EDITS
from fabric.api.preparing_images import PreparingImages
from fabric.api.preparing_interfaces import InterfacePreparing
from fabric.api.preparing_moves import MovePreparing
from fabric.api.preparing_rescue import rescue_of, rescued, rescued_by_its_own
from fabric.clock import Clock
from fabric.ids import Ids
from fabric.model.identity import Principal
from fabric.model.image import Image
from fabric.model.states import Action

Prepare = Callable[[Any, Principal], Awaitable[Prepared]]
"""From a request of the action's own type. Raises InvalidRequest, naming the field."""


NAMES_AN_IMAGE = frozenset({Action.CREATE_IMAGE, Action.CREATE_BACKUP})
"""Actions whose answer says which image it will be."""


def _working(work: Callable[[Any, Principal], Awaitable[Work]]) -> Prepare:
    """An action that leaves the scheduler work, and needs nothing else."""

    async def prepare(request: Any, principal: Principal) -> Prepared:
        return Prepared(work=await work(request, principal))

    return prepare


def _beside(found: Callable[[Any, Principal], Awaitable[Beside]]) -> Prepare:
    """An action that changes something else with the server."""

    async def prepare(request: Any, principal: Principal) -> Prepared:
        return Prepared(beside=await found(request, principal))

    return prepare


class Preparing:
    """The actions that need something, each with how it is got."""

    def __init__(
        self,
        catalogue: Catalogue,
        images: PreparingImages,
        interfaces: InterfacePreparing,
        *,
        clock: Clock,
        ids: Ids,
    ) -> None:
        self._catalogue = catalogue
        self._clock = clock
        self._images = images
        moves = MovePreparing(catalogue, clock=clock, ids=ids)
        devices = DevicePreparing(catalogue, ids=ids)
        self._by_action: dict[Action, Prepare] = {
            Action.RESCUE: self._rescue,
            Action.CREATE_IMAGE: images.create_image,
            Action.CREATE_BACKUP: images.create_backup,
            Action.REBUILD: images.rebuild,
            Action.SHELVE: images.shelve,
            Action.RESIZE: _working(moves.resize),
            Action.MIGRATE: _working(moves.migrate),
            Action.UNSHELVE: _working(moves.unshelve),
            Action.ATTACH_VOLUME: _beside(devices.attach_volume),
            Action.DETACH_VOLUME: _beside(devices.detach_volume),
            Action.ATTACH_INTERFACE: interfaces.attach,
            Action.DETACH_INTERFACE: interfaces.detach,
        }

    async def prepare(self, action: Action, request: Any, principal: Principal) -> Prepared:
        """Everything that the request names. A name that is not there is the request's fault, and names its field."""
        edit = EDITS.get(action)
        if edit is not None:
            return Prepared(change=edit(request, principal, self._clock))
        prepare = self._by_action.get(action)
        return NOTHING if prepare is None else await prepare(request, principal)

    async def said_before(self, action: Action, request: Any, principal: Principal) -> Mapping[str, str]:
        """`Prepared.answer` of a request that was answered before, when perhaps nothing that it names is there any more."""
        return await self._images.made_before(request, principal) if action in NAMES_AN_IMAGE else {}

    async def _rescue(self, request: Any, principal: Principal) -> Prepared:
        if not request.image:
            return Prepared(change=rescued_by_its_own(request.password))
        image = await self._image(request.image, principal)
        kernel = await self._image(image.kernel_id, principal) if image.kernel_id else None
        ramdisk = await self._image(image.ramdisk_id, principal) if image.ramdisk_id else None
        rescue = rescue_of(image, kernel, ramdisk, request.password)
        return Prepared(
            change=rescued(rescue, image, await self._images.host_traits(request.instance, principal))
        )

    async def _image(self, word: str, principal: Principal) -> Image:
        return await named_by("image", self._catalogue.image(word, principal))
