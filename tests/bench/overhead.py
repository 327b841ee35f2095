"""What the fabric adds to a create on real libvirt: RPC to ACTIVE ÷ the same domain by a bare script on the same libvirtd.

Pairs of one create each way, in turns, so that what else the machine does falls on both alike:

- A, ours: from sending CreateInstance to reading ACTIVE by GetInstance, on a connection that is open already. In it: four etcd
  transactions, choosing the host, the order's way to the host, its journal, overlay, config drive, tap, packet filter and DHCP,
  `defineXML` and `create`. GetInstance is asked as soon as the cell's store, which is watched, has something new of the instance: to ask
  again and again would take from the hypervisor, on a small machine, what it is then found to be late.
- B, bare: `defineXML` and `create` of the domain that A made, on a connection that is open already: the same definition with another
  name, UUID, MAC, tap and files. Overlay, config drive and tap are made before by the plainest commands, and timed for themselves.

The ratio is A ÷ B of each pair; a second one counts the files and the tap to B, as somebody without a fabric would have to make them too.
The image is in the host's cache; guests are destroyed as soon as they are measured.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any, Final

from fabric.client import Client
from fabric.client.instances import Instance
from tests.bench.bare import BareHost
from tests.bench.changes import PATIENCE_S, Changes
from tests.bench.measure import Memory, Row, median, memory
from tests.e2e.running import Running, a_fabric, guest_images

BENCH: Final = "overhead"
PAIRS: Final = 15


@dataclass(frozen=True, slots=True)
class Pair:
    """One create each way, in seconds. `files_s` is what the bare way takes for overlay, config drive and tap."""

    ours_s: float
    bare_s: float
    files_s: float


def run() -> list[Row]:
    """The whole benchmark, about two minutes."""
    with a_fabric() as fabric:
        images = guest_images()
        client = fabric.client()
        client.flavors.create(name="bench", vcpus=1, ram_mib=512, disk_gib=1)
        client.images.create(name="bench", file=images / "cellfabric-guest.qcow2", disk_format="qcow2")
        host = BareHost(fabric)
        try:
            with Changes(fabric) as changes:
                # The image is fetched, and libvirtd has seen a domain of its kind.
                _pair(client, host, changes, "warm-up")
                idle = _core_memory(fabric)
                pairs = [_pair(client, host, changes, f"pair-{number}") for number in range(PAIRS)]
        finally:
            host.close()
    return _rows(pairs, idle)


def _pair(client: Client, host: BareHost, changes: Changes, name: str) -> Pair:
    ours_s, definition = _ours(client, host, changes, name)
    bare_s, files_s = host.bare(definition)
    return Pair(ours_s, bare_s, files_s)


def _ours(client: Client, host: BareHost, changes: Changes, name: str) -> tuple[float, str]:
    """How long a create takes, and the definition that came of it."""
    began_s = time.perf_counter()
    server = client.instances.create(name=name, flavor="bench", image="bench")
    while (seen := client.instances.get(server.id)).status.state != "ACTIVE":
        _refuse_failure(seen, time.perf_counter() - began_s)
        changes.wait()
    took_s = time.perf_counter() - began_s
    definition = host.definition(server.id)
    client.instances.delete(server.id)
    client.instances.wait_until_gone(seen, timeout_s=PATIENCE_S)
    return took_s, definition


def _refuse_failure(seen: Instance, waited_s: float) -> None:
    if seen.status.state == "ERROR" or waited_s > PATIENCE_S:
        raise RuntimeError(f"{seen.name} is {seen.status.state} after {waited_s:.0f} s: {seen.status.fault}")


def _core_memory(fabric: Running) -> dict[str, Memory]:
    found: dict[str, dict[str, Any]] = fabric.processes()
    return {
        name: memory(int(each["pid"]))
        for name, each in found.items()
        if name.startswith(("api", "scheduler", "conductor", "hostd"))
    }


def _rows(pairs: list[Pair], idle: dict[str, Memory]) -> list[Row]:
    total = sum(idle.values(), Memory(0, 0))
    added_s = statistics.median(each.ours_s - each.bare_s - each.files_s for each in pairs)
    return [
        median(
            BENCH,
            "create, RPC to ACTIVE ÷ define and start by hand",
            [each.ours_s / each.bare_s for each in pairs],
            "ratio",
            goal="<= 1.3",
            note="by hand: defineXML and create only; overlay, config drive and tap were there",
        ),
        median(
            BENCH,
            "the same ÷ files and tap too by hand",
            [each.ours_s / (each.bare_s + each.files_s) for each in pairs],
            "ratio",
            note=f"median of what ours takes besides: {added_s * 1000:.0f} ms",
        ),
        median(BENCH, "ours: RPC to ACTIVE", [each.ours_s * 1000 for each in pairs], "ms"),
        median(BENCH, "by hand: define and start", [each.bare_s * 1000 for each in pairs], "ms"),
        median(BENCH, "by hand: overlay, config drive, tap", [each.files_s * 1000 for each in pairs], "ms"),
        Row(
            bench="memory",
            what="api + scheduler + conductor + hostd on libvirt, RSS",
            value=total.rss,
            unit="MiB",
            goal="<= 300",
            note=", ".join(f"{name} {each.rss:.0f}" for name, each in idle.items()),
        ),
        Row(
            bench="memory",
            what="the same, PSS",
            value=total.pss,
            unit="MiB",
            note=", ".join(f"{name} {each.pss:.0f}" for name, each in idle.items()),
        ),
    ]
