"""What a create that boots from a volume names, looked up."""

from __future__ import annotations

from typing import Final

from fabric.api.catalogue import Catalogue
from fabric.api.cells import Cells
from fabric.api.core.accept import check_fits_volume
from fabric.api.core.boot_volume import RootVolume, Sources, check_bootable, check_sources, new_root
from fabric.api.owned import Owned
from fabric.errors import InvalidRequest, NotFound, Reason
from fabric.ids import Ids
from fabric.model.identity import Principal
from fabric.model.image import Image, ImageFormat, ImageState
from fabric.pb.compute.v1 import instance_service_pb2 as pb
from fabric.store.codec import decode
from fabric.store.keys import VOLUME, VOLUME_ENTRY, VOLUME_NAME

NO_IMAGE: Final = Image(id="", name="", project_id="", format=ImageFormat.RAW, state=ImageState.ACTIVE)
"""What a volume that was made of no image says of where it can run: nothing."""


class BootVolumes:
    """Looks up volumes to boot from."""

    def __init__(self, catalogue: Catalogue, cells: Cells, *, ids: Ids) -> None:
        self._catalogue = catalogue
        self._cells = cells
        self._ids = ids
        self._entries = Owned(catalogue.store, VOLUME_ENTRY, "volume", VOLUME_NAME)

    async def look_up(
        self, request: pb.CreateInstanceRequest, image: Image | None, principal: Principal, *, now_ms: int
    ) -> RootVolume | None:
        """The volume that the request names or wants made of `image`; None: the server boots from the image itself.

        Raises InvalidRequest, naming the field; WrongState for a volume that cannot be booted from now; Unavailable where its cell cannot
        be asked.
        """
        if request.volume:
            return await self._named(request, principal)
        if image is None or not request.boot_volume_gib:
            return None
        check_fits_volume(image, request.boot_volume_gib, field="boot_volume_gib")
        entry = new_root(
            image,
            request.boot_volume_gib,
            volume_id=self._ids.new_id(),
            project_id=principal.project_id,
            user_id=principal.user_id,
            server=request.name,
            now_ms=now_ms,
        )
        return RootVolume(entry=entry, ends_with_instance=request.delete_volume_on_termination)

    async def _named(self, request: pb.CreateInstanceRequest, principal: Principal) -> RootVolume:
        try:
            found = await self._entries.get(principal.project_id, request.volume)
        except NotFound as gone:
            raise InvalidRequest(gone.message, field="volume", reason=Reason.RESOURCE_NOT_FOUND) from None
        entry, volume = found.value, None
        if entry.cell:
            key = VOLUME.at(entry.id)
            stored = (await self._cells[entry.cell].get(key)).value(key)
            volume = None if stored is None else decode(VOLUME.record, stored)
        check_bootable(entry, volume)
        return RootVolume(
            entry=entry,
            revision=found.mod_revision,
            ends_with_instance=request.delete_volume_on_termination,
        )


def sources(request: pb.CreateInstanceRequest) -> Sources:
    """What the request says of what the server is to boot from. Raises InvalidRequest where that is not one thing."""
    asked = Sources(
        image=request.image,
        volume=request.volume,
        new_gib=request.boot_volume_gib,
        ends_with_instance=request.delete_volume_on_termination,
    )
    check_sources(asked)
    return asked
