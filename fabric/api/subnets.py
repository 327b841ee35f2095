"""SubnetService: the ranges of networks' addresses."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

from fabric.api.draft import Draft
from fabric.api.named import Found, named_by
from fabric.api.network_desk import Desk, check_owns, named, position, required_name
from fabric.api.network_messages import subnet_message
from fabric.api.networks import remove_subnet
from fabric.errors import Conflict, InvalidRequest, WrongState
from fabric.model.identity import Principal
from fabric.model.network import AddressRange, HostRoute, Network, NetworkKind, Subnet
from fabric.network.core import subnets as core
from fabric.network.core.subnets import AskedSubnet
from fabric.pb.network.v1 import subnet_service_pb2 as pb
from fabric.store.keys import ADDRESS, NETWORK, SUBNET, SUBNET_NAME

UPDATABLE = frozenset({"name", "description", "no_dhcp", "dns_servers", "allocation_pools", "host_routes"})

SUBNETS_LIMIT = 24
"""Subnets of one network: they all go with it, in one transaction."""


class SubnetHandlers:
    """The RPCs, as functions of a request and who asks."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def get_subnet(self, request: pb.GetSubnetRequest, principal: Principal) -> pb.GetSubnetResponse:
        found = await self._desk.subnet(request.subnet, principal)
        return pb.GetSubnetResponse(
            subnet=subnet_message(found.value, found.mod_revision), revision=found.revision
        )

    async def list_subnets(
        self, request: pb.ListSubnetsRequest, principal: Principal
    ) -> pb.ListSubnetsResponse:
        desk = self._desk
        if request.network:
            network = await desk.network(request.network, principal)
            networks, revision = [network], network.revision
        else:
            networks, revision = await desk.networks(principal)
        found = await desk.subnets_at([each for it in networks for each in it.value.subnet_ids])
        page, token = desk.pages.cut(sorted(found, key=_position), request, key=_position)
        return pb.ListSubnetsResponse(
            subnets=[subnet_message(each.value, each.mod_revision) for each in page],
            next_page_token=token,
            revision=revision,
        )

    async def create_subnet(
        self, request: pb.CreateSubnetRequest, principal: Principal
    ) -> pb.CreateSubnetResponse:
        asked, desk = request.subnet, self._desk
        subnet_id = desk.ids.new_id()

        async def decide(draft: Draft) -> str:
            found = await named_by("subnet.network", desk.network(asked.network, principal))
            network = found.value
            check_owns(network, principal)
            if network.kind is NetworkKind.HOST_LOCAL:
                raise InvalidRequest(
                    f"subnet.network: each host has its own subnet of {network.name}", field="subnet.network"
                )
            if len(network.subnet_ids) >= SUBNETS_LIMIT:
                raise WrongState(f"network {network.name} has {SUBNETS_LIMIT} subnets, the most it may have")
            now_ms = desk.clock.now_ms()
            bare = Subnet(
                id=subnet_id,
                name=asked.name,
                project_id=network.project_id,
                network_id=network.id,
                cidr="",
                description=asked.description,
                create_time_ms=now_ms,
                update_time_ms=now_ms,
            )
            others = await desk.subnets_of(network)
            if len(others) != len(network.subnet_ids):
                raise Conflict("the network's subnets are just being changed; try again")
            subnet = core.planned(
                _asked(asked), network, [each.value for each in others], bare=bare, field="subnet"
            )
            name = SUBNET_NAME.at(network.project_id, asked.name)
            await desk.take_name(draft, name, subnet_id, what="subnet", name=asked.name)
            slot = await desk.take_slot(
                draft, network.project_id, "subnets", subnet_id, seed=f"{subnet_id}/{draft.attempt}"
            )
            draft.write(SUBNET.at(subnet_id), replace(subnet, quota_slot=slot), seen=0)
            # Two subnets that come at once both write the network: the second one looks again at whether it overlaps.
            after = replace(network, subnet_ids=(*network.subnet_ids, subnet_id))
            draft.write(NETWORK.at(network.id), after, seen=found.mod_revision)
            return subnet_id

        done = await desk.make(decide, request, principal)
        made = await desk.subnet(done.resource_id, principal)
        return pb.CreateSubnetResponse(
            subnet=subnet_message(made.value, made.mod_revision), revision=done.revision
        )

    async def update_subnet(
        self, request: pb.UpdateSubnetRequest, principal: Principal
    ) -> pb.UpdateSubnetResponse:
        desk, paths = self._desk, named(request.update_mask, UPDATABLE)

        async def decide(draft: Draft) -> str:
            found, _ = await self._own(request.subnet, principal)
            before = found.value
            after = replace(_changed(before, request, paths), update_time_ms=desk.clock.now_ms())
            await desk.rename(
                draft,
                SUBNET_NAME.at(before.project_id, before.name),
                SUBNET_NAME.at(after.project_id, after.name),
                before.id,
                what="subnet",
                name=after.name,
            )
            draft.write(SUBNET.at(before.id), after, seen=found.mod_revision)
            return before.id

        done = await desk.make(decide, request, principal)
        made = await desk.subnet(done.resource_id, principal)
        return pb.UpdateSubnetResponse(
            subnet=subnet_message(made.value, made.mod_revision), revision=done.revision
        )

    async def delete_subnet(
        self, request: pb.DeleteSubnetRequest, principal: Principal
    ) -> pb.DeleteSubnetResponse:
        desk = self._desk

        async def decide(draft: Draft) -> str:
            found, network = await self._own(request.subnet, principal)
            subnet = found.value
            await desk.check_nothing_below(
                draft,
                [ADDRESS.under(subnet.id)],
                f"subnet {subnet.name} has addresses in use by ports, routers or floating IPs",
            )
            remove_subnet(draft, found)
            rest = tuple(each for each in network.value.subnet_ids if each != subnet.id)
            after = replace(network.value, subnet_ids=rest)
            draft.write(NETWORK.at(network.value.id), after, seen=network.mod_revision)
            return subnet.id

        done = await desk.make(decide, request, principal)
        return pb.DeleteSubnetResponse(revision=done.revision)

    async def _own(self, word: str, principal: Principal) -> tuple[Found[Subnet], Found[Network]]:
        """A subnet and its network, of which the caller may change both. Raises NotFound, PermissionDenied."""
        found = await self._desk.subnet(word, principal)
        network = await self._desk.network(found.value.network_id, principal)
        check_owns(network.value, principal)
        return found, network


def _asked(asked: pb.Subnet) -> AskedSubnet:
    return AskedSubnet(
        cidr=asked.cidr,
        gateway=asked.gateway,
        has_gateway=not asked.no_gateway,
        dhcp=not asked.no_dhcp,
        dns_servers=tuple(asked.dns_servers),
        pools=_pools(asked.allocation_pools),
        host_routes=_routes(asked.host_routes),
    )


def _changed(subnet: Subnet, request: pb.UpdateSubnetRequest, paths: AbstractSet[str]) -> Subnet:
    """The subnet with what an update names. Raises InvalidRequest."""
    cidr = core.cidr_of(subnet)
    if "name" in paths:
        subnet = replace(subnet, name=required_name(request.name))
    if "description" in paths:
        subnet = replace(subnet, description=request.description)
    if "no_dhcp" in paths:
        subnet = replace(subnet, dhcp=not request.no_dhcp)
    if "dns_servers" in paths:
        servers = core.dns_servers(request.dns_servers, cidr.version, field="dns_servers")
        subnet = replace(subnet, dns_servers=servers)
    if "allocation_pools" in paths:
        pools = core.repooled(subnet, _pools(request.allocation_pools), field="allocation_pools")
        subnet = replace(subnet, allocation_pools=pools)
    if "host_routes" in paths:
        routes = core.host_routes(_routes(request.host_routes), cidr, field="host_routes")
        subnet = replace(subnet, host_routes=routes)
    return subnet


def _pools(asked: Sequence[pb.AllocationPool]) -> tuple[AddressRange, ...]:
    return tuple(AddressRange(first=each.start, last=each.end) for each in asked)


def _routes(asked: Sequence[pb.HostRoute]) -> tuple[HostRoute, ...]:
    return tuple(HostRoute(destination=each.destination, next_hop=each.next_hop) for each in asked)


def _position(found: Found[Subnet]) -> str:
    return position(found.value.name, found.value.id)
