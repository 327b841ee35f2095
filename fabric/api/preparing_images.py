"""What the actions need that make an image of a server's disk, or its disk of an image."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, TypeVar

from fabric.api.catalogue import Catalogue
from fabric.api.cells import Cells
from fabric.api.core.fit import HostTraits
from fabric.api.core.image_properties import check_properties
from fabric.api.core.rebuild import Rebuild
from fabric.api.named import named_by
from fabric.api.once import body_sha256
from fabric.api.prepared import NOTHING, Prepared
from fabric.api.waiting_images import WaitingImages
from fabric.errors import Conflict, InvalidRequest, WrongState
from fabric.images.core import snapshots
from fabric.model.identity import Principal
from fabric.model.image import Image
from fabric.model.instance import Answered, Instance
from fabric.model.states import Action
from fabric.pb.compute.v1 import instance_service_pb2 as pb
from fabric.store.codec import decode
from fabric.store.keys import HOST, INSTANCE

T = TypeVar("T")

NAMES: Final = 200
"""Characters of a server's name in the name of its shelved image, which has room for a suffix or two."""


class PreparingImages:
    """The rows of the lifecycle that this module prepares, as methods."""

    def __init__(self, catalogue: Catalogue, cells: Cells, waiting: WaitingImages) -> None:
        self._catalogue = catalogue
        self._cells = cells
        self._waiting = waiting

    async def create_image(self, request: pb.CreateInstanceImageRequest, principal: Principal) -> Prepared:
        """An image that waits."""
        ours = sorted(snapshots.OURS & set(request.properties))
        if ours:
            raise InvalidRequest(
                f"properties[{ours[0]}] is set by the server; leave it out", field=f"properties[{ours[0]}]"
            )
        check_properties(request.properties, field="properties")
        return await self._image_of(
            Action.CREATE_IMAGE, request, principal, name=request.name, properties=dict(request.properties)
        )

    async def create_backup(self, request: pb.CreateInstanceBackupRequest, principal: Principal) -> Prepared:
        """The same, with what says which others go when it has come."""
        properties = {
            snapshots.KIND: snapshots.BACKUP,
            snapshots.BACKUP_TYPE: request.backup_type,
            snapshots.ROTATION: str(request.rotation),
        }
        # A nightly job asks for the same name each night: the image is then called a little differently.
        return await self._image_of(
            Action.CREATE_BACKUP,
            request,
            principal,
            name=request.name,
            properties=properties,
            may_differ=True,
        )

    async def made_before(self, request: Any, principal: Principal) -> Mapping[str, str]:
        """What the answer to a request for an image said besides the server, when it was first given."""
        return {"image_id": await self._waiting.asked_before(request.request_id, principal)}

    async def shelve(self, request: Any, principal: Principal) -> Prepared:
        """The image that holds a shelved server's disk, named after it as in the reference. What boots from a volume needs none."""
        instance = await self._instance(Action.SHELVE, request.instance, principal)
        if instance.request.guest.root_volume is not None:
            return NOTHING
        return await self._image_of(
            Action.SHELVE, request, principal, name="", properties={snapshots.KIND: snapshots.SNAPSHOT}
        )

    async def rebuild(self, request: pb.RebuildInstanceRequest, principal: Principal) -> Prepared:
        """The image and the keypair that are named."""
        image = await named_by("image", self._catalogue.image(request.image, principal))
        keypair = None
        if request.key_name:
            keypair = await named_by(
                "key_name", self._catalogue.keypair(request.key_name, principal, field="key_name")
            )
        return Prepared(
            change=Rebuild(
                image=image,
                host_traits=await self.host_traits(request.instance, principal),
                kernel=await self._boots_by(image.kernel_id, principal),
                ramdisk=await self._boots_by(image.ramdisk_id, principal),
                keypair=keypair,
                user_data=request.user_data if request.HasField("user_data") else None,
                metadata=dict(request.metadata) or None,
                name=request.name,
            )
        )

    async def host_traits(self, word: str, principal: Principal) -> HostTraits:
        """What the hosts of a server's cell are approved for. Raises NotFound."""
        view = self._cells[(await self._catalogue.location(word, principal)).cell]

        def traits(host: str) -> Collection[str]:
            held = view.hosts.entries.get(HOST.at(host))
            return () if held is None else held.value.traits

        return traits

    async def _boots_by(self, image_id: str, principal: Principal) -> Image | None:
        return await named_by("image", self._catalogue.image(image_id, principal)) if image_id else None

    async def _image_of(
        self,
        action: Action,
        request: Any,
        principal: Principal,
        *,
        name: str,
        properties: Mapping[str, str],
        may_differ: bool = False,
    ) -> Prepared:
        answered = Answered(
            request_id=request.request_id,
            project_id=principal.project_id,
            method=action,
            body_sha256=body_sha256(request),
            resource_id="",
            expire_time_ms=0,
        )
        instance = await self._instance(action, request.instance, principal)
        asked = await self._waiting.queue(
            instance,
            principal,
            answered,
            name=name or f"{instance.request.guest.name[:NAMES]}-shelved",
            properties=properties,
            may_differ=may_differ or not name,
        )
        answer = {"image_id": asked.image_id} if name else {}
        if not asked.is_waiting:
            return Prepared(change=_given_up, answer=answer)

        async def undo() -> None:
            await self._waiting.take_back(asked.image_id, principal, answered)

        return Prepared(image_id=asked.image_id, answer=answer, undo=undo)

    async def _instance(self, action: Action, word: str, principal: Principal) -> Instance:
        """The server as it is. Raises WrongState for one that no host was claimed for yet, as the lifecycle would."""
        location = await self._catalogue.location(word, principal)
        key = INSTANCE.at(location.instance_id)
        value = (await self._cells[location.cell].get(key)).value(key)
        if value is None:
            raise WrongState(
                f"cannot {action} while BUILD with scheduling under way; allowed now: delete",
                action=action,
                vm_state="building",
                task_state="scheduling",
                instance=location.instance_id,
            )
        return decode(Instance, value)


def _given_up(now: Instance) -> Instance:
    """The image of this request was removed, so its action must not begin. (One that has begun is answered before this is asked.)"""
    raise Conflict(
        "this request was given up long ago, and its image removed; ask again with a new request_id",
        instance=now.id,
    )
