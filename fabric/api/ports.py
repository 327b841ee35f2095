"""PortService: places on networks. A port holds its addresses and its MAC from the transaction that makes it to the one that ends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fabric.api.draft import Draft
from fabric.api.named import Found, named_by
from fabric.api.network_desk import Desk, named, position, project_of, seen_at
from fabric.api.network_messages import port_message
from fabric.api.port_parts import check_allowed, join, membership, name_key, take_port
from fabric.api.security_groups import groups_named
from fabric.errors import Bug, InvalidRequest, WrongState
from fabric.model.identity import Principal
from fabric.model.network import AddressPair, FloatingIp, Network, NetworkPort
from fabric.network.core.ports import (
    AskedAddress,
    address_pairs,
    check_security,
    check_unbound,
    checked_mac,
)
from fabric.network.core.releases import At, ended, floating_ip_keys
from fabric.pb.network.v1 import port_service_pb2 as pb
from fabric.store.keys import FLOATING_IP, PORT

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
        if request.instance_id:
            found = [each for each in found if each.value.instance_id == request.instance_id]
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
            await take_port(
                desk,
                draft,
                bare,
                network,
                addresses=await self._wishes(asked, principal),
                groups=_groups(asked),
                seed=f"{port_id}/{draft.attempt}",
                field="port.",
            )
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
                join(draft, [it for it in asked if it.value.id not in before.security_group_ids], before)
                draft.free(*(membership(it, before) for it in before.security_group_ids if it not in groups))
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
            await desk.rename(
                draft, name_key(before), name_key(after), before.id, what="port", name=after.name
            )
            draft.write(PORT.at(before.project_id, before.id), after, seen=found.mod_revision)
            return before.id

        done = await desk.make(decide, request, principal)
        made = await desk.ports.get(principal.project_id, done.resource_id)
        return pb.UpdatePortResponse(port=port_message(made.value, made.mod_revision), revision=done.revision)

    async def delete_port(self, request: pb.DeletePortRequest, principal: Principal) -> pb.DeletePortResponse:
        desk = self._desk

        async def decide(draft: Draft) -> str:
            while True:
                found = await desk.ports.get(principal.project_id, request.port)
                check_unbound(found.value)
                leading = await self._floating_ips(found)
                if leading is not None:
                    break
            port = At(found.value, found.mod_revision)
            draft.release(ended(port, leading, now_ms=desk.clock.now_ms()))
            return port.value.id

        done = await desk.make(decide, request, principal)
        return pb.DeletePortResponse(revision=done.revision)

    # ------------------------------------------------------------------ parts of a port

    async def _network(
        self, word: str, port: NetworkPort, principal: Principal, *, asked_mac: bool
    ) -> Found[Network]:
        """The port's network, on which it may be as it is."""
        found = await named_by("port.network", self._desk.network(word, principal))
        check_allowed(found.value, port, principal, asked_mac=asked_mac, field="port.network")
        return found

    async def _wishes(self, asked: pb.Port, principal: Principal) -> list[AskedAddress] | None:
        """The addresses that are asked for; None: none is to be had."""
        if asked.no_fixed_ip:
            if asked.fixed_ips:
                raise InvalidRequest("port.no_fixed_ip contradicts fixed_ips", field="port.no_fixed_ip")
            return None
        found = []
        for at, each in enumerate(asked.fixed_ips):
            subnet_id = ""
            if each.subnet:
                field = f"port.fixed_ips[{at}].subnet"
                subnet_id = (await named_by(field, self._desk.subnet(each.subnet, principal))).value.id
            found.append(AskedAddress(subnet_id, each.ip_address))
        return found

    async def _floating_ips(self, port: Found[NetworkPort]) -> dict[str, At[FloatingIp]] | None:
        """The floating IPs that lead to a port, by key. None where the port has changed since it was read."""
        keys = floating_ip_keys(port.value)
        port_key = PORT.at(port.value.project_id, port.value.id)
        seen = await self._desk.store.get(port_key, *keys)
        if seen.seen(port_key) != port.mod_revision:
            return None
        found = {}
        for key in keys:
            each = seen_at(seen, FLOATING_IP, key)
            if each is None:
                raise Bug(f"port {port.value.id} knows a floating IP that is not there", key=key)
            found[key] = At(each.value, each.mod_revision)
        return found


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


def _groups(asked: pb.Port) -> list[str] | None:
    """The groups that are asked for; None: it is to be in none."""
    if asked.no_security_group and asked.security_groups:
        raise InvalidRequest(
            "port.no_security_group contradicts security_groups", field="port.no_security_group"
        )
    return None if asked.no_security_group or asked.port_security_disabled else list(asked.security_groups)


def _position(found: Found[NetworkPort]) -> str:
    return position(found.value.name, found.value.id)
