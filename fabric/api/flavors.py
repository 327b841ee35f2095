"""FlavorService: the menu of sizes. Flavors never change, so that what a server was made with stays true; a new size is a new flavor."""

from __future__ import annotations

from collections.abc import Callable

from fabric.api.convert import flavor_message
from fabric.api.core.accept import TRAIT, TRAIT_VALUES
from fabric.api.named import Named
from fabric.api.once import Change, Once
from fabric.api.pages import Pages
from fabric.clock import Clock
from fabric.errors import AlreadyExists, InvalidRequest
from fabric.ids import Ids
from fabric.model.flavor import Flavor
from fabric.model.identity import Principal
from fabric.pb.compute.v1 import flavor_service_pb2 as pb
from fabric.store.base import Store
from fabric.store.codec import encode
from fabric.store.keys import FLAVOR, FLAVOR_NAME


class FlavorHandlers:
    """The RPCs, as functions of a request and who asks."""

    def __init__(self, store: Store, *, clock: Clock, ids: Ids, jitter: Callable[[], float]) -> None:
        self._flavors = Named(store, Flavor, FLAVOR, "flavor", FLAVOR_NAME.at)
        self._once = Once(store, clock=clock, jitter=jitter)
        self._pages = Pages()
        self._clock = clock
        self._ids = ids

    async def get_flavor(self, request: pb.GetFlavorRequest, principal: Principal) -> pb.GetFlavorResponse:
        found = await self._flavors.get(request.flavor)
        return pb.GetFlavorResponse(
            flavor=flavor_message(found.value, found.mod_revision), revision=found.revision
        )

    async def list_flavors(
        self, request: pb.ListFlavorsRequest, principal: Principal
    ) -> pb.ListFlavorsResponse:
        found, revision = await self._flavors.all()
        page, token = self._pages.cut(
            sorted(found, key=lambda each: each.value.name), request, key=lambda each: each.value.name
        )
        return pb.ListFlavorsResponse(
            flavors=[flavor_message(each.value, each.mod_revision) for each in page],
            next_page_token=token,
            revision=revision,
        )

    async def create_flavor(
        self, request: pb.CreateFlavorRequest, principal: Principal
    ) -> pb.CreateFlavorResponse:
        asked = request.flavor
        _check_properties(asked)

        async def decide() -> Change:
            name = FLAVOR_NAME.at(asked.name)
            if await self._flavors.is_taken(asked.name):
                raise AlreadyExists(f"there is a flavor {asked.name!r} already", name=asked.name)
            now_ms = self._clock.now_ms()
            flavor = Flavor(
                id=self._ids.new_id(),
                name=asked.name,
                vcpus=asked.vcpus,
                ram_mib=asked.ram_mib,
                disk_gib=asked.disk_gib,
                description=asked.description,
                properties=dict(asked.properties),
                create_time_ms=now_ms,
                update_time_ms=now_ms,
            )
            return Change(
                resource_id=flavor.id,
                unchanged={name: 0},
                put={name: encode(flavor.id), FLAVOR.at(flavor.id): encode(flavor)},
            )

        done = await self._once.answer(decide, request, principal)
        found = await self._flavors.get(done.resource_id)
        return pb.CreateFlavorResponse(
            flavor=flavor_message(found.value, found.mod_revision), revision=done.revision
        )

    async def delete_flavor(
        self, request: pb.DeleteFlavorRequest, principal: Principal
    ) -> pb.DeleteFlavorResponse:
        async def decide() -> Change:
            found = await self._flavors.get(request.flavor)
            key = FLAVOR.at(found.value.id)
            return Change(
                resource_id=found.value.id,
                unchanged={key: found.mod_revision},
                delete=(key, FLAVOR_NAME.at(found.value.name)),
            )

        done = await self._once.answer(decide, request, principal)
        return pb.DeleteFlavorResponse(revision=done.revision)


def _check_properties(flavor: pb.Flavor) -> None:
    for name, value in sorted(flavor.properties.items()):
        if name.startswith(TRAIT) and value not in TRAIT_VALUES:
            raise InvalidRequest(
                f"flavor.properties[{name}] must be {' or '.join(TRAIT_VALUES)}",
                field=f"flavor.properties[{name}]",
            )
