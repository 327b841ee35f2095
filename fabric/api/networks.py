"""NetworkService: what ports are on. The hosts' own network is made by the system; others by projects, and what leads outside by
administrators.
"""

from __future__ import annotations

from dataclasses import replace

from fabric.api.draft import Draft
from fabric.api.named import Found
from fabric.api.network_desk import Desk, check_owns, named, position, project_of, required_name
from fabric.api.network_messages import network_message
from fabric.errors import PermissionDenied
from fabric.model.identity import Principal
from fabric.model.network import Network, NetworkKind, Subnet
from fabric.network.core.subnets import check_can_end, checked_mtu, checked_physical
from fabric.pb.network.v1 import network_service_pb2 as pb
from fabric.store.keys import (
    ADDRESS,
    NETWORK,
    NETWORK_NAME,
    NETWORK_USE,
    PORT_MAC,
    PROJECT_NETWORK_NAME,
    SUBNET,
    SUBNET_NAME,
    VNI,
)

UPDATABLE = frozenset({"name", "description", "shared", "mtu"})


class NetworkHandlers:
    """The RPCs, as functions of a request and who asks."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def get_network(self, request: pb.GetNetworkRequest, principal: Principal) -> pb.GetNetworkResponse:
        found = await self._desk.network(request.network, principal)
        return pb.GetNetworkResponse(network=_message(found, principal), revision=found.revision)

    async def list_networks(
        self, request: pb.ListNetworksRequest, principal: Principal
    ) -> pb.ListNetworksResponse:
        found, revision = await self._desk.networks(principal)
        page, token = self._desk.pages.cut(sorted(found, key=_position), request, key=_position)
        return pb.ListNetworksResponse(
            networks=[_message(each, principal) for each in page], next_page_token=token, revision=revision
        )

    async def create_network(
        self, request: pb.CreateNetworkRequest, principal: Principal
    ) -> pb.CreateNetworkResponse:
        asked, desk = request.network, self._desk
        project_id, network_id = project_of(principal), desk.ids.new_id()
        if (asked.shared or asked.external) and not principal.system_admin:
            raise PermissionDenied(
                "only system administrators make shared or external networks", needed="system"
            )
        kind = NetworkKind.EXTERNAL if asked.external else NetworkKind.TENANT
        mtu = checked_mtu(asked.mtu, kind, (), field="network.mtu")
        physical = checked_physical(asked.physical_network, kind, field="network.physical_network")

        async def decide(draft: Draft) -> str:
            seed = f"{network_id}/{draft.attempt}"
            now_ms = desk.clock.now_ms()
            network = Network(
                id=network_id,
                name=asked.name,
                project_id=project_id,
                description=asked.description,
                kind=kind,
                shared=asked.shared,
                mtu=mtu,
                vni=await desk.holdings.free_vni(seed=seed) if kind is NetworkKind.TENANT else 0,
                physical_network=physical,
                quota_slot=await desk.take_slot(draft, project_id, "networks", network_id, seed=seed),
                create_time_ms=now_ms,
                update_time_ms=now_ms,
            )
            for key in _names(network):
                await desk.take_name(draft, key, network_id, what="network", name=asked.name)
            if network.vni:
                draft.take(VNI.at(str(network.vni)), network_id)
            draft.write(NETWORK.at(network_id), network, seen=0)
            return network_id

        done = await desk.make(decide, request, principal)
        made = await desk.network(done.resource_id, principal)
        return pb.CreateNetworkResponse(network=_message(made, principal), revision=done.revision)

    async def update_network(
        self, request: pb.UpdateNetworkRequest, principal: Principal
    ) -> pb.UpdateNetworkResponse:
        desk, paths = self._desk, named(request.update_mask, UPDATABLE)

        async def decide(draft: Draft) -> str:
            found = await desk.network(request.network, principal)
            before = found.value
            check_owns(before, principal)
            check_can_end(before)
            after = replace(
                before,
                name=required_name(request.name) if "name" in paths else before.name,
                description=request.description if "description" in paths else before.description,
                shared=request.shared if "shared" in paths else before.shared,
                mtu=await self._mtu(before, request.mtu) if "mtu" in paths else before.mtu,
                update_time_ms=desk.clock.now_ms(),
            )
            if after.shared and not before.shared and not principal.system_admin:
                raise PermissionDenied("only system administrators share networks", needed="system")
            if before.shared and not after.shared:
                # Whose the ports are is not asked: others' could come in this very moment, and would be cut off from what they see.
                await desk.check_nothing_below(
                    draft, [PORT_MAC.under(before.id)], f"network {before.name} is shared by what is on it"
                )
            old, new = _names(before), _names(after)
            for key in new:
                if key not in old:
                    await desk.take_name(draft, key, before.id, what="network", name=after.name)
            draft.free(*(key for key in old if key not in new))
            draft.write(NETWORK.at(before.id), after, seen=found.mod_revision)
            return before.id

        done = await desk.make(decide, request, principal)
        made = await desk.network(done.resource_id, principal)
        return pb.UpdateNetworkResponse(network=_message(made, principal), revision=done.revision)

    async def delete_network(
        self, request: pb.DeleteNetworkRequest, principal: Principal
    ) -> pb.DeleteNetworkResponse:
        desk = self._desk

        async def decide(draft: Draft) -> str:
            found = await desk.network(request.network, principal)
            network = found.value
            check_owns(network, principal)
            check_can_end(network)
            await desk.check_nothing_below(
                draft, [PORT_MAC.under(network.id)], f"network {network.name} has ports or routers"
            )
            for subnet in await desk.subnets_of(network):
                await desk.check_nothing_below(
                    draft,
                    [ADDRESS.under(subnet.value.id)],
                    f"network {network.name} has addresses in use in {subnet.value.cidr}",
                )
                remove_subnet(draft, subnet)
            draft.remove(NETWORK.at(network.id), seen=found.mod_revision)
            draft.free(*_names(network))
            if network.vni:
                draft.free(VNI.at(str(network.vni)))
            if network.quota_slot:
                draft.free(NETWORK_USE.at(network.project_id, "networks", str(network.quota_slot)))
            return network.id

        done = await desk.make(decide, request, principal)
        return pb.DeleteNetworkResponse(revision=done.revision)

    async def _mtu(self, network: Network, mtu: int) -> int:
        subnets = [each.value for each in await self._desk.subnets_of(network)]
        return checked_mtu(mtu, network.kind, subnets, field="mtu")


def remove_subnet(draft: Draft, found: Found[Subnet]) -> None:
    """Take a subnet out of the store. That nobody has an address of it, and that its network forgets it, is the caller's to see to."""
    subnet = found.value
    draft.remove(SUBNET.at(subnet.id), seen=found.mod_revision)
    draft.free(SUBNET_NAME.at(subnet.project_id, subnet.name))
    if subnet.quota_slot:
        draft.free(NETWORK_USE.at(subnet.project_id, "subnets", str(subnet.quota_slot)))


def _names(network: Network) -> tuple[str, ...]:
    """The keys that make the network's name unique: in its project, and where everybody sees it among all of those."""
    own = PROJECT_NETWORK_NAME.at(network.project_id, network.name)
    is_public = network.shared or network.kind is not NetworkKind.TENANT
    return (own, NETWORK_NAME.at(network.name)) if is_public else (own,)


def _message(found: Found[Network], principal: Principal) -> pb.Network:
    return network_message(found.value, found.mod_revision, is_admin=principal.system_admin)


def _position(found: Found[Network]) -> str:
    return position(found.value.name, found.value.id)
