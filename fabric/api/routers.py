"""RouterService: what joins subnets and leads out of them. A subnet has one router, at its gateway address."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from google.protobuf.message import Message

from fabric.api.draft import Draft
from fabric.api.named import Found, named_by
from fabric.api.network_desk import Desk, check_owns, named, position, project_of, required_name
from fabric.api.network_messages import router_message
from fabric.errors import Conflict, InvalidRequest, NotFound, Reason, WrongState
from fabric.model.identity import Principal
from fabric.model.network import FixedAddress, Network, NetworkKind, Router, Subnet
from fabric.network.core.routers import attached, check_apart, check_no_interfaces, detached
from fabric.network.core.subnets import version_of
from fabric.pb.network.v1 import router_service_pb2 as pb
from fabric.store.keys import (
    ADDRESS,
    NETWORK,
    NETWORK_USE,
    PORT_MAC,
    ROUTER,
    ROUTER_FLOATING_IP,
    ROUTER_NAME,
    SUBNET,
    VNI,
)

UPDATABLE = frozenset({"name", "description", "external_network", "snat_disabled"})


class RouterHandlers:
    """The RPCs, as functions of a request and who asks."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def get_router(self, request: pb.GetRouterRequest, principal: Principal) -> pb.GetRouterResponse:
        found = await self._desk.routers.get(principal.project_id, request.router)
        return pb.GetRouterResponse(
            router=router_message(found.value, found.mod_revision), revision=found.revision
        )

    async def list_routers(
        self, request: pb.ListRoutersRequest, principal: Principal
    ) -> pb.ListRoutersResponse:
        found, revision = await self._desk.routers.all(principal.project_id)
        page, token = self._desk.pages.cut(sorted(found, key=_position), request, key=_position)
        return pb.ListRoutersResponse(
            routers=[router_message(each.value, each.mod_revision) for each in page],
            next_page_token=token,
            revision=revision,
        )

    async def create_router(
        self, request: pb.CreateRouterRequest, principal: Principal
    ) -> pb.CreateRouterResponse:
        asked, desk = request.router, self._desk
        project_id, router_id = project_of(principal), desk.ids.new_id()

        async def decide(draft: Draft) -> str:
            seed = f"{router_id}/{draft.attempt}"
            now_ms = desk.clock.now_ms()
            router = Router(
                id=router_id,
                name=asked.name,
                project_id=project_id,
                description=asked.description,
                snat=not asked.snat_disabled,
                vni=await desk.holdings.free_vni(seed=seed),
                quota_slot=await desk.take_slot(draft, project_id, "routers", router_id, seed=seed),
                create_time_ms=now_ms,
                update_time_ms=now_ms,
            )
            if asked.external_network:
                field = "router.external_network"
                router = await self._led_out(draft, router, asked.external_network, principal, field=field)
            name = ROUTER_NAME.at(project_id, asked.name)
            await desk.take_name(draft, name, router_id, what="router", name=asked.name)
            draft.take(VNI.at(str(router.vni)), router_id)
            draft.write(ROUTER.at(project_id, router_id), router, seen=0)
            return router_id

        router, revision = await self._made(decide, request, principal)
        return pb.CreateRouterResponse(router=router, revision=revision)

    async def update_router(
        self, request: pb.UpdateRouterRequest, principal: Principal
    ) -> pb.UpdateRouterResponse:
        desk, paths = self._desk, named(request.update_mask, UPDATABLE)

        async def decide(draft: Draft) -> str:
            found = await desk.routers.get(principal.project_id, request.router)
            before = found.value
            after = replace(
                before,
                name=required_name(request.name) if "name" in paths else before.name,
                description=request.description if "description" in paths else before.description,
                snat=not request.snat_disabled if "snat_disabled" in paths else before.snat,
                update_time_ms=desk.clock.now_ms(),
            )
            if "external_network" in paths:
                after = await self._led_elsewhere(draft, after, request.external_network, principal)
            await desk.rename(
                draft,
                ROUTER_NAME.at(before.project_id, before.name),
                ROUTER_NAME.at(before.project_id, after.name),
                before.id,
                what="router",
                name=after.name,
            )
            draft.write(ROUTER.at(before.project_id, before.id), after, seen=found.mod_revision)
            return before.id

        router, revision = await self._made(decide, request, principal)
        return pb.UpdateRouterResponse(router=router, revision=revision)

    async def delete_router(
        self, request: pb.DeleteRouterRequest, principal: Principal
    ) -> pb.DeleteRouterResponse:
        desk = self._desk

        async def decide(draft: Draft) -> str:
            found = await desk.routers.get(principal.project_id, request.router)
            router = found.value
            check_no_interfaces(router)
            _free_gateway(draft, router)
            draft.remove(ROUTER.at(router.project_id, router.id), seen=found.mod_revision)
            draft.free(ROUTER_NAME.at(router.project_id, router.name))
            if router.vni:
                draft.free(VNI.at(str(router.vni)))
            if router.quota_slot:
                draft.free(NETWORK_USE.at(router.project_id, "routers", str(router.quota_slot)))
            return router.id

        done = await desk.make(decide, request, principal)
        return pb.DeleteRouterResponse(revision=done.revision)

    async def add_router_interface(
        self, request: pb.AddRouterInterfaceRequest, principal: Principal
    ) -> pb.AddRouterInterfaceResponse:
        desk = self._desk

        async def decide(draft: Draft) -> str:
            found = await desk.routers.get(principal.project_id, request.router)
            router, key = found.value, ROUTER.at(found.value.project_id, found.value.id)
            subnet = await named_by("subnet", desk.subnet(request.subnet, principal))
            network = await self._inner_network(subnet.value, principal)
            mac = await desk.holdings.free_mac(network.value.id, seed=f"{router.id}/{draft.attempt}")
            after = attached(
                router,
                subnet.value,
                await self._joined(router),
                mac=mac,
                now_ms=desk.clock.now_ms(),
            )
            await self._take_gateway(draft, subnet.value, owner=key)
            draft.take(PORT_MAC.at(network.value.id, mac), key)
            draft.read(SUBNET.at(subnet.value.id), subnet.mod_revision)
            draft.read(NETWORK.at(network.value.id), network.mod_revision)
            draft.write(key, after, seen=found.mod_revision)
            return router.id

        router, revision = await self._made(decide, request, principal)
        return pb.AddRouterInterfaceResponse(router=router, revision=revision)

    async def remove_router_interface(
        self, request: pb.RemoveRouterInterfaceRequest, principal: Principal
    ) -> pb.RemoveRouterInterfaceResponse:
        desk = self._desk

        async def decide(draft: Draft) -> str:
            found = await desk.routers.get(principal.project_id, request.router)
            router = found.value
            subnet = (await named_by("subnet", desk.subnet(request.subnet, principal))).value
            after, interface = detached(router, subnet, now_ms=desk.clock.now_ms())
            await desk.check_nothing_below(
                draft,
                [ROUTER_FLOATING_IP.under(router.id, subnet.id)],
                f"router {router.name} leads floating IPs to subnet {subnet.name}",
            )
            draft.free(
                ADDRESS.at(subnet.id, interface.address), PORT_MAC.at(interface.network_id, interface.mac)
            )
            draft.write(ROUTER.at(router.project_id, router.id), after, seen=found.mod_revision)
            return router.id

        router, revision = await self._made(decide, request, principal)
        return pb.RemoveRouterInterfaceResponse(router=router, revision=revision)

    # ------------------------------------------------------------------ inside

    async def _made(
        self, decide: Callable[[Draft], Awaitable[str]], request: Message, principal: Principal
    ) -> tuple[pb.Router, int]:
        """Change a router, once. Returns it as it then is, and the revision of the write."""
        done = await self._desk.make(decide, request, principal)
        made = await self._desk.routers.get(principal.project_id, done.resource_id)
        return router_message(made.value, made.mod_revision), done.revision

    async def _inner_network(self, subnet: Subnet, principal: Principal) -> Found[Network]:
        """The network of a subnet that a router may be put into: who is its gateway decides over all of its traffic."""
        try:
            network = await self._desk.network(subnet.network_id, principal)
        except NotFound:
            raise Conflict("the subnet's network was just deleted") from None
        check_owns(network.value, principal)
        if network.value.kind is not NetworkKind.TENANT:
            raise InvalidRequest(
                f"subnet: {subnet.name} is of external network {network.value.name}; make it the router's gateway",
                field="subnet",
            )
        return network

    async def _take_gateway(self, draft: Draft, subnet: Subnet, *, owner: str) -> None:
        key = ADDRESS.at(subnet.id, subnet.gateway)
        if key in (await self._desk.store.get(key)).entries:
            raise WrongState(
                f"another router has {subnet.gateway}, the gateway of subnet {subnet.name}",
                reason=Reason.RESOURCE_IN_USE,
                subnet=subnet.id,
            )
        draft.take(key, owner)

    async def _joined(self, router: Router) -> list[Subnet]:
        """The subnets that the router knows already, inside and outside."""
        ids = [
            *(each.subnet_id for each in router.interfaces),
            *(each.subnet_id for each in router.external_addresses),
        ]
        return [each.value for each in await self._desk.subnets_at(ids)]

    # ------------------------------------------------------------------ outside

    async def _led_elsewhere(self, draft: Draft, router: Router, word: str, principal: Principal) -> Router:
        """The router with another gateway, or none. While floating IPs go by it it stays."""
        if word:
            network = await named_by("external_network", self._desk.network(word, principal))
            if network.value.id == router.external_network_id:
                return router
        if router.external_network_id:
            await self._desk.check_nothing_below(
                draft, [ROUTER_FLOATING_IP.under(router.id)], f"router {router.name} leads floating IPs"
            )
        _free_gateway(draft, router)
        bare = replace(router, external_network_id="", external_addresses=(), external_mac="")
        return await self._led_out(draft, bare, word, principal, field="external_network") if word else bare

    async def _led_out(
        self, draft: Draft, router: Router, word: str, principal: Principal, *, field: str
    ) -> Router:
        """The router with a gateway: one address of each family that the external network has."""
        desk = self._desk
        network = await named_by(field, desk.network(word, principal))
        if network.value.kind is not NetworkKind.EXTERNAL:
            raise InvalidRequest(f"{field}: network {network.value.name} is not external", field=field)
        subnets = await desk.subnets_of(network.value)
        if not subnets:
            raise InvalidRequest(f"{field}: network {network.value.name} has no subnet yet", field=field)
        inside = await self._joined(router)
        key, seed = ROUTER.at(router.project_id, router.id), f"{router.id}/{draft.attempt}"
        taken: list[FixedAddress] = []
        for version in (4, 6):
            family = [each for each in subnets if version_of(each.value) == version]
            if not family:
                continue
            fixed = await desk.holdings.free_address([each.value for each in family], seed=seed)
            (subnet,) = (each for each in family if each.value.id == fixed.subnet_id)
            check_apart(subnet.value, inside, router, field=field)
            draft.read(SUBNET.at(fixed.subnet_id), subnet.mod_revision)
            draft.take(ADDRESS.at(fixed.subnet_id, fixed.address), key)
            taken.append(fixed)
        mac = await desk.holdings.free_mac(network.value.id, seed=seed)
        draft.take(PORT_MAC.at(network.value.id, mac), key)
        draft.read(NETWORK.at(network.value.id), network.mod_revision)
        return replace(
            router, external_network_id=network.value.id, external_addresses=tuple(taken), external_mac=mac
        )


def _free_gateway(draft: Draft, router: Router) -> None:
    if router.external_network_id:
        draft.free(PORT_MAC.at(router.external_network_id, router.external_mac))
        draft.free(*(ADDRESS.at(each.subnet_id, each.address) for each in router.external_addresses))


def _position(found: Found[Router]) -> str:
    return position(found.value.name, found.value.id)
