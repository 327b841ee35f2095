"""What an operator does once, in the `operator` container: record the cell, approve the hosts, and wait until they are up.

As docs/operations/production.md tells it: the cell by the store, with the operator's certificate; hosts by the command line, as the
administrator. May be run again at any time.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fabric.clock import SystemClock
from fabric.errors import Ambiguous, Unavailable
from fabric.model.host import Cell
from fabric.store import codec, keys
from fabric.store.base import Txn
from fabric.store.etcd.client import EtcdStore
from fabric.store.etcd.settings import EtcdSettings

OWN = Path("/etc/cellfabric")
PATIENCE_S = 180.0
PAUSE_S = 0.5


async def record_cell(plan: dict[str, Any]) -> None:
    """Make the cell's record where it is absent, as soon as the store can be reached."""
    near = OWN / "store"
    settings = EtcdSettings(
        endpoints=tuple(plan["endpoints"]),
        prefix=plan["prefix"],
        ca_path=near / "ca.pem",
        cert_path=near / "client.pem",
        key_path=near / "client.key",
    )
    store = EtcdStore(settings, name="global", clock=SystemClock())
    key = keys.CELL.at(plan["cell"])
    cell = Cell(name=plan["cell"], create_time_ms=time.time_ns() // 1_000_000)
    try:
        while (await store.get(key)).value(key) is None:
            await store.commit(Txn(unchanged={key: 0}, put={key: codec.encode(cell)}))
    finally:
        await store.close()


async def recorded(plan: dict[str, Any]) -> None:
    """The same, for as long as it takes."""
    while True:
        try:
            return await record_cell(plan)
        except (Unavailable, Ambiguous) as away:
            sys.stderr.write(f"enrol: {away.message}\n")
            await asyncio.sleep(PAUSE_S)


def fabric(*words: str) -> str | None:
    """What a command prints; None when it fails, which it has then said why."""
    done = subprocess.run(("fabric", *words), stdout=subprocess.PIPE, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def known() -> dict[str, str] | None:
    """The state of every host, by name; None while the API does not answer."""
    said = fabric("host", "list", "-f", "json")
    return None if said is None else {row["Name"]: row["State"] for row in json.loads(said)}


def approve(host: dict[str, Any], cell: str) -> None:
    """Record a host with what may be claimed of it, where the others find it, and the one certificate that it may come with."""
    fabric(
        *("host", "create", "--cell", cell, "--availability-zone", "nova", "--trait", "HW_ARCH_X86_64"),
        *("--vcpus", str(host["vcpus"]), "--ram", str(host["ram_mib"]), "--disk", str(host["disk_gib"])),
        *("--guest-cidr", host["guest_cidr"], "--tunnel-address", host["tunnel_address"]),
        *("--cert-serial", host["cert_serial"], host["name"]),
    )


def enrolled(plan: dict[str, Any]) -> bool:
    """Approve the hosts that the API does not know; whether all are up."""
    if (states := known()) is None:
        return False
    for host in plan["hosts"]:
        if host["name"] not in states:
            approve(host, plan["cell"])
    return all(states.get(host["name"]) == "UP" for host in plan["hosts"])


def main() -> int:
    """Do what is missing until nothing is; 1 when that takes too long."""
    plan = json.loads((OWN / "plan.json").read_text(encoding="utf-8"))
    until_s = time.monotonic() + PATIENCE_S
    asyncio.run(recorded(plan))
    while not enrolled(plan):
        if time.monotonic() > until_s:
            sys.stderr.write("enrol: not all hosts are up\n")
            return 1
        time.sleep(PAUSE_S)
    return 0


if __name__ == "__main__":
    sys.exit(main())
