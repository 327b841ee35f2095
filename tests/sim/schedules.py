"""Many seeds at once, over processes of their own: how the tests and the nightly run them."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeVar

from tests.sim.run import Outcome, run

PROCESSES: Final = 2
"""Seeds share nothing, so this is only how many cores a run may take."""

SEEDS_PER_TASK: Final = 4
TASKS_PER_PROCESS: Final = 25

T = TypeVar("T")


@dataclass(slots=True)
class Tally:
    """What a run of many seeds came to."""

    schedules: int = 0
    servers: int = 0
    deleted: int = 0
    events: int = 0
    cpu_s: float = 0.0
    slowest_s: float = 0.0
    failed: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome, cpu_s: float) -> None:
        """One more."""
        self.schedules += 1
        self.servers += outcome.accepted
        self.deleted += outcome.deleted
        self.events += outcome.events
        self.cpu_s += cpu_s
        self.slowest_s = max(self.slowest_s, outcome.settled_s)
        if outcome.violation:
            self.failed.append(outcome)

    def __str__(self) -> str:
        return (
            f"{self.schedules} schedules, {self.servers} servers made and {self.deleted} deleted, "
            f"{self.events} events, {len(self.failed)} violations; "
            f"{self.schedules / max(self.cpu_s, 0.001):.2f} schedules per CPU-second, "
            f"slowest to settle {self.slowest_s:.0f} s"
        )

    def failures(self) -> str:
        """Every seed that failed, with the command that replays it."""
        return "\n".join(f"{each.violation}\n  replay: {replay(each.seed)}" for each in self.failed)


def replay(seed: int) -> str:
    """The command that runs one seed again, with its trace."""
    return f"python -m tests.sim.run {seed} {seed + 1} -v"


def timed(seed: int) -> tuple[Outcome, float]:
    """A seed's outcome, and the CPU-seconds it took."""
    began_s = time.process_time()
    return run(seed), time.process_time() - began_s


def spread(work: Callable[[int], T], seeds: Iterable[int], *, processes: int = PROCESSES) -> Iterator[T]:
    """`work` on every seed, in the order of the seeds; `work` must be a module's own function, for it is sent by name."""
    # Not forked: the parent may have threads (gRPC's, pytest-timeout's), and a fork of those may hang.
    context = multiprocessing.get_context("spawn")
    # A process that has buried many worlds keeps some two MiB of each: after a while it makes way for a fresh one. (An executor's own
    # max_tasks_per_child hangs on Python 3.11 when a worker is replaced.)
    with context.Pool(processes, maxtasksperchild=TASKS_PER_PROCESS) as pool:
        yield from pool.imap(work, seeds, chunksize=SEEDS_PER_TASK)


def tally(first: int, count: int, *, processes: int = PROCESSES) -> Tally:
    """Run the seeds from `first` on."""
    total = Tally()
    for outcome, cpu_s in spread(timed, range(first, first + count), processes=processes):
        total.add(outcome, cpu_s)
    return total
