"""Security groups: what may reach a port and what it may reach, said by allowing. Everything else is dropped."""

from __future__ import annotations

import enum
from dataclasses import dataclass

DEFAULT_GROUP = "default"
"""The name of the group that every project has, and that ports are in when nothing is said."""

ANY = -1
"""No bound: of ports, or of an ICMP type or code."""


class Direction(enum.IntEnum):
    """Seen from the guest."""

    UNSPECIFIED = 0
    INGRESS = 1
    EGRESS = 2


class EtherType(enum.IntEnum):
    """Which of the two internet protocols a rule is of."""

    UNSPECIFIED = 0
    IPV4 = 1
    IPV6 = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityRule:
    """One thing that is allowed. Answers to what is allowed are allowed with it.

    `protocol` is an IANA protocol number, ANY for every protocol. `port_min` and `port_max` bound the destination port, both included,
    of the protocols that have ports; of ICMP they are its type and code. `remote_cidr` and `remote_group_id` say who is at the other
    end, one of them at most; neither: anybody.
    """

    id: str
    direction: Direction
    ether_type: EtherType
    protocol: int = ANY
    port_min: int = ANY
    port_max: int = ANY
    remote_cidr: str = ""
    remote_group_id: str = ""
    description: str = ""
    create_time_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityGroup:
    """Rules that its members share. They are in the record, so that what a host is told of a group is of one moment."""

    id: str
    name: str
    project_id: str
    description: str = ""
    rules: tuple[SecurityRule, ...] = ()
    quota_slot: int = 0
    create_time_ms: int = 0
    update_time_ms: int = 0
