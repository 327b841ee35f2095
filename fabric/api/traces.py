"""TraceService: what the model says of a packet, and whether the hosts have followed the model.

Only what is the project's own is named. A port of somebody else's may be where the packet goes; then what lets it in is not said.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Protocol

from fabric.api.cells import Cells
from fabric.api.named import absent
from fabric.api.network_desk import Desk, project_of
from fabric.errors import InvalidRequest, NotFound, Unavailable
from fabric.model.binding import PortBinding
from fabric.model.host import Session
from fabric.model.identity import Principal
from fabric.model.instance import Location
from fabric.model.network import FixedAddress, NetworkPort, Router, Subnet
from fabric.model.network_plan import PlanState
from fabric.model.security_group import ANY, Direction, SecurityGroup
from fabric.network.core import ranges, rules
from fabric.network.core.ranges import IpAddress
from fabric.network.core.trace import (
    Outcome,
    Packet,
    Step,
    Surroundings,
    followed,
    holds,
    judged,
    summed_up,
    way,
)
from fabric.pb.network.v1 import trace_service_pb2 as pb
from fabric.store.codec import decode
from fabric.store.keys import ADDRESS, PORT, PORT_BINDING, ROUTER_GATEWAY, SECURITY_GROUP_MEMBER, SESSION


class PlanConductors(Protocol):
    """Conductors, as far as they are asked about plans."""

    async def plan_state(self, endpoint: str, host: str) -> PlanState | None:
        """How far a host has got with its network plans; None where it is told none. Raises Unavailable."""
        ...


class Servers(Protocol):
    """Where servers are known by name."""

    async def location(self, word: str, principal: Principal) -> Location:
        """A server by id or name, of the caller's project. Raises NotFound."""
        ...


class TraceHandlers:
    """The RPC, as a function of a request and who asks."""

    def __init__(self, desk: Desk, *, servers: Servers, cells: Cells, conductors: PlanConductors) -> None:
        self._desk = desk
        self._store = desk.store
        self._servers = servers
        self._cells = cells
        self._conductors = conductors

    async def read_trace(self, request: pb.ReadTraceRequest, principal: Principal) -> pb.ReadTraceResponse:
        packet = _packet(request)
        source = await self._port(request.source, principal, field="source")
        # An administrator may ask about anybody's.
        project = source.project_id
        target = await self._target(request.destination, principal)
        fixed, address = _ends(source, target, request)
        packet = packet.over(address.version)
        around = await self._around(source, fixed, project)
        going = way(ipaddress.ip_address(fixed.address), address, around)
        steps = [
            await self._at_host(source, "the sender's"),
            await self._judged(Direction.EGRESS, source, packet, address),
            going.step,
        ]
        if going.seen_from is not None:
            port = await self._holder(address, around, project)
            steps += await self._arrived(port, going.seen_from, packet)
        return pb.ReadTraceResponse(
            outcome=pb.TraceOutcome.ValueType(summed_up(steps)),
            steps=[_message(each) for each in steps],
            source_address=fixed.address,
            destination_address=str(address),
        )

    # ------------------------------------------------------------------ the way

    async def _around(self, port: NetworkPort, fixed: FixedAddress, project: str) -> Surroundings:
        """What decides by which way a packet goes."""
        network = await self._desk.network_at(port.network_id)
        if network is None:
            raise absent("network", port.network_id)
        router = await self._router_at(fixed, project)
        subnets = [each.value for each in await self._desk.subnets_of(network.value)]
        joined = () if router is None else tuple(each.subnet_id for each in router.interfaces)
        floating_id = port.floating_ips.get(fixed.address)
        floating = None if floating_id is None else await self._desk.floating_ips.at(project, floating_id)
        return Surroundings(
            network=network.value,
            subnets=subnets,
            router=router,
            joined=[each.value for each in await self._desk.subnets_at(joined)],
            floating_ip=None if floating is None else floating.value,
            has_gateway=router is not None and await self._has_gateway(router),
            has_others_router=router is None and await self._is_led(subnets, fixed),
        )

    async def _arrived(self, port: NetworkPort | None, seen_from: IpAddress, packet: Packet) -> list[Step]:
        """What the packet meets where it comes to, as far as that is the project's."""
        if port is None:
            detail = "what is there is not this project's, and decides by itself"
            return [Step(kind="ingress", outcome=Outcome.UNKNOWN, detail=detail)]
        return [
            await self._judged(Direction.INGRESS, port, packet, seen_from),
            await self._at_host(port, "the receiver's"),
        ]

    async def _holder(self, address: IpAddress, around: Surroundings, project: str) -> NetworkPort | None:
        """The project's port that a packet to an address comes to: on the way's subnet, or else by a floating IP."""
        near = next((each for each in (*around.subnets, *around.joined) if holds(each, address)), None)
        if near is None:
            found, _ = await self._desk.floating_ips.all(project)
            led = next((each.value.port_id for each in found if each.value.address == str(address)), "")
            port = await self._desk.ports.at(project, led) if led else None
            return None if port is None else port.value
        key = ADDRESS.at(near.id, str(address))
        holder = (await self._store.get(key)).value(key)
        if holder is None:
            return None
        # Whose it is, is said by the holder's key.
        port = await self._desk.ports.at(project, decode(str, holder).rsplit("/", 1)[-1])
        return None if port is None else port.value

    async def _router_at(self, fixed: FixedAddress, project: str) -> Router | None:
        """The router that the guests of a subnet know, if it is the project's to know."""
        found, _ = await self._desk.routers.all(project)
        joining = (
            each.value
            for each in found
            if any(it.subnet_id == fixed.subnet_id for it in each.value.interfaces)
        )
        return next(joining, None)

    async def _is_led(self, subnets: Iterable[Subnet], fixed: FixedAddress) -> bool:
        """Whether anybody has the gateway address of an address's subnet."""
        keys = [
            ADDRESS.at(each.id, each.gateway)
            for each in subnets
            if each.id == fixed.subnet_id and each.gateway
        ]
        return bool(keys and (await self._store.get(*keys)).entries)

    async def _has_gateway(self, router: Router) -> bool:
        key = ROUTER_GATEWAY.at(router.id)
        return key in (await self._store.get(key)).entries

    # ------------------------------------------------------------------ rules

    async def _judged(
        self, direction: Direction, port: NetworkPort, packet: Packet, remote: IpAddress
    ) -> Step:
        groups: dict[str, SecurityGroup] = {}
        for group_id in port.security_group_ids:
            group = await self._desk.groups.at(port.project_id, group_id)
            if group is not None:
                groups[group_id] = group.value
        named = {
            rule.remote_group_id for each in groups.values() for rule in each.rules if rule.remote_group_id
        }
        members = {each: await self._members(each) for each in sorted(named)}
        return judged(direction, port, packet, remote, groups, members)

    async def _members(self, group_id: str) -> list[NetworkPort]:
        found = await self._store.list(SECURITY_GROUP_MEMBER.under(group_id))
        keys = [
            PORT.at(decode(str, entry.value), key.rsplit("/", 1)[1]) for key, entry in found.entries.items()
        ]
        seen = await self._store.get(*keys)
        return [decode(NetworkPort, entry.value) for entry in seen.entries.values()]

    # ------------------------------------------------------------------ hosts

    async def _at_host(self, port: NetworkPort, whose: str) -> Step:
        """Whether the host that a port is on has followed what the model says."""
        key = PORT_BINDING.at(port.network_id, port.id)
        stored = (await self._store.get(key)).value(key)
        if stored is None:
            return followed(whose, port.id, None, None)
        binding = decode(PortBinding, stored)
        return followed(whose, port.id, binding.host, await self._state(binding))

    async def _state(self, binding: PortBinding) -> PlanState | None:
        view = self._cells.by_name.get(binding.cell)
        if view is None:
            return None
        try:
            key = SESSION.at(binding.host)
            stored = (await view.get(key)).value(key)
            if stored is None:
                return None
            return await self._conductors.plan_state(decode(Session, stored).conductor, binding.host)
        except Unavailable:
            return None

    # ------------------------------------------------------------------ who is meant

    async def _target(self, word: str, principal: Principal) -> IpAddress | NetworkPort:
        try:
            ipaddress.ip_address(word)
        except ValueError:
            return await self._port(word, principal, field="destination")
        return ranges.address(word, field="destination")

    async def _port(self, word: str, principal: Principal, *, field: str) -> NetworkPort:
        """A port of the project: by its id or name, or the first of a server's. Raises NotFound, InvalidRequest."""
        project = project_of(principal)
        port = await self._desk.ports.find(project, word)
        if port is not None:
            return port.value
        try:
            location = await self._servers.location(word, principal)
        except NotFound:
            raise absent("port or server", word) from None
        for port_id in location.port_ids:
            found = await self._desk.ports.at(location.project_id, port_id)
            if found is not None:
                return found.value
        raise InvalidRequest(f"{field}: server {location.name} has no port on a tenant network", field=field)


def _packet(request: pb.ReadTraceRequest) -> Packet:
    protocol = rules.protocol_number(request.protocol, field="protocol")
    if protocol == ANY:
        raise InvalidRequest("protocol: a packet is of one protocol", field="protocol")
    return Packet(protocol=protocol, port=request.port if request.HasField("port") else ANY)


def _ends(
    source: NetworkPort, target: IpAddress | NetworkPort, request: pb.ReadTraceRequest
) -> tuple[FixedAddress, IpAddress]:
    """The two addresses, of one family: the first that both ends have. Raises InvalidRequest where they have none."""
    theirs: Iterable[IpAddress] = (
        (ipaddress.ip_address(each.address) for each in target.fixed_addresses)
        if isinstance(target, NetworkPort)
        else (target,)
    )
    for address in theirs:
        for fixed in source.fixed_addresses:
            if ipaddress.ip_address(fixed.address).version == address.version:
                return fixed, address
    raise InvalidRequest(
        f"destination: {request.source} has no address of the family that {request.destination} has",
        field="destination",
    )


def _message(step: Step) -> pb.TraceStep:
    return pb.TraceStep(
        kind=step.kind,
        outcome=pb.TraceOutcome.ValueType(step.outcome),
        detail=step.detail,
        resource_id=step.resource_id,
    )
