"""PortService: places on networks. A port holds its addresses and its MAC from the transaction that makes it to the one that ends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fabric.api.draft import Draft
from fabric.api.named import Found
from fabric.api.network_desk import Desk, named, position, project_of, seen_at, wanted
from fabric.api.network_messages import port_message
from fabric.api.security_groups import ensure_default, groups_named
from fabric.errors import Bug, InvalidRequest, Reason, WrongState
from fabric.model.identity import Principal
from fabric.model.network import AddressPair, FixedAddress, Network, NetworkPort
from fabric.model.security_group import SecurityGroup
from fabric.network.core.ports import (
    AskedAddress,
    Wanted,
    address_pairs,
    check_network,
    check_security,
    check_trust,
    checked_mac,
    wanted_addresses,
)
from fabric.network.core.routers import loosed
from fabric.pb.network.v1 import port_service_pb2 as pb
from fabric.store.keys import (
    ADDRESS,
    FLOATING_IP,
    NETWORK,
    NETWORK_USE,
    PORT,
    PORT_MAC,
    PORT_NAME,
    ROUTER_FLOATING_IP,
    SECURITY_GROUP,
    SECURITY_GROUP_MEMBER,
    SUBNET,
)

UPDATABLE = frozenset(
    {"name", "description", "security_groups", "allowed_address_pairs", "port_security_disabled"}
)


class PortHandlers:
    """The RPCs, as functions of a request and who asks."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def get_port(self, request: pb.GetPortRequest, principal: Principal) -> pb.GetPortResponse:
        found = await self._desk.ports.get(principal.project_id, request.port)
        return pb.GetPortResponse(port=port_message(found.value, found.mod_revision), revision=found.revision)

    async def list_ports(self, request: pb.ListPortsRequest, principal: Principal) -> pb.ListPortsResponse:
        desk = self._desk
        found, revision = await desk.ports.all(principal.project_id)
        if request.network:
            network = await desk.network(request.network, principal)
            found = [each for each in found if each.value.network_id == network.value.id]
        page, token = desk.pages.cut(sorted(found, key=_position), request, key=_position)
        return pb.ListPortsResponse(
            ports=[port_message(each.value, each.mod_revision) for each in page],
            next_page_token=token,
            revision=revision,
        )

    async def create_port(self, request: pb.CreatePortRequest, principal: Principal) -> pb.CreatePortResponse:
        asked, desk = request.port, self._desk
        port_id = desk.ids.new_id()
        bare = _asked_port(asked, port_id, project_of(principal))

        async def decide(draft: Draft) -> str:
            network = await self._network(asked.network, bare, principal, asked_mac=bool(asked.mac_address))
            draft.read(NETWORK.at(network.value.id), network.mod_revision)
            key = PORT.at(bare.project_id, port_id)
            seed = f"{port_id}/{draft.attempt}"
            now_ms = desk.clock.now_ms()
            port = replace(
                bare,
                network_id=network.value.id,
                fixed_addresses=await self._addresses(draft, asked, network.value, key, seed, principal),
                security_group_ids=await self._first_groups(draft, asked, bare),
                mac=await self._mac(draft, network.value, key, seed, asked=bare.mac),
                quota_slot=await desk.take_slot(draft, bare.project_id, "ports", port_id, seed=seed),
                create_time_ms=now_ms,
                update_time_ms=now_ms,
            )
            if port.name:
                name = PORT_NAME.at(port.project_id, port.name)
                await desk.take_name(draft, name, port_id, what="port", name=port.name)
            draft.write(key, port, seen=0)
            return port_id

        done = await desk.make(decide, request, principal)
        made = await desk.ports.get(bare.project_id, done.resource_id)
        return pb.CreatePortResponse(port=port_message(made.value, made.mod_revision), revision=done.revision)

    async def update_port(self, request: pb.UpdatePortRequest, principal: Principal) -> pb.UpdatePortResponse:
        desk, paths = self._desk, named(request.update_mask, UPDATABLE)
        pairs = _pairs(request.allowed_address_pairs, field="allowed_address_pairs")

        async def decide(draft: Draft) -> str:
            found = await desk.ports.get(principal.project_id, request.port)
            before = found.value
            groups = before.security_group_ids
            if "security_groups" in paths:
                asked = await groups_named(
                    desk, request.security_groups, before.project_id, field="security_groups"
                )
                groups = tuple(each.value.id for each in asked)
                _join(draft, [it for it in asked if it.value.id not in before.security_group_ids], before)
                draft.free(*(_membership(it, before) for it in before.security_group_ids if it not in groups))
            after = replace(
                before,
                name=request.name if "name" in paths else before.name,
                description=request.description if "description" in paths else before.description,
                security_group_ids=groups,
                allowed_address_pairs=pairs
                if "allowed_address_pairs" in paths
                else before.allowed_address_pairs,
                port_security=not request.port_security_disabled
                if "port_security_disabled" in paths
                else before.port_security,
                update_time_ms=desk.clock.now_ms(),
            )
            _check_filters(after)
            await self._network(before.network_id, after, principal, asked_mac=False)
            await desk.rename(draft, _name(before), _name(after), before.id, what="port", name=after.name)
            draft.write(PORT.at(before.project_id, before.id), after, seen=found.mod_revision)
            return before.id

        done = await desk.make(decide, request, principal)
        made = await desk.ports.get(principal.project_id, done.resource_id)
        return pb.UpdatePortResponse(port=port_message(made.value, made.mod_revision), revision=done.revision)

    async def delete_port(self, request: pb.DeletePortRequest, principal: Principal) -> pb.DeletePortResponse:
        desk = self._desk

        async def decide(draft: Draft) -> str:
            found = await desk.ports.get(principal.project_id, request.port)
            port = found.value
            draft.remove(PORT.at(port.project_id, port.id), seen=found.mod_revision)
            draft.free(_name(port), PORT_MAC.at(port.network_id, port.mac))
            draft.free(*(ADDRESS.at(each.subnet_id, each.address) for each in port.fixed_addresses))
            draft.free(*(_membership(each, port) for each in port.security_group_ids))
            if port.quota_slot:
                draft.free(NETWORK_USE.at(port.project_id, "ports", str(port.quota_slot)))
            await self._loose(draft, port)
            return port.id

        done = await desk.make(decide, request, principal)
        return pb.DeletePortResponse(revision=done.revision)

    # ------------------------------------------------------------------ parts of a port

    async def _network(
        self, word: str, port: NetworkPort, principal: Principal, *, asked_mac: bool
    ) -> Found[Network]:
        """The port's network, on which it may be as it is."""
        found = await wanted("port.network", self._desk.network(word, principal))
        is_admin = principal.system_admin
        check_network(found.value, project_id=port.project_id, is_admin=is_admin, field="port.network")
        check_trust(port, found.value, asked_mac=asked_mac, is_admin=is_admin)
        return found

    async def _addresses(
        self,
        draft: Draft,
        asked: pb.Port,
        network: Network,
        owner: str,
        seed: str,
        principal: Principal,
    ) -> tuple[FixedAddress, ...]:
        """Take the addresses that were asked for, or one of each family that the network has."""
        if asked.no_fixed_ip:
            if asked.fixed_ips:
                raise InvalidRequest("port.no_fixed_ip contradicts fixed_ips", field="port.no_fixed_ip")
            return ()
        subnets = await self._desk.subnets_of(network)
        wishes = await self._wishes(asked, principal)
        taken: list[FixedAddress] = []
        for at, each in enumerate(
            wanted_addresses(wishes, [it.value for it in subnets], field="port.fixed_ips")
        ):
            fixed = await self._address(each, seed=f"{seed}/{at}", besides=taken)
            draft.take(ADDRESS.at(fixed.subnet_id, fixed.address), owner)
            taken.append(fixed)
        for subnet in subnets:
            if any(each.subnet_id == subnet.value.id for each in taken):
                draft.read(SUBNET.at(subnet.value.id), subnet.mod_revision)
        return tuple(taken)

    async def _wishes(self, asked: pb.Port, principal: Principal) -> list[AskedAddress]:
        found = []
        for at, each in enumerate(asked.fixed_ips):
            subnet_id = ""
            if each.subnet:
                field = f"port.fixed_ips[{at}].subnet"
                subnet_id = (await wanted(field, self._desk.subnet(each.subnet, principal))).value.id
            found.append(AskedAddress(subnet_id, each.ip_address))
        return found

    async def _address(self, wish: Wanted, *, seed: str, besides: Sequence[FixedAddress]) -> FixedAddress:
        if not wish.address:
            return await self._desk.holdings.free_address(wish.subnets, seed=seed, besides=besides)
        (subnet,) = wish.subnets
        key = ADDRESS.at(subnet.id, wish.address)
        if any(each.address == wish.address for each in besides) or (
            key in (await self._desk.store.get(key)).entries
        ):
            raise WrongState(
                f"{wish.address} of subnet {subnet.name} is in use", reason=Reason.RESOURCE_IN_USE
            )
        return FixedAddress(subnet_id=subnet.id, address=wish.address)

    async def _mac(self, draft: Draft, network: Network, owner: str, seed: str, *, asked: str) -> str:
        mac = asked or await self._desk.holdings.free_mac(network.id, seed=seed)
        key = PORT_MAC.at(network.id, mac)
        if asked and key in (await self._desk.store.get(key)).entries:
            raise WrongState(f"MAC {mac} is in use on network {network.name}", reason=Reason.RESOURCE_IN_USE)
        draft.take(key, owner)
        return mac

    async def _first_groups(self, draft: Draft, asked: pb.Port, port: NetworkPort) -> tuple[str, ...]:
        """Put a new port into the groups that were asked for, or into the project's default group."""
        if asked.no_security_group and asked.security_groups:
            raise InvalidRequest(
                "port.no_security_group contradicts security_groups", field="port.no_security_group"
            )
        if asked.no_security_group or not port.port_security:
            return ()
        desk = self._desk
        names = list(asked.security_groups) or [await ensure_default(desk, port.project_id)]
        groups = await groups_named(desk, names, port.project_id, field="port.security_groups")
        _join(draft, groups, port)
        return tuple(each.value.id for each in groups)

    async def _loose(self, draft: Draft, port: NetworkPort) -> None:
        """Let the floating IPs of a port that ends lead to nothing. Whoever associates one meanwhile writes the port, so none is missed."""
        now_ms = self._desk.clock.now_ms()
        keys = {each: FLOATING_IP.at(port.project_id, each) for each in port.floating_ips.values()}
        seen = await self._desk.store.get(*keys.values())
        for floating_ip_id, key in keys.items():
            found = seen_at(seen, FLOATING_IP, key)
            if found is None:
                raise Bug(f"port {port.id} knows floating IP {floating_ip_id}, which is not there")
            floating_ip = found.value
            draft.write(key, loosed(floating_ip, now_ms=now_ms), seen=found.mod_revision)
            draft.free(
                ROUTER_FLOATING_IP.at(floating_ip.router_id, floating_ip.fixed_subnet_id, floating_ip.id)
            )


def _asked_port(asked: pb.Port, port_id: str, project_id: str) -> NetworkPort:
    """The port as far as nothing has to be looked up. Raises InvalidRequest."""
    port = NetworkPort(
        id=port_id,
        name=asked.name,
        project_id=project_id,
        network_id="",
        mac=checked_mac(asked.mac_address, field="port.mac_address") if asked.mac_address else "",
        security_group_ids=tuple(asked.security_groups),
        allowed_address_pairs=_pairs(asked.allowed_address_pairs, field="port.allowed_address_pairs"),
        port_security=not asked.port_security_disabled,
        description=asked.description,
    )
    check_security(port, field="port")
    return port


def _check_filters(port: NetworkPort) -> None:
    """Whether a changed port's filters make sense together. Raises WrongState: it may be what the port has that is in the way."""
    try:
        check_security(port, field="port")
    except InvalidRequest as contradiction:
        raise WrongState(contradiction.message, port=port.id) from None


def _pairs(asked: Sequence[pb.AllowedAddressPair], *, field: str) -> tuple[AddressPair, ...]:
    return address_pairs([AddressPair(cidr=each.cidr, mac=each.mac_address) for each in asked], field=field)


def _join(draft: Draft, groups: Sequence[Found[SecurityGroup]], port: NetworkPort) -> None:
    """Become a member. The groups are compared: none of them may end meanwhile."""
    for each in groups:
        draft.read(SECURITY_GROUP.at(port.project_id, each.value.id), each.mod_revision)
        draft.take(_membership(each.value.id, port), port.project_id)


def _membership(group_id: str, port: NetworkPort) -> str:
    return SECURITY_GROUP_MEMBER.at(group_id, port.id)


def _name(port: NetworkPort) -> str:
    """The key of the port's name; empty where it has none."""
    return PORT_NAME.at(port.project_id, port.name) if port.name else ""


def _position(found: Found[NetworkPort]) -> str:
    return position(found.value.name, found.value.id)
