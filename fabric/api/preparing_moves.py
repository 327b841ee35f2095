"""What resizing, migrating and unshelving need: flavors looked up, quota asked beforehand, and work for the scheduler."""

from __future__ import annotations

from fabric.api.catalogue import Catalogue
from fabric.api.core import moves
from fabric.api.core.moves import Work
from fabric.api.named import named_by
from fabric.clock import Clock
from fabric.ids import Ids
from fabric.model.flavor import Flavor
from fabric.model.identity import Principal
from fabric.model.image import Image
from fabric.model.quota import Charge, Quota
from fabric.pb.compute.v1 import instance_service_pb2 as pb
from fabric.quota.core import charge
from fabric.store import codec
from fabric.store.keys import FLAVOR, IMAGE, LOCATION, QUOTA


class MovePreparing:
    """One method for each action."""

    def __init__(self, catalogue: Catalogue, *, clock: Clock, ids: Ids) -> None:
        self._catalogue = catalogue
        self._clock = clock
        self._ids = ids

    async def resize(self, request: pb.ResizeInstanceRequest, principal: Principal) -> Work:
        """Raises InvalidRequest, naming the field, NotFound, QuotaExceeded."""
        flavor = await named_by("flavor", self._catalogue.flavor(request.flavor))
        location = await self._catalogue.location(request.instance, principal)
        await self._must_afford(location.instance_id, flavor)
        return moves.resize_work(
            flavor,
            self._flavors,
            self._images,
            image_id=self._ids.new_id(),
            now_ms=self._clock.now_ms(),
        )

    async def migrate(self, request: pb.MigrateInstanceRequest, _principal: Principal) -> Work:
        return moves.migrate_work(request.host, image_id=self._ids.new_id(), now_ms=self._clock.now_ms())

    async def unshelve(self, _request: pb.UnshelveInstanceRequest, _principal: Principal) -> Work:
        return moves.unshelve_work(now_ms=self._clock.now_ms())

    def _flavors(self, flavor_id: str) -> Flavor | None:
        held = self._catalogue.flavors.entries.get(FLAVOR.at(flavor_id))
        return None if held is None else held.value

    def _images(self, image_id: str) -> Image | None:
        held = self._catalogue.images.entries.get(IMAGE.at(image_id))
        return None if held is None else held.value

    async def _must_afford(self, instance_id: str, flavor: Flavor) -> None:
        """Say at once what the scheduler would find out: it charges, by what is there when it does."""
        location_key = LOCATION.at(instance_id)
        held = await self._catalogue.locations.find(location_key)
        if held is None:
            return
        quota_key = QUOTA.at(held.value.project_id)
        stored = (await self._catalogue.store.get(quota_key)).value(quota_key)
        if stored is None:
            return
        before = held.value.charge
        more = Charge(
            vcpus=max(0, flavor.vcpus - before.vcpus), ram_mib=max(0, flavor.ram_mib - before.ram_mib)
        )
        charge(codec.decode(Quota, stored), more, op_id="")
