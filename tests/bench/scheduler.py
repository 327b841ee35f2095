"""How long the scheduler's core takes to decide, by the number of hosts: the shipped core on fleets made up in memory."""

from __future__ import annotations

from typing import Final

from fabric.scheduler.core.place import Wanted, decide
from tests.bench.measure import Row, median, percentile
from tests.bench.test_scheduler_place import ASK, SETTINGS, TOO_MUCH, fleet, times_ms

BENCH: Final = "scheduler"
FLEETS: Final = (100, 1_000, 10_000)
DECISIONS: Final = 300
BATCHES: Final = 15


def run() -> list[Row]:
    """The whole benchmark, some seconds."""
    return [row for hosts in FLEETS for row in _rows(hosts)]


def _rows(count: int) -> list[Row]:
    hosts = fleet(count, is_empty=False)
    batch = [Wanted(instance_id=f"b{number}", ask=ASK) for number in range(100)]
    one = times_ms(
        lambda number: decide(hosts, [Wanted(instance_id=f"i{number}", ask=ASK)], SETTINGS, now_ms=0),
        DECISIONS,
    )
    many = times_ms(lambda _: decide(hosts, batch, SETTINGS, now_ms=0), BATCHES)
    refused = times_ms(
        lambda _: decide(hosts, [Wanted(instance_id="i", ask=TOO_MUCH)], SETTINGS, now_ms=0), BATCHES
    )
    return [
        median(
            BENCH, f"{count:,} hosts: one decision", one, "ms", note=f"p99 {percentile(one, 0.99):.3f} ms"
        ),
        median(BENCH, f"{count:,} hosts: 100 decisions at once", many, "ms"),
        median(BENCH, f"{count:,} hosts: a refusal explained", refused, "ms"),
    ]
