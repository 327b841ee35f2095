"""What Neutron's security groups mean, written down a second time, slowly and plainly: the oracle of the matrix.

It shares the values of `fabric.model.firewall` with the packet filter and nothing else: no gathering, no sets, no marks; rules are
tried one after the other, connections are a list.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, replace

from fabric.model.firewall import Direction, EtherType, FilterRule, HostFilters, PortFilter

# What can begin a conversation in ICMP: echo, timestamp, information and mask requests; in ICMPv6 echo requests.
_QUESTIONS = {1: {8, 13, 15, 17}, 58: {128}}
# What asks about which answer.
_ANSWERS = {(1, 0): 8, (1, 14): 13, (1, 16): 15, (1, 18): 17, (58, 129): 128}
_ERRORS = {1: {3, 11, 12}, 58: {1, 2, 3, 4}}


@dataclass(frozen=True)
class Packet:
    """An IP packet as a person would describe it. For ICMP `sport` is the identifier. `about` is what an ICMP error quotes."""

    source: str
    destination: str
    protocol: int
    sport: int = 0
    dport: int = 0
    syn: bool = False
    kind: int = 0
    code: int = 0
    about: Packet | None = None
    complete: bool = True

    @property
    def question(self) -> Packet:
        """The packet that this would be an answer to."""
        there = replace(self, source=self.destination, destination=self.source, about=None)
        if self.protocol in {1, 58}:
            return replace(there, kind=_ANSWERS.get((self.protocol, self.kind), -1), code=0)
        return replace(there, sport=self.dport, dport=self.sport)

    @property
    def conversation(self) -> tuple[object, ...]:
        """What makes two packets of one direction the same conversation."""
        kind = (self.kind, self.code) if self.protocol in {1, 58} else ()
        return (self.source, self.destination, self.protocol, self.sport, self.dport, kind)


@dataclass
class Conversation:
    """One that was let begin: its first packet, and whether it was answered."""

    first: Packet
    answered: bool = False


@dataclass
class Oracle:
    """One network on one host. `filters` are those of now."""

    filters: HostFilters
    conversations: list[Conversation] = field(default_factory=list)

    def passes(self, packet: Packet, sender: PortFilter | None, receiver: PortFilter | None) -> bool:
        """Whether the packet goes from the one to the other; None is an end that is not filtered on this host."""
        if all(end is None or not end.port_security for end in (sender, receiver)):
            # Nobody looks, but what it was is remembered.
            known = self._found(packet)
            if known is None and packet.complete and self._may_begin(packet):
                self.conversations.append(Conversation(packet))
            elif (
                known is not None and known.first.conversation != packet.conversation and packet.about is None
            ):
                known.answered = True
            return packet.complete
        if not packet.complete:
            return False
        if packet.about is not None:
            return self._error_passes(packet)
        known = self._found(packet)
        if known is not None and known.first.conversation != packet.conversation:
            known.answered = True
            return True
        if known is not None and known.answered:
            return True
        if not self._may_begin(packet):
            return False
        if not self._rules_let(packet, sender, receiver):
            return False
        if known is None:
            self.conversations.append(Conversation(packet))
        return True

    def change(self, filters: HostFilters, ends: dict[str, PortFilter]) -> None:
        """From now on these filters; what they would not let begin is over. `ends` finds a port by its address, in both."""
        self.filters = filters
        ports = {port.port_id: port for port in filters.ports}

        def at(address: str) -> PortFilter | None:
            port = ends.get(address)
            return None if port is None else ports[port.port_id]

        self.conversations = [
            it
            for it in self.conversations
            if self._rules_let(it.first, at(it.first.source), at(it.first.destination))
        ]

    # ------------------------------------------------------------------

    def _found(self, packet: Packet) -> Conversation | None:
        either_way = {packet.conversation, packet.question.conversation}
        for it in self.conversations:
            if it.first.conversation in either_way:
                return it
        return None

    def _error_passes(self, packet: Packet) -> bool:
        """An error comes to who sent what it is about, and that must have been part of a conversation."""
        about = packet.about
        assert about is not None
        return (
            packet.kind in _ERRORS[packet.protocol]
            and packet.destination == about.source
            and self._found(about) is not None
        )

    @staticmethod
    def _may_begin(packet: Packet) -> bool:
        if packet.about is not None:
            return False
        if packet.protocol == 6:
            return packet.syn
        if packet.protocol in _QUESTIONS:
            return packet.kind in _QUESTIONS[packet.protocol]
        return True

    def _rules_let(self, packet: Packet, sender: PortFilter | None, receiver: PortFilter | None) -> bool:
        return self._port_lets(packet, sender, Direction.EGRESS) and self._port_lets(
            packet, receiver, Direction.INGRESS
        )

    def _port_lets(self, packet: Packet, port: PortFilter | None, direction: Direction) -> bool:
        if port is None or not port.port_security:
            return True
        return any(
            self._rule_lets(packet, rule, direction)
            for group in self.filters.groups
            if group.id in port.groups
            for rule in group.rules
        )

    def _rule_lets(self, packet: Packet, rule: FilterRule, direction: Direction) -> bool:
        remote = packet.source if direction is Direction.INGRESS else packet.destination
        if rule.direction is not direction:
            return False
        if (rule.ether_type is EtherType.IPV6) != (":" in remote):
            return False
        if rule.protocol is not None and rule.protocol != packet.protocol:
            return False
        if rule.ports is not None and not rule.ports.first <= packet.dport <= rule.ports.last:
            return False
        if rule.icmp_type is not None and rule.icmp_type != packet.kind:
            return False
        if rule.icmp_code is not None and rule.icmp_code != packet.code:
            return False
        if rule.remote_prefix is not None:
            return _within(remote, rule.remote_prefix)
        if rule.remote_set is not None:
            members = next(it.members for it in self.filters.sets if it.name == rule.remote_set)
            return any(_within(remote, member) for member in members)
        return True


def _within(address: str, prefix: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(prefix)
