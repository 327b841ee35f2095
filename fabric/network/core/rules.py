"""Security groups: the rules that people write, as rules that mean one thing; and the groups that are there without being made."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b
from types import MappingProxyType
from typing import Final

from fabric.errors import AlreadyExists, InvalidRequest, QuotaExceeded
from fabric.model.firewall import ICMP, ICMPV6, PROTOCOLS_WITH_PORTS
from fabric.model.security_group import (
    ANY,
    DEFAULT_GROUP,
    Direction,
    EtherType,
    SecurityGroup,
    SecurityRule,
)
from fabric.network.core import ranges

PROTOCOLS: Final = MappingProxyType(
    {
        "icmp": ICMP,
        "igmp": 2,
        "ipip": 4,
        "tcp": 6,
        "egp": 8,
        "udp": 17,
        "dccp": 33,
        "rsvp": 46,
        "gre": 47,
        "esp": 50,
        "ah": 51,
        "ipv6-icmp": ICMPV6,
        "ospf": 89,
        "pgm": 113,
        "vrrp": 112,
        "sctp": 132,
        "udplite": 136,
    }
)
"""Protocols that may be said by name (IANA's numbers); every other is said by its number."""

_ALIASES: Final = MappingProxyType({"icmpv6": "ipv6-icmp", "any": ""})
_NAMES: Final = MappingProxyType({number: name for name, number in PROTOCOLS.items()})

REMOTE_RULES_LIMIT: Final = 64
"""Of those, rules that name other groups: what they hold of them is given back in one transaction with the group."""

RULES_LIMIT: Final = 1000
"""Rules in one group: its record is one value in the store, and one thing that a host is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedRule:
    """What somebody said of a new rule. None is not said; `remote_group_id` is looked up already."""

    direction: Direction = Direction.UNSPECIFIED
    ether_type: EtherType = EtherType.UNSPECIFIED
    protocol: str = ""
    port_min: int | None = None
    port_max: int | None = None
    remote_cidr: str = ""
    remote_group_id: str = ""
    description: str = ""


def protocol_name(number: int) -> str:
    """What people call a protocol; empty for any."""
    return "" if number == ANY else _NAMES.get(number, str(number))


def rule_of(asked: AskedRule, *, rule_id: str, now_ms: int, field: str) -> SecurityRule:
    """The rule, with everything decided that was not said.

    Raises:
        InvalidRequest: naming the field below `field`: unknown, out of range, or against another field.
    """
    if asked.remote_cidr and asked.remote_group_id:
        raise InvalidRequest(
            f"{field}.remote_cidr and {field}.remote_group: the other end is one of them, not both",
            field=f"{field}.remote_cidr",
        )
    remote = ranges.network(asked.remote_cidr, field=f"{field}.remote_cidr") if asked.remote_cidr else None
    protocol = protocol_number(asked.protocol, field=f"{field}.protocol")
    ether_type = asked.ether_type or _implied(remote, protocol)
    if remote is not None and (remote.version == 6) != (ether_type is EtherType.IPV6):
        raise InvalidRequest(
            f"{field}.remote_cidr: {remote} is not {_words(ether_type)}", field=f"{field}.remote_cidr"
        )
    if protocol == ICMP and ether_type is EtherType.IPV6:
        # People say icmp and mean the one of the family, as the reference takes it.
        protocol = ICMPV6
    if protocol == ICMPV6 and ether_type is EtherType.IPV4:
        raise InvalidRequest(f"{field}.protocol: ipv6-icmp is not IPv4", field=f"{field}.protocol")
    port_min, port_max = _ports(asked, protocol, field=field)
    return SecurityRule(
        id=rule_id,
        direction=asked.direction or Direction.INGRESS,
        ether_type=ether_type,
        protocol=protocol,
        port_min=port_min,
        port_max=port_max,
        remote_cidr="" if remote is None else str(remote),
        remote_group_id=asked.remote_group_id,
        description=asked.description,
        create_time_ms=now_ms,
    )


def with_rule(group: SecurityGroup, rule: SecurityRule, *, limit: int = RULES_LIMIT) -> SecurityGroup:
    """The group with one rule more.

    Raises:
        AlreadyExists: it has a rule that allows the very same.
        QuotaExceeded: it has as many as a group may have.
    """
    for each in group.rules:
        if _meaning(each) == _meaning(rule):
            raise AlreadyExists(
                f"security group {group.name} has that rule already: {each.id}", name=group.name, rule=each.id
            )
    _check_room(len(group.rules), limit, "rules")
    if rule.remote_group_id not in {"", group.id}:
        naming = sum(each.remote_group_id not in {"", group.id} for each in group.rules)
        _check_room(naming, REMOTE_RULES_LIMIT, "rules that name other groups")
    return replace(group, rules=(*group.rules, rule), update_time_ms=rule.create_time_ms)


def _check_room(used: int, limit: int, words: str) -> None:
    if used >= limit:
        raise QuotaExceeded(
            f"a security group may have {limit} {words}: {used} are there, 1 more was asked for",
            resource="security_group_rules",
            limit=limit,
            used=used,
            asked=1,
        )


def without_rule(group: SecurityGroup, rule_id: str, *, now_ms: int) -> SecurityGroup:
    """The group without one of its rules."""
    return replace(
        group, rules=tuple(each for each in group.rules if each.id != rule_id), update_time_ms=now_ms
    )


def new_group(bare: SecurityGroup, *, rule_id: Callable[[], str]) -> SecurityGroup:
    """A group as it begins, as in the reference: everything may go out, nothing comes in."""
    return replace(bare, rules=_out(rule_id, bare.create_time_ms))


def default_group(project_id: str, *, now_ms: int) -> SecurityGroup:
    """The group that a project has without making it: everything may go out, and its members may come in.

    It is the same whoever makes it: all of its ids follow from the project's.
    """
    group_id = default_group_id(project_id)
    numbers = iter(range(4))

    def rule_id() -> str:
        return _made_id(f"{group_id}/{next(numbers)}")

    members = tuple(
        SecurityRule(
            id=rule_id(),
            direction=Direction.INGRESS,
            ether_type=family,
            remote_group_id=group_id,
            create_time_ms=now_ms,
        )
        for family in (EtherType.IPV4, EtherType.IPV6)
    )
    return SecurityGroup(
        id=group_id,
        name=DEFAULT_GROUP,
        project_id=project_id,
        description="Default security group",
        rules=(*members, *_out(rule_id, now_ms)),
        create_time_ms=now_ms,
        update_time_ms=now_ms,
    )


def default_group_id(project_id: str) -> str:
    """The id of a project's default group."""
    return _made_id(f"{project_id}/{DEFAULT_GROUP}")


def _out(rule_id: Callable[[], str], now_ms: int) -> tuple[SecurityRule, ...]:
    return tuple(
        SecurityRule(id=rule_id(), direction=Direction.EGRESS, ether_type=family, create_time_ms=now_ms)
        for family in (EtherType.IPV4, EtherType.IPV6)
    )


def _made_id(of: str) -> str:
    """A UUID made of a text (RFC 9562, version 8)."""
    digest = bytearray(blake2b(of.encode(), digest_size=16, person=b"security-group").digest())
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _meaning(rule: SecurityRule) -> SecurityRule:
    """The rule as far as two of them may differ in what they allow."""
    everybody = bool(rule.remote_cidr) and ipaddress.ip_network(rule.remote_cidr).prefixlen == 0
    return replace(
        rule,
        id="",
        description="",
        create_time_ms=0,
        remote_cidr="" if everybody else rule.remote_cidr,
    )


def protocol_number(asked: str, *, field: str) -> int:
    """The number of a protocol that somebody has said by name or number; ANY for any. Raises InvalidRequest, naming `field`."""
    word = asked.strip().lower()
    word = _ALIASES.get(word, word)
    if not word:
        return ANY
    if word in PROTOCOLS:
        return PROTOCOLS[word]
    if word.isascii() and word.isdigit() and int(word) <= 255:
        return int(word)
    raise InvalidRequest(
        f"{field}: {asked!r} is no protocol: {', '.join(PROTOCOLS)}, any, or a number from 0 to 255",
        field=field,
    )


def _implied(remote: ranges.IpNetwork | None, protocol: int) -> EtherType:
    is_six = remote.version == 6 if remote is not None else protocol == ICMPV6
    return EtherType.IPV6 if is_six else EtherType.IPV4


def _ports(asked: AskedRule, protocol: int, *, field: str) -> tuple[int, int]:
    first, last = asked.port_min, asked.port_max
    low, high = f"{field}.port_range_min", f"{field}.port_range_max"
    if first is None and last is None:
        return ANY, ANY
    if protocol in {ICMP, ICMPV6}:
        if first is None:
            raise InvalidRequest(f"{high}: an ICMP code needs a type, in {low}", field=low)
        for name, number in ((low, first), (high, last)):
            if number is not None and number > 255:
                raise InvalidRequest(f"{name} is {number}; an ICMP type or code is at most 255", field=name)
        return first, ANY if last is None else last
    if protocol not in PROTOCOLS_WITH_PORTS:
        word = protocol_name(protocol) or "every protocol together"
        raise InvalidRequest(f"{low}: {word} has no ports; say which protocol", field=low)
    if first is None:
        raise InvalidRequest(f"{low} is required beside {high}", field=low)
    if last is None:
        last = first
    if last < first:
        raise InvalidRequest(f"{high} is {last}; it must be at least {low}, {first}", field=high)
    return first, last


def _words(ether_type: EtherType) -> str:
    return "IPv6" if ether_type is EtherType.IPV6 else "IPv4"
