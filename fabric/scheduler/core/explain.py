"""Why not: which filter refused how many hosts, why one host was refused, and the smallest change that would have fitted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from fabric.model.host import Resources
from fabric.model.placement import Refusal
from fabric.scheduler.core.ask import Ask
from fabric.scheduler.core.filters import FILTERS
from fabric.scheduler.core.filters.base import name_of
from fabric.scheduler.core.filters.compute import ComputeFilter
from fabric.scheduler.core.filters.disk import DiskFilter
from fabric.scheduler.core.filters.image_properties import ImagePropertiesFilter
from fabric.scheduler.core.filters.ram import RamFilter
from fabric.scheduler.core.filters.vcpu import VcpuFilter
from fabric.scheduler.core.filters.zone import AvailabilityZoneFilter
from fabric.scheduler.core.picture import HostPicture, HostRow, Mask, Rows


@dataclass(slots=True)
class Tally:
    """How many hosts each filter was the first to refuse, in the filters' order."""

    counts: list[int]

    def refuse(self, filter_index: int) -> None:
        """One more host is refused by this filter."""
        self.counts[filter_index] += 1

    @property
    def total(self) -> int:
        """How many hosts are refused in all. In one batch it only grows, and no count changes without it."""
        return sum(self.counts)


def refused_by(host: HostRow, ask: Ask) -> int | None:
    """The index of the first filter that refuses the host, None when it fits."""
    return next((index for index, rule in enumerate(FILTERS) if not rule.passes(host, ask)), None)


def why_not(host: HostRow, ask: Ask) -> str:
    """Every reason this host has, for whoever asks about one host; empty when it fits."""
    return ", ".join(rule.reason for rule in FILTERS if not rule.passes(host, ask))


def refusals(
    hosts: HostPicture, tally: Tally, touched: Mapping[int, HostRow], ask: Ask, *, examples: int
) -> tuple[Refusal, ...]:
    """The tally as it is stored, with the names of some hosts where that is wanted: those are looked for only then."""
    named = _examples(hosts, touched, ask, examples) if examples else {}
    return tuple(
        Refusal(filter=name_of(rule), reason=rule.reason, hosts=count, examples=named.get(index, ()))
        for index, (rule, count) in enumerate(zip(FILTERS, tally.counts, strict=True))
        if count
    )


def suggestion(hosts: HostPicture, touched: Mapping[int, HostRow], ask: Ask) -> str:
    """The smallest change to the request that would have fitted, as one clause; empty when no single kind of change would have.

    In this order: another zone, which costs nothing; a smaller flavor, the least smaller one; fewer demands on the host; waiting.
    """
    failing = _failing(hosts, touched, ask)
    zones = _zones(hosts, failing)
    if zones:
        return f"it would fit in zone {', '.join(zones)}"
    smaller = _smaller(hosts, touched, failing, ask)
    if smaller:
        return f"a flavor with at most {smaller} would fit"
    if _only(failing, ImagePropertiesFilter).any():
        return "it would fit without what image and flavor require of the host"
    down = int(np.count_nonzero(_only(failing, ComputeFilter)))
    if down:
        return f"it would fit when {down} {'host is' if down == 1 else 'hosts are'} back"
    return ""


# ---------------------------------------------------------------------- inside


@dataclass(frozen=True, slots=True)
class _Failing:
    """For every row, one flag per filter that refuses it. Rows of hosts that do not exist are refused by none, and in `exists` no more."""

    exists: Mask
    flags: Mask  # filters x rows


def _failing(hosts: HostPicture, touched: Mapping[int, HostRow], ask: Ask) -> _Failing:
    flags = np.array([~rule.passing(hosts, ask) for rule in FILTERS], np.bool_).reshape(
        len(FILTERS), len(hosts)
    )
    for row, host in touched.items():
        flags[:, row] = [not rule.passes(host, ask) for rule in FILTERS]
    return _Failing(hosts.exists, flags)


def _examples(
    hosts: HostPicture, touched: Mapping[int, HostRow], ask: Ask, count: int
) -> dict[int, tuple[str, ...]]:
    """For each filter, hosts it was the first to refuse: those first on the ring, so that their rows' order does not matter."""
    failing = _failing(hosts, touched, ask)
    first = failing.flags.argmax(axis=0) if len(hosts) else np.zeros(0, np.intp)
    is_refused = failing.exists & failing.flags.any(axis=0)
    return {
        index: tuple(hosts.key(int(row))[1] for row in _first_on_ring(hosts, rows, count))
        for index in range(len(FILTERS))
        if len(rows := np.flatnonzero(is_refused & (first == index)))
    }


def _first_on_ring(hosts: HostPicture, rows: Rows, count: int) -> Rows:
    places = hosts.ring[rows]
    if len(rows) > count:
        nearest = np.argpartition(places, count - 1)[:count]
        rows, places = rows[nearest], places[nearest]
    return rows[np.argsort(places)]


def _only(failing: _Failing, *kinds: type) -> Mask:
    """Which hosts are refused by filters of these kinds and by no other."""
    among = np.array([isinstance(rule, kinds) for rule in FILTERS], np.bool_)
    mask: Mask = failing.exists & ~failing.flags[~among].any(axis=0) & failing.flags[among].any(axis=0)
    return mask


def _zones(hosts: HostPicture, failing: _Failing) -> list[str]:
    rows = np.flatnonzero(_only(failing, AvailabilityZoneFilter))
    # One host of each zone is enough to know its name.
    _, firsts = np.unique(hosts.zone[rows], return_index=True)
    return sorted(hosts.row_at(int(rows[first])).zone for first in firsts)


def _smaller(hosts: HostPicture, touched: Mapping[int, HostRow], failing: _Failing, ask: Ask) -> str:
    """The least smaller flavor, in the dimensions in which the best host is too small."""
    rows = np.flatnonzero(_only(failing, RamFilter, VcpuFilter, DiskFilter))
    if not len(rows):
        return ""
    asked = ask.resources
    free = np.array([hosts.free_vcpus[rows], hosts.free_ram_mib[rows], hosts.free_disk_gib[rows]], np.int64)
    for position, row in enumerate(rows):
        if (host := touched.get(int(row))) is not None:
            free[:, position] = (host.free.vcpus, host.free.ram_mib, host.free.disk_gib)
    wanted = np.maximum(np.array([[asked.vcpus], [asked.ram_mib], [asked.disk_gib]], np.int64), 1)
    # How much of the request fits, in its scarcest dimension: the host where that is most needs the smallest change.
    fits = np.minimum(free / wanted, 1.0)
    scarcest, all_dimensions = fits.min(axis=0), fits.sum(axis=0)
    best = int(np.lexsort((hosts.ring[rows], -all_dimensions, -scarcest))[0])
    if scarcest[best] <= 0:
        return ""
    room = Resources(vcpus=int(free[0, best]), ram_mib=int(free[1, best]), disk_gib=int(free[2, best]))
    return " and ".join(_too_much(asked, room))


def _too_much(asked: Resources, room: Resources) -> Iterator[str]:
    if asked.vcpus > room.vcpus:
        yield f"{room.vcpus} {'vCPU' if room.vcpus == 1 else 'vCPUs'}"
    if asked.ram_mib > room.ram_mib:
        yield f"{room.ram_mib} MiB of memory"
    if asked.disk_gib > room.disk_gib:
        yield f"{room.disk_gib} GiB of disk"
