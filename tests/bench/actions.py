"""What the fabric adds to stopping, starting, pausing, suspending and resuming: the same on a twin of the guest, by a bare libvirt script.

Both guests are the same image on the same libvirtd, booted before anything is measured. Each action is done on one and then on the other,
in turns, and timed three ways:

- ours: from sending the RPC to reading the state it leads to, on a connection that is open already;
- a call: the libvirt call by hand on a connection that is open already, with nobody to authorise it, write it down or tell others;
- a script: a Python program that opens libvirt, finds the domain and makes the call, as somebody without a fabric would run it; and beside
  it our own command with --wait.

A pause is a few milliseconds of hypervisor: whatever writes down who asked for it takes longer than that. So the ratio of RPC to call says
what a durable answer costs; of RPC to script what a program gains or loses by asking the fabric instead; of command to script what people
wait.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import libvirt

from fabric.client import Client
from tests.bench.bare import BareHost
from tests.bench.by_hand import STEPS, Step
from tests.bench.changes import PATIENCE_S, Changes
from tests.bench.measure import Row, median
from tests.e2e.running import ROOT, Running, a_fabric, guest_images, until

BENCH: Final = "actions"
ROUNDS: Final = 5
BOOTED: Final = b"starting services"
GOING_DOWN: Final = b"going down"
"""What the guest says when it is up, and when it has heard its power button."""

SERVICES_S: Final = 10.0
"""How long its services take to start after that, the one that listens to the button among them: the twin goes on waiting for a network."""


def run() -> list[Row]:
    """The whole benchmark, about five minutes: guests are waited for to boot before they are stopped."""
    with a_fabric() as fabric:
        client = fabric.client()
        client.flavors.create(name="bench", vcpus=1, ram_mib=256, disk_gib=1)
        client.images.create(
            name="bench", file=guest_images() / "cellfabric-guest.qcow2", disk_format="qcow2"
        )
        host = BareHost(fabric)
        try:
            server = client.instances.create(name="bench", flavor="bench", image="bench")
            client.instances.wait_for(server, "ACTIVE", timeout_s=PATIENCE_S)
            with Changes(fabric) as changes, host.twin(host.definition(server.id)) as twin:
                pair = _Pair(fabric, client, changes, host, server.id, twin)
                return pair.rows()
        finally:
            host.close()


class _Pair:
    """A server of the fabric and its twin."""

    def __init__(
        self,
        fabric: Running,
        client: Client,
        changes: Changes,
        host: BareHost,
        server_id: str,
        twin: libvirt.virDomain,
    ) -> None:
        self._fabric = fabric
        self._client = client
        self._changes = changes
        self._host = host
        self._id = server_id
        self._twin = twin

    def rows(self) -> list[Row]:
        """Every action, side by side: first by calls, then by commands."""
        self._await_boot()
        calls: dict[str, list[tuple[float, float]]] = {step.action: [] for step in STEPS}
        scripts: dict[str, list[tuple[float, float]]] = {step.action: [] for step in STEPS}
        for number in range(ROUNDS):
            for times, ours, bare in (
                (calls, self._ours, self._call),
                (scripts, self._command, self._script),
            ):
                for step in STEPS:
                    first, second = (ours, bare) if number % 2 else (bare, ours)
                    one, other = _timed(first, step), _timed(second, step)
                    times[step.action].append((one, other) if number % 2 else (other, one))
                self._await_boot()
        crossed = {
            action: [
                (ours, script) for (ours, _), (_, script) in zip(calls[action], scripts[action], strict=True)
            ]
            for action in calls
        }
        return [
            *(
                self._row(step.action, "RPC", "a script", crossed[step.action], goal="<= 1.3")
                for step in STEPS
            ),
            *(self._row(step.action, "RPC", "the call", calls[step.action]) for step in STEPS),
            *(self._row(step.action, "command", "a script", scripts[step.action]) for step in STEPS),
        ]

    @staticmethod
    def _row(action: str, ours: str, bare: str, times: list[tuple[float, float]], goal: str = "") -> Row:
        return median(
            BENCH,
            f"{action}: {ours} until it is done ÷ {bare} by hand",
            [one / other for one, other in times],
            "ratio",
            goal=goal,
            note=f"{_median_ms([one for one, _ in times])} and {_median_ms([other for _, other in times])}",
        )

    def _ours(self, step: Step) -> None:
        begun = self._client.instances.act(step.action, self._id)
        while True:
            seen = self._client.instances.get(begun.id)
            if seen.status.state == step.state and not seen.status.task_state:
                return
            self._changes.wait()

    def _command(self, step: Step) -> None:
        self._fabric.cli("server", step.action, "--wait", self._id)

    def _call(self, step: Step) -> None:
        step.by_hand(self._twin)

    def _script(self, step: Step) -> None:
        words = (
            sys.executable,
            "-m",
            "tests.bench.by_hand",
            self._host.uri,
            self._twin.UUIDString(),
            step.action,
        )
        subprocess.run(words, check=True, timeout=PATIENCE_S, cwd=ROOT)

    def _await_boot(self) -> None:
        """Until both are up: one that is not does not hear its power button."""
        until(lambda: _is_up(self._client.instances.console_log(self._id)), "the guest boots", timeout_s=120)
        until(lambda: _is_up(_read(self._host.twin_console)), "its twin boots", timeout_s=120)
        time.sleep(SERVICES_S)


def _is_up(console: bytes) -> bool:
    return console.rfind(BOOTED) > console.rfind(GOING_DOWN)


def _timed(act: Callable[[Step], None], step: Step) -> float:
    began_s = time.perf_counter()
    act(step)
    return time.perf_counter() - began_s


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _median_ms(times_s: list[float]) -> str:
    return f"{sorted(times_s)[len(times_s) // 2] * 1000:.0f} ms"
