"""How fast, in numbers to compare and not to pass: `python -m tests.bench [NAME…] [--json FILE]`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
import traceback
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from fabric.observability import logging
from tests.bench.measure import Row, table

BENCHES = {
    "overhead": "what the fabric adds to what libvirt takes for a create (real guests, root)",
    "actions": "what it adds to stopping, starting, pausing, suspending, resuming (real guests, root)",
    "creates": "creates on 100 hosts without hardware: rate, latency, transactions, processor, memory",
    "firewall": "the packet filter: throughput with and without it, and how soon rules are in force (root)",
    "rules": "how soon a security group's rule is what 50 hosts without hardware filter by",
    "simulation": "fault schedules per CPU-second",
    "scheduler": "how long placing takes, by the number of hosts",
    "cli": "how long the command line takes to start",
}


def main() -> int:
    """Run what was asked for; 1 when a benchmark could not be run. Numbers never make it fail."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="\n".join(f"{name}: {what}" for name, what in BENCHES.items()),
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}; all if none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, for programs")
    chosen = parser.parse_args()
    logging.configure(process="bench", level="warning", style="console")
    if unknown := set(chosen.names) - set(BENCHES):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    rows: list[Row] = []
    loads: dict[str, tuple[float, float]] = {}
    failed: list[str] = []
    began_s = time.monotonic()
    for name in chosen.names or BENCHES:
        _say(f"{name}: {BENCHES[name]}")
        before = os.getloadavg()[0]
        try:
            found: list[Row] = importlib.import_module(f"tests.bench.{name}").run()
        except Exception:  # noqa: BLE001 - the others are measured all the same
            traceback.print_exc()
            failed.append(name)
            continue
        rows += found
        loads[name] = before, os.getloadavg()[0]
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpus": len(os.sched_getaffinity(0)),
        "seconds": round(time.monotonic() - began_s),
        "load_average": loads,
        "failed": failed,
    }
    sys.stdout.write(f"{table(rows)}\n\n{facts['date']}, {facts['cpus']} CPUs, {facts['seconds']} s\n")
    for name, (before, after) in loads.items():
        sys.stdout.write(f"load average around {name}: {before:.1f} before, {after:.1f} after\n")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    return 1 if failed else 0


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
