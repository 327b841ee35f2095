"""What every benchmark gives: rows of numbers with how many samples they stand for and how far those spread."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One number. `low` and `high` bound the middle half of the samples; `goal` is the project's, for whoever reads the table."""

    bench: str
    what: str
    value: float
    unit: str
    n: int = 1
    low: float | None = None
    high: float | None = None
    goal: str = ""
    note: str = ""


def median(
    bench: str, what: str, samples: Sequence[float], unit: str, *, goal: str = "", note: str = ""
) -> Row:
    """The median of samples, with their quartiles."""
    low, high = quartiles(samples)
    return Row(
        bench=bench,
        what=what,
        value=statistics.median(samples),
        unit=unit,
        n=len(samples),
        low=low,
        high=high,
        goal=goal,
        note=note,
    )


def quartiles(samples: Sequence[float]) -> tuple[float, float]:
    """What the middle half of the samples lies between."""
    if len(samples) < 2:
        return samples[0], samples[0]
    first, _, third = statistics.quantiles(samples, n=4, method="inclusive")
    return first, third


def percentile(samples: Sequence[float], share: float) -> float:
    """The nearest-rank percentile: a sample that was seen, not one between two."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(frozen=True, slots=True)
class Memory:
    """A process's memory in MiB. `pss` divides pages that several processes share among them (proc_pid_smaps(5))."""

    rss: float
    pss: float

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.rss + other.rss, self.pss + other.pss)


def memory(pid: int) -> Memory:
    """What a process holds now. Raises OSError when it is gone."""
    found = {"Rss": 0, "Pss": 0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
        name, _, rest = line.partition(":")
        if name in found:
            found[name] = int(rest.split()[0])
    return Memory(found["Rss"] / 1024, found["Pss"] / 1024)


def cpu_s(pid: int) -> float:
    """The processor time a process has used, its threads' included. Raises OSError when it is gone."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def table(rows: Iterable[Row]) -> str:
    """Rows for people, in columns."""
    lines = [("bench", "what", "value", "unit", "middle half", "n", "goal", "note")]
    for row in rows:
        spread = "" if row.low is None or row.high is None else f"{_number(row.low)}-{_number(row.high)}"
        count = str(row.n) if row.n > 1 else ""
        lines.append((row.bench, row.what, _number(row.value), row.unit, spread, count, row.goal, row.note))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    right = {2, 5}
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _number(value: float) -> str:
    """Three figures that count."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"
