"""Choose hosts. A function: the same picture, requests and settings give the same answer, in whatever order hosts are stored.

Requests that ask the same are one pass over the columns, however many they are: filters and weighers run once over all hosts, and
then only hosts that the batch has touched are looked at again, as values. That this gives exactly what deciding one by one
gives rests on two facts: a placement changes one host, and a host's weight depends on that host alone.

Ties are broken on a ring: of the best hosts, the one that follows the instance's hash first. So schedulers that race over
*different* servers spread out, and every decision can be replayed. (Two hosts at one place of 2^64 would tie for good; they do not happen.)
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np

from fabric.model.placement import Decision, Refusal
from fabric.scheduler.core.ask import Ask
from fabric.scheduler.core.explain import Tally, refusals, refused_by, suggestion
from fabric.scheduler.core.filters import FILTERS
from fabric.scheduler.core.picture import HostPicture, HostRow, Rows, Weights, ring_place
from fabric.scheduler.core.weighers import weigh, weigh_all
from fabric.scheduler.settings import PlacementSettings

_RING = 1 << 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A server that wants a host."""

    instance_id: str
    ask: Ask


def decide(
    hosts: HostPicture,
    wanted: Sequence[Wanted],
    settings: PlacementSettings,
    *,
    now_ms: int,
    touched: dict[int, HostRow] | None = None,
) -> tuple[Decision, ...]:
    """A decision for each, in order: each is made as if those before it had been carried out.

    Alternates are of the chosen host's cell: a conductor, which tries them, knows no other. The picture is left as it is, so this
    also answers "what if".

    Args:
        hosts: everything that is known.
        wanted: who wants a host.
        settings: weights, and how much is told.
        now_ms: what the decisions are dated.
        touched: hosts, by row, as earlier decisions on the same picture have left them; brought up to date.
    """
    touched = {} if touched is None else touched
    decisions: list[Decision] = []
    for ask, group in groupby(wanted, key=lambda each: each.ask):
        batch = [each.instance_id for each in group]
        decisions += _place(hosts, ask, batch, touched, settings, now_ms=now_ms)
    return tuple(decisions)


def _place(
    hosts: HostPicture,
    ask: Ask,
    instances: Sequence[str],
    touched: dict[int, HostRow],
    settings: PlacementSettings,
    *,
    now_ms: int,
) -> Iterator[Decision]:
    """Decisions for servers that ask the same. `touched` are the hosts as this batch has left them, by row, and is kept so."""
    pool = _Pool(hosts, ask, touched, settings, most=len(instances) + settings.alternates)
    considered = int(np.count_nonzero(hosts.exists))
    told = -1
    refused: tuple[Refusal, ...] = ()
    for position, instance in enumerate(instances):
        ranked = pool.best(ring_place(instance), settings.alternates + 1)
        if not ranked:
            # Nothing changes any more, so the rest of the batch gets the same answer.
            nowhere = Decision(
                considered=considered,
                refusals=refusals(hosts, pool.tally, touched, ask, examples=settings.examples),
                suggestion=suggestion(hosts, touched, ask),
                decide_time_ms=now_ms,
            )
            yield from [nowhere] * (len(instances) - position)
            return
        if told != pool.tally.total:
            told, refused = pool.tally.total, refusals(hosts, pool.tally, touched, ask, examples=0)
        cell, name = hosts.key(ranked[0].row)
        alternates = [option for option in ranked[1:] if hosts.key(option.row)[0] == cell]
        yield Decision(
            considered=considered,
            host=name,
            cell=cell,
            alternates=tuple(hosts.key(option.row)[1] for option in alternates),
            weights={hosts.key(option.row)[1]: -option.rank for option in (ranked[0], *alternates)},
            refusals=refused,
            decide_time_ms=now_ms,
        )
        pool.take(ranked[0])


class _Option(NamedTuple):
    """A host that fits. Sorts best first: `rank` is the weight turned round, `distance` how far along the ring."""

    rank: float
    distance: int
    row: int


class _Pool:
    """The hosts that fit, best first, while servers that all ask the same are put on them.

    Untouched hosts stand in tiers of equal weight, best tier first; touched ones apart, as values. Of the untouched, only as many are
    kept as could be needed: `most`, and whoever ties with the last of those.
    """

    def __init__(
        self,
        hosts: HostPicture,
        ask: Ask,
        touched: dict[int, HostRow],
        settings: PlacementSettings,
        *,
        most: int,
    ) -> None:
        self._hosts, self._ask, self._touched, self._settings = hosts, ask, touched, settings
        fitting, self.tally = _filter(hosts, ask, touched)
        self._tiers = _tiers(fitting, weigh_all(hosts, fitting, settings.weights), most)
        self._ranked_touched: list[tuple[float, int]] = []
        for row, host in touched.items():
            self._judge(row, host)

    def best(self, place: int, count: int) -> list[_Option]:
        """The best hosts for an instance at this place of the ring, at most `count`."""
        options: list[_Option] = []
        for rank, rows in self._tiers.items():
            if len(options) >= count:
                break
            nearest = self._nearest(rows, place, count - len(options))
            options += [_Option(rank, self._distance(row, place), row) for row in nearest]
        worst = options[-1].rank if len(options) == count else float("inf")
        for position, (rank, row) in enumerate(self._ranked_touched):
            if rank > worst:
                break
            options.append(_Option(rank, self._distance(row, place), row))
            if position == count - 1:
                # So many touched hosts are at least as good as this one; of those after it, only its equals matter.
                worst = min(worst, rank)
        return heapq.nsmallest(count, options)

    def take(self, option: _Option) -> None:
        """Put a server on this host."""
        row = option.row
        host = self._touched.get(row)
        if host is None:
            host = self._hosts.row_at(row)
            rows = self._tiers.pop(option.rank)
            if len(rows) > 1:
                # Back where it stood: a tier never changes its rank, and the order of the tiers is that of their ranks.
                self._tiers = {option.rank: rows[rows != row], **self._tiers}
        else:
            self._ranked_touched.remove((option.rank, row))
        self._touched[row] = host.with_guest(self._ask.resources, takes_slot=self._ask.needs_slot)
        self._judge(row, self._touched[row])

    def _judge(self, row: int, host: HostRow) -> None:
        refuser = refused_by(host, self._ask)
        if refuser is None:
            bisect.insort(self._ranked_touched, (-weigh(host, self._settings.weights), row))
        else:
            self.tally.refuse(refuser)

    def _distance(self, row: int, place: int) -> int:
        return (int(self._hosts.ring[row]) - place) % _RING

    def _nearest(self, rows: Rows, place: int, count: int) -> list[int]:
        # Unsigned subtraction wraps round, which is what makes the ring a ring.
        distances = self._hosts.ring[rows] - np.uint64(place)
        if len(rows) <= count:
            return [int(row) for row in rows]
        if count == 1:
            return [int(rows[distances.argmin()])]
        return [int(row) for row in rows[np.argpartition(distances, count - 1)[:count]]]


def _filter(hosts: HostPicture, ask: Ask, touched: Mapping[int, HostRow]) -> tuple[Rows, Tally]:
    """The untouched hosts that pass every filter, and how many each filter was the first to refuse."""
    passing = hosts.exists.copy()
    if touched:
        passing[list(touched)] = False
    counts: list[int] = []
    left = int(np.count_nonzero(passing))
    for rule in FILTERS:
        passing &= rule.passing(hosts, ask)
        still = int(np.count_nonzero(passing))
        counts.append(left - still)
        left = still
    return np.flatnonzero(passing), Tally(counts)


def _tiers(rows: Rows, weights: Weights, most: int) -> dict[float, Rows]:
    """The best `most` rows and whoever ties with the last of them, by rank (the weight turned round), best first."""
    if most < len(rows):
        least = np.partition(weights, len(rows) - most)[len(rows) - most]
        kept = weights >= least
        rows, weights = rows[kept], weights[kept]
    if not len(rows):
        return {}
    order = np.argsort(-weights, kind="stable")
    rows, ranks = rows[order], -weights[order]
    begins = [0, *(np.flatnonzero(np.diff(ranks)) + 1).tolist()]
    ends = [*begins[1:], len(rows)]
    return {float(ranks[begin]): rows[begin:end] for begin, end in zip(begins, ends, strict=True)}
