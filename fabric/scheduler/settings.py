"""What an operator may set about scheduling. The defaults are what the benchmarks and the simulation run with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

SPREAD: Mapping[str, float] = MappingProxyType({"ram": 1.0, "vcpu": 1.0, "instances": 0.01})
"""Prefer the emptiest host: guests get the most of their hosts (the reference's default)."""

STACK: Mapping[str, float] = MappingProxyType({name: -weight for name, weight in SPREAD.items()})
"""Prefer the fullest host that fits: whole hosts stay free for large servers, or to be switched off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementSettings:
    """What the decision itself depends on."""

    weights: Mapping[str, float] = field(default_factory=lambda: SPREAD)
    """How much each weigher counts, by its name; negative turns it round, 0 or absent leaves it out."""
    alternates: int = 2
    """How many further hosts are named, for the conductor to try when the first one fails (three attempts in all)."""
    examples: int = 3
    """How many hosts a refusal names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """A scheduler process."""

    placement: PlacementSettings = field(default_factory=PlacementSettings)
    reread_s: float = 5.0
    """How often all builds are listed again: nothing may hang on a watch alone."""
    txn_builds: int = 20
    """How many claims share one transaction; 128 compares is etcd's limit, a claim takes at most 6."""
    txn_bytes: int = 1_000_000
    """How many bytes of records one transaction may carry; etcd takes 1.5 MiB."""
    batch_builds: int = 200
    """How many builds of a cell are decided at once."""
    tries: int = 5
    """How often a claim that lost its race is decided again before it waits."""
    backoff_s: float = 0.5
    """The longest first wait after that many lost races, or after a store failed; doubled each time, jittered."""
    longest_backoff_s: float = 5.0
    """The longest wait between two looks at the same build."""
    store_timeout_s: float = 3.0
    """How long a store may take over one request before its cell counts as unreachable."""
    patience_s: float = 10.0
    """How long a build waits for cells that cannot be reached, when no reachable one has room for it."""
    build_timeout_s: float = 600.0
    """A build older than this is not placed any more: it ends in ERROR."""
    claim_deadline_s: float = 600.0
    """How long a placed server may take to become ACTIVE before somebody looks."""
    capacity_s: float = 3.0
    """The shortest time between two publications of a cell's capacity."""
    over_ttl_s: float = 24 * 3600.0
    """How long it is remembered that a server's life is over, against claims that come late; and what was done to it, for people."""
    sweep_s: float = 600.0
    """How often what has been remembered long enough is swept away."""
