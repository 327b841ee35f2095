"""How long the command line takes to start: `python tests/bench/cli_start.py [RUNS]`. Numbers to compare, not to pass.

The medians of `fabric` doing nothing but start, of a verb's help (which imports its noun), and of a call that finds nobody (which imports
gRPC and the generated code); beside them Python itself, of which no command line can be faster.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMAND = str(Path(__file__).resolve().parents[2] / "cmd" / "fabric")

CASES = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "fabric --version": [sys.executable, COMMAND, "--version"],
    "fabric --help": [sys.executable, COMMAND, "--help"],
    "fabric server create --help": [sys.executable, COMMAND, "server", "create", "--help"],
    "fabric completion bash": [sys.executable, COMMAND, "completion", "bash"],
    "fabric flavor list (nobody listens)": [
        *(sys.executable, COMMAND, "--endpoint", "http://127.0.0.1:1", "--timeout", "0.1"),
        *("--token", "none", "flavor", "list"),
    ],
}


def run(argv: list[str]) -> tuple[float, float]:
    """Wall and processor seconds of one run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun_s = time.perf_counter()
    subprocess.run(
        argv,
        check=False,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(Path(COMMAND).parents[1])},
    )
    wall_s = time.perf_counter() - begun_s
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print a table of medians."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    for argv in CASES.values():
        run(argv)  # bytecode and page cache
    print(f"{'':38}{'wall ms':>9}{'cpu ms':>9}   (medians of {runs})")  # noqa: T201 - a bench tells what it found
    for name, argv in CASES.items():
        walls, cpus = zip(*(run(argv) for _ in range(runs)), strict=True)
        print(f"{name:38}{statistics.median(walls) * 1000:9.0f}{statistics.median(cpus) * 1000:9.0f}")  # noqa: T201 - a bench tells what it found


if __name__ == "__main__":
    main()
