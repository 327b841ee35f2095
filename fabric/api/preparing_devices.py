"""What attaching and detaching volumes needs: they are looked up, and a volume's cell is settled before it is used there."""

from __future__ import annotations

from fabric.api.catalogue import Catalogue
from fabric.api.core import devices
from fabric.api.core.devices import Beside
from fabric.api.named import Found, named_by
from fabric.api.owned import Owned
from fabric.api.volumes import bound
from fabric.errors import Conflict
from fabric.ids import Ids
from fabric.model.identity import Principal
from fabric.model.instance import Location
from fabric.model.volume import VolumeEntry
from fabric.pb.compute.v1 import instance_service_pb2 as pb
from fabric.store.keys import VOLUME_ENTRY, VOLUME_NAME

TRIES = 8


class DevicePreparing:
    """One method for each action."""

    def __init__(self, catalogue: Catalogue, *, ids: Ids) -> None:
        self._catalogue = catalogue
        self._ids = ids
        self._entries = Owned(catalogue.store, VOLUME_ENTRY, "volume", VOLUME_NAME)

    async def attach_volume(self, request: pb.AttachVolumeRequest, principal: Principal) -> Beside:
        """Raises InvalidRequest, naming the field, NotFound, WrongState for a volume that is in another cell."""
        location = await self._catalogue.location(request.instance, principal)
        for _ in range(TRIES):
            found = await self._volume(location, request.volume)
            entry = await bound(self._catalogue.store, found, location.cell, op_id=self._ids.new_id())
            if entry is not None:
                return devices.attaching(entry, ends_with_instance=request.delete_on_termination)
        raise Conflict(f"volume {request.volume!r} is being changed by many at once; try again")

    async def detach_volume(self, request: pb.DetachVolumeRequest, principal: Principal) -> Beside:
        location = await self._catalogue.location(request.instance, principal)
        return devices.detaching((await self._volume(location, request.volume)).value)

    async def _volume(self, location: Location, word: str) -> Found[VolumeEntry]:
        """A volume of the server's own project, whoever asks. Raises InvalidRequest."""
        return await named_by("volume", self._entries.get(location.project_id, word))
