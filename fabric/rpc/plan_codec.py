"""Network plans to bytes and back (fabric.host.v1.NetworkPlan).

What many hosts have in common, a group's rules above all, is made into bytes once: serialized messages that follow each other are one
message, of which the lists are joined.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from fabric.errors import InvalidRequest, Reason
from fabric.mapping import Mapping
from fabric.model import network, network_plan
from fabric.model.firewall import (
    AddressPair,
    AddressSet,
    Direction,
    EtherType,
    FilterRule,
    HostFilters,
    PortFilter,
    PortRange,
    RuleGroup,
)
from fabric.model.network_plan import NetworkPlan, PlanState
from fabric.pb.host.v1 import conductor_service_pb2, host_session_service_pb2
from fabric.pb.host.v1 import network_plan_pb2 as pb

V = TypeVar("V")

PLAN_LIMIT_BYTES: Final = 64 * 1024 * 1024
"""No plan is larger: what would be is refused on both sides. A neighbour takes about a hundred bytes, a rule about sixty."""

SHARED_LIMIT: Final = 512
"""Groups and sets whose bytes are remembered."""

_MAPPING: Final = Mapping(
    {
        network.HostRoute: host_session_service_pb2.HostRoute,
        network_plan.PlannedSubnet: pb.PlannedSubnet,
        network_plan.Neighbour: pb.Neighbour,
        network_plan.PlannedNetwork: pb.PlannedNetwork,
        network_plan.RouterLeg: pb.RouterLeg,
        network_plan.OutsideSubnet: pb.OutsideSubnet,
        network_plan.PlannedFloatingIp: pb.PlannedFloatingIp,
        network_plan.RouterOutside: pb.RouterOutside,
        network_plan.PlannedRouter: pb.PlannedRouter,
        network_plan.PlanState: conductor_service_pb2.PlanState,
        AddressPair: pb.AddressPair,
        PortFilter: pb.PortFilter,
    }
)

_DIRECTIONS: Final = {
    Direction.INGRESS: pb.DIRECTION_INGRESS,
    Direction.EGRESS: pb.DIRECTION_EGRESS,
}
_FAMILIES: Final = {EtherType.IPV4: pb.ETHER_TYPE_IPV4, EtherType.IPV6: pb.ETHER_TYPE_IPV6}
_DIRECTION_OF: Final = {number: value for value, number in _DIRECTIONS.items()}
_FAMILY_OF: Final = {number: value for value, number in _FAMILIES.items()}


class PlanPacker:
    """Makes plans into bytes, and remembers those of the groups and sets it made last. Equal plans give equal bytes."""

    def __init__(self) -> None:
        # By identity: comparing a group of a thousand rules with others costs what making it into bytes does. The value is kept beside
        # its bytes, so that no other one gets its identity meanwhile.
        self._shared: OrderedDict[int, tuple[RuleGroup | AddressSet, bytes]] = OrderedDict()

    def pack(self, plan: NetworkPlan) -> bytes:
        """The plan as bytes."""
        own = pb.NetworkPlan(tunnel_address=plan.tunnel_address)
        for planned in plan.networks:
            _MAPPING.fill(planned, own.networks.add())
        for router in plan.routers:
            _MAPPING.fill(router, own.routers.add())
        for port in plan.filters.ports:
            _MAPPING.fill(port, own.ports.add())
        groups = map(self._shared_bytes, plan.filters.groups)
        sets = map(self._shared_bytes, plan.filters.sets)
        return b"".join((own.SerializeToString(deterministic=True), *groups, *sets))

    def _shared_bytes(self, value: RuleGroup | AddressSet) -> bytes:
        known = self._shared.get(id(value))
        if known is not None:
            self._shared.move_to_end(id(value))
            return known[1]
        data = _packed_shared(value)
        self._shared[id(value)] = (value, data)
        if len(self._shared) > SHARED_LIMIT:
            self._shared.popitem(last=False)
        return data


def pack_plan(plan: NetworkPlan) -> bytes:
    """A plan as bytes. Equal plans give equal bytes."""
    return PlanPacker().pack(plan)


def unpack_plan(data: bytes) -> NetworkPlan:
    """The plan in bytes. Raises InvalidRequest for what is none, or contradicts itself."""
    return PlanReader().read(data)


class PlanReader:
    """Reads plans, one after the other, and keeps what it made of the last one's rules: of a thousand, one is new in the next."""

    def __init__(self) -> None:
        self._rules: dict[bytes, FilterRule] = {}

    def read(self, data: bytes) -> NetworkPlan:
        """The plan in bytes. Raises InvalidRequest for what is none, or contradicts itself."""
        if len(data) > PLAN_LIMIT_BYTES:
            raise InvalidRequest(
                f"the plan has more than {PLAN_LIMIT_BYTES} bytes", field="plan", reason=Reason.TOO_LARGE
            )
        message = pb.NetworkPlan()
        try:
            message.ParseFromString(data)
            return NetworkPlan(
                tunnel_address=message.tunnel_address,
                networks=_taken(network_plan.PlannedNetwork, message.networks),
                routers=_taken(network_plan.PlannedRouter, message.routers),
                filters=HostFilters(
                    ports=_taken(PortFilter, message.ports),
                    groups=self._groups(message.groups),
                    sets=tuple(
                        AddressSet(name=each.name, members=frozenset(each.members)) for each in message.sets
                    ),
                ),
            )
        except (DecodeError, ValueError, KeyError) as broken:
            raise InvalidRequest(
                "the plan does not parse", field="plan", reason=Reason.MESSAGE_MALFORMED
            ) from broken

    def _groups(self, messages: Iterable[pb.RuleGroup]) -> tuple[RuleGroup, ...]:
        before, self._rules = self._rules, {}
        groups: list[RuleGroup] = []
        for message in messages:
            rules: list[FilterRule] = []
            for each in message.rules:
                data = each.SerializeToString(deterministic=True)
                rule = self._rules[data] = before.get(data) or self._rules.get(data) or _rule(each)
                rules.append(rule)
            groups.append(RuleGroup(id=message.id, rules=frozenset(rules)))
        return tuple(groups)


def pack_plan_state(state: PlanState) -> conductor_service_pb2.PlanState:
    """How far a host is, for whoever asked its conductor."""
    message = conductor_service_pb2.PlanState()
    _MAPPING.fill(state, message)
    return message


def unpack_plan_state(message: conductor_service_pb2.PlanState) -> PlanState:
    """How far a host is, from its conductor."""
    return _MAPPING.take(PlanState, message)


def _taken(kind: type[V], messages: Iterable[Message]) -> tuple[V, ...]:
    return tuple(_MAPPING.take(kind, each) for each in messages)


def _packed_shared(value: RuleGroup | AddressSet) -> bytes:
    message = pb.NetworkPlan()
    if isinstance(value, AddressSet):
        message.sets.add(name=value.name, members=sorted(value.members))
    else:
        group = message.groups.add(id=value.id)
        group.rules.extend(sorted((_rule_message(each) for each in value.rules), key=_wire_order))
    return message.SerializeToString(deterministic=True)


def _wire_order(rule: pb.FilterRule) -> bytes:
    return rule.SerializeToString(deterministic=True)


def _rule_message(rule: FilterRule) -> pb.FilterRule:
    return pb.FilterRule(
        direction=_DIRECTIONS[rule.direction],
        ether_type=_FAMILIES[rule.ether_type],
        protocol=rule.protocol,
        first_port=None if rule.ports is None else rule.ports.first,
        last_port=None if rule.ports is None else rule.ports.last,
        icmp_type=rule.icmp_type,
        icmp_code=rule.icmp_code,
        remote_prefix=rule.remote_prefix,
        remote_set=rule.remote_set,
        id=rule.id,
    )


def _rule(message: pb.FilterRule) -> FilterRule:
    has_ports = message.HasField("first_port") or message.HasField("last_port")
    return FilterRule(
        direction=_DIRECTION_OF[message.direction],
        ether_type=_FAMILY_OF[message.ether_type],
        protocol=message.protocol if message.HasField("protocol") else None,
        ports=PortRange(first=message.first_port, last=message.last_port) if has_ports else None,
        icmp_type=message.icmp_type if message.HasField("icmp_type") else None,
        icmp_code=message.icmp_code if message.HasField("icmp_code") else None,
        remote_prefix=message.remote_prefix if message.HasField("remote_prefix") else None,
        remote_set=message.remote_set if message.HasField("remote_set") else None,
        id=message.id,
    )
