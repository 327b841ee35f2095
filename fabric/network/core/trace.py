"""What becomes of a packet, as the model says it: which rules let it out and in, and by which way it goes.

What hosts have made of the model is another question, and is answered beside this one. A packet here is the first of a connection: what
belongs to one that was allowed passes whatever rules say.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fabric.model.faults import FAULT_TEXT, as_fault_code
from fabric.model.firewall import ICMP, ICMPV6, PROTOCOLS_WITH_PORTS
from fabric.model.network import FloatingIp, Network, NetworkPort, Router, Subnet
from fabric.model.network_plan import PlanState
from fabric.model.security_group import ANY, Direction, EtherType, SecurityGroup, SecurityRule
from fabric.network.core.filters import sources_of

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Outcome(enum.IntEnum):
    """What a step makes of the packet."""

    UNSPECIFIED = 0
    PASSES = 1
    BLOCKED = 2
    UNKNOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """The first of a connection. `port` is the destination's, or the ICMP type; ANY where it does not matter."""

    protocol: int
    port: int = ANY

    def over(self, version: int) -> Packet:
        """As it is over this version of IP: people say icmp, and mean the one of the family, as they do in rules."""
        if self.protocol not in {ICMP, ICMPV6}:
            return self
        return replace(self, protocol=ICMP if version == 4 else ICMPV6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that the packet meets. `resource_id` is of the rule, router or port that decides, empty where none does."""

    kind: str
    outcome: Outcome
    detail: str
    resource_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a packet goes: the step that says so, and the address that the other end sees it from; None where it does not get there."""

    step: Step
    seen_from: IpAddress | None


# -- rules ----------------------------------------------------------------------------------------


def judged(
    direction: Direction,
    port: NetworkPort,
    packet: Packet,
    remote: IpAddress,
    groups: Mapping[str, SecurityGroup],
    members: Mapping[str, Iterable[NetworkPort]],
) -> Step:
    """Which rule of the port's groups allows the packet; or that none does, with the one that comes nearest to it.

    Args:
        direction: INGRESS to the port, or EGRESS from it.
        port: whose groups count.
        packet: what is asked about.
        remote: who is at the other end, as the port sees it.
        groups: by id, at least those of the port.
        members: the ports of each group that one of their rules names.
    """
    kind = direction.name.lower()
    if not port.port_security:
        return Step(kind=kind, outcome=Outcome.PASSES, detail="the port is not filtered", resource_id=port.id)
    used = [groups[each] for each in port.security_group_ids if each in groups]
    rules = [(rule, group) for group in used for rule in group.rules if rule.direction is direction]
    failures: list[tuple[int, str, str]] = []
    for rule, group in rules:
        depth, why = _against(rule, packet, remote, members)
        if not why:
            name = group.name or group.id
            detail = f"{_said(rule)} of group {name}"
            return Step(kind=kind, outcome=Outcome.PASSES, detail=detail, resource_id=rule.id)
        failures.append((depth, rule.id, f"{_said(rule)} of group {group.name or group.id}, but {why}"))
    if not failures:
        names = ", ".join(each.name or each.id for each in used)
        where = f"its groups ({names}) have no rule for {kind}" if used else "the port is in no group"
        return Step(kind=kind, outcome=Outcome.BLOCKED, detail=where, resource_id=port.id)
    _, rule_id, nearest = max(failures, key=lambda each: each[0])
    return Step(
        kind=kind,
        outcome=Outcome.BLOCKED,
        detail=f"no rule allows it; the nearest is {nearest}",
        resource_id=rule_id,
    )


def _against(
    rule: SecurityRule, packet: Packet, remote: IpAddress, members: Mapping[str, Iterable[NetworkPort]]
) -> tuple[int, str]:
    """How far the packet comes with a rule, and what is in its way; empty: nothing is."""
    family = EtherType.IPV4 if remote.version == 4 else EtherType.IPV6
    if rule.ether_type is not family:
        return 0, f"the packet is {family.name.replace('IPV', 'IPv')}"
    if rule.protocol not in {ANY, packet.protocol}:
        return 1, f"the packet is {protocol_name(packet.protocol)}"
    if rule.protocol != ANY and not _covers(rule, packet):
        what = "type" if packet.protocol in {ICMP, ICMPV6} else "port"
        return 2, f"the packet is for {what} {packet.port}"
    if rule.remote_cidr and remote not in ipaddress.ip_network(rule.remote_cidr):
        return 3, f"the other end is {remote}"
    if rule.remote_group_id and not _is_member(remote, members.get(rule.remote_group_id, ())):
        return 3, f"the other end, {remote}, is no member"
    return 4, ""


def _covers(rule: SecurityRule, packet: Packet) -> bool:
    if ANY in {rule.port_min, packet.port}:
        # Of a question about any port the answer is about the rule's.
        return True
    if packet.protocol in PROTOCOLS_WITH_PORTS:
        return rule.port_min <= packet.port <= rule.port_max
    return rule.port_min == packet.port


def _is_member(remote: IpAddress, ports: Iterable[NetworkPort]) -> bool:
    sources = (ipaddress.ip_network(each) for port in ports for each in sources_of(port))
    return any(remote.version == each.version and remote in each for each in sources)


def _said(rule: SecurityRule) -> str:
    """A rule in a few words."""
    words = ["a rule for", "any protocol" if rule.protocol == ANY else protocol_name(rule.protocol)]
    if rule.port_min != ANY:
        is_one = rule.port_max in {ANY, rule.port_min} or rule.protocol in {ICMP, ICMPV6}
        words.append(str(rule.port_min) if is_one else f"{rule.port_min}-{rule.port_max}")
    if rule.remote_cidr:
        words.append(f"with {rule.remote_cidr}")
    if rule.remote_group_id:
        words.append(f"with members of group {rule.remote_group_id}")
    return " ".join(words)


def protocol_name(number: int) -> str:
    """What people call an IP protocol."""
    return {ICMP: "icmp", 6: "tcp", 17: "udp", ICMPV6: "icmp"}.get(number, f"protocol {number}")


# -- the way --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What is around the port that a packet comes from: its network, the network's subnets, the router of the subnet it has its address in
    with the subnets that one joins, and the floating IP of that address. None for what there is not. `has_others_router`: there is a router
    at the gateway of that subnet, but not the project's to know.
    """

    network: Network
    subnets: Sequence[Subnet]
    router: Router | None = None
    joined: Sequence[Subnet] = ()
    floating_ip: FloatingIp | None = None
    has_gateway: bool = False
    has_others_router: bool = False


def way(source: IpAddress, destination: IpAddress, around: Surroundings) -> Way:
    """By which way a packet goes.

    Args:
        source: the address that it comes from.
        destination: where to, as the sender says it; a floating IP is an address outside.
        around: what is around the sender's port.
    """
    if any(holds(each, destination) for each in around.subnets):
        return _on(
            f"directly, on network {around.network.name or around.network.id}", around.network.id, source
        )
    router = around.router
    if router is None and around.has_others_router:
        return Way(
            step=Step(
                kind="route",
                outcome=Outcome.UNKNOWN,
                detail="the router at the gateway of the port's subnet is not this project's, and leads as it is set there",
                resource_id=around.network.id,
            ),
            seen_from=None,
        )
    if router is None:
        return _lost("no router is at the gateway of the port's subnet", around.network.id)
    name = router.name or router.id
    for subnet in around.joined:
        if holds(subnet, destination):
            return _on(
                f"through router {name}, to subnet {subnet.name or subnet.id} ({subnet.cidr})",
                router.id,
                source,
            )
    if not router.external_network_id:
        return _lost(f"router {name} leads to no external network, and joins no subnet with it", router.id)
    if destination.version == 6:
        return Way(
            step=Step(
                kind="route",
                outcome=Outcome.UNKNOWN,
                detail=f"through router {name}, without translation: it comes back if the world outside routes it",
                resource_id=router.id,
            ),
            seen_from=source,
        )
    if around.floating_ip is not None:
        outside = around.floating_ip.address
        return _on(
            f"through router {name} on the port's own host, as floating IP {outside}",
            around.floating_ip.id,
            ipaddress.ip_address(outside),
        )
    return _translated(router, name, around)


def _translated(router: Router, name: str, around: Surroundings) -> Way:
    if not router.snat:
        return _lost(f"router {name} translates no addresses, and the port's has no floating IP", router.id)
    addresses = (ipaddress.ip_address(each.address) for each in router.external_addresses)
    own = next((each for each in addresses if each.version == 4), None)
    if own is None:
        return _lost(f"router {name} has no IPv4 address outside", router.id)
    if not around.has_gateway:
        return _lost(f"no host leads out for router {name}: none that could is up", router.id)
    return _on(f"through router {name} and the host that leads out for it, as {own}", router.id, own)


def holds(subnet: Subnet, address: IpAddress) -> bool:
    """Whether an address is one of a subnet's."""
    network = ipaddress.ip_network(subnet.cidr)
    return network.version == address.version and address in network


def _on(detail: str, resource_id: str, seen_from: IpAddress) -> Way:
    step = Step(kind="route", outcome=Outcome.PASSES, detail=detail, resource_id=resource_id)
    return Way(step=step, seen_from=seen_from)


def _lost(detail: str, resource_id: str) -> Way:
    step = Step(kind="route", outcome=Outcome.BLOCKED, detail=detail, resource_id=resource_id)
    return Way(step=step, seen_from=None)


def followed(whose: str, port_id: str, host: str | None, state: PlanState | None) -> Step:
    """Whether a port's host does what the model says; `host` is None where the port is on none, `state` where nothing is known of it.

    A host's own words for a fault are about all that is there, whosever it is, and are its choice: only the code's are passed on.
    """
    if host is None:
        detail = f"{whose} port is on no host: its server is not running anywhere"
        return Step(kind="host", outcome=Outcome.BLOCKED, detail=detail, resource_id=port_id)
    if state is None:
        detail = f"{whose} host does not say what it has followed: it, or its conductor, cannot be asked"
        return Step(kind="host", outcome=Outcome.UNKNOWN, detail=detail, resource_id=port_id)
    if state.fault_code:
        why = FAULT_TEXT[as_fault_code(state.fault_code)]
        detail = f"{whose} host does not follow revision {state.revision}: {why}"
        return Step(kind="host", outcome=Outcome.UNKNOWN, detail=detail, resource_id=port_id)
    if not state.is_current or state.followed < state.revision:
        detail = f"{whose} host is still to follow what has changed; it has revision {state.followed}"
        return Step(kind="host", outcome=Outcome.UNKNOWN, detail=detail, resource_id=port_id)
    age_s = state.followed_age_ms / 1000
    detail = f"{whose} host follows all that is known, since {age_s:.1f} s (revision {state.followed})"
    return Step(kind="host", outcome=Outcome.PASSES, detail=detail, resource_id=port_id)


def summed_up(steps: Iterable[Step]) -> Outcome:
    """What all of it comes to: blocked where one step blocks, unknown where one is."""
    outcomes = {each.outcome for each in steps}
    for each in (Outcome.BLOCKED, Outcome.UNKNOWN):
        if each in outcomes:
            return each
    return Outcome.PASSES
