"""Fault schedules per CPU-second: what one process of `tests.sim.run` gets through, its start included."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.bench.measure import Row, median

BENCH: Final = "simulation"
ROUNDS: Final = 4
SEEDS: Final = 8
FIRST: Final = 1_000
"""Seeds that nobody has looked at, the same in every run."""


def run() -> list[Row]:
    """The whole benchmark, under a minute."""
    return [
        median(
            BENCH,
            "fault schedules",
            [_rate(FIRST + number * SEEDS) for number in range(ROUNDS)],
            "per CPU-s",
            note=f"each sample {SEEDS} seeds in a process of their own",
        )
    ]


def _rate(first: int) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        (sys.executable, "-m", "tests.sim.run", str(first), str(first + SEEDS)),
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise RuntimeError(f"a schedule was violated, which is a bug and no speed:\n{done.stdout[-2000:]}")
    return SEEDS / (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
