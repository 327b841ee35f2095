"""How long the command line takes to start, beside Python itself, of which no command line can be faster."""

from __future__ import annotations

from typing import Final

from tests.bench import cli_start
from tests.bench.measure import Row, median

BENCH: Final = "cli"
RUNS: Final = 9


def run() -> list[Row]:
    """The whole benchmark, under a minute."""
    for words in cli_start.CASES.values():
        cli_start.run(words)  # bytecode and page cache
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in cli_start.CASES}
    for _ in range(RUNS):
        for name, words in cli_start.CASES.items():
            samples[name].append(cli_start.run(words))
    return [
        median(
            BENCH,
            name,
            [wall_s * 1000 for wall_s, _ in taken],
            "ms",
            goal="" if name.startswith("python") else "< 300",
            note=f"{sorted(cpu_s for _, cpu_s in taken)[RUNS // 2] * 1000:.0f} ms of processor time",
        )
        for name, taken in samples.items()
    ]
