"""A daemon that dies at any step of following, plugging and unplugging leaves nothing that its successor does not finish or take away."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from fabric.model.network_plan import NetworkPlan
from fabric.observability.failpoints import VARIABLE
from hostd.core.tap_names import tap_name
from hostd.network.driver import LinuxWires
from tests.conformance.namespaces import ip
from tests.integration.hostd.tenant_hosts import (
    Fabric,
    TenantGuest,
    TenantNetwork,
    a_fabric,
    leftovers,
    service_namespaces,
)

ROOT = Path(__file__).resolve().parents[3]
MISSING = [name for name in ("ip", "bridge", "nft", "dnsmasq", "nsenter") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.owns_machine,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}"),
]

NETWORK = TenantNetwork("one", 0x11)
GUEST, NEIGHBOUR, LATER = (
    TenantGuest(NETWORK, 0, 11),
    TenantGuest(NETWORK, 1, 12),
    TenantGuest(NETWORK, 1, 13),
)

STEPS = (
    "bridged",
    "filtered",
    "followed",
    "forgotten",
    "linked",
    "namespaced",
    "pinned",
    "plan_kept",
    "plugged",
    "recorded",
    "served",
    "surrounded",
    "unplugged",
    "unserved",
    "untapped",
)


class Killed(BaseException):
    """The daemon is no more: nothing of it runs on to tidy up."""


class Mortal:
    """Failpoints that note what is reached, and end it all at one."""

    def __init__(self, *, at: int | None = None) -> None:
        self.reached: list[str] = []
        self._at = at

    async def reach(self, name: str) -> None:
        self.reached.append(name)
        if len(self.reached) - 1 == self._at:
            raise Killed


async def life(fabric: Fabric, wires: LinuxWires) -> None:
    """All that a daemon does for a guest on a tenant network, from the beginning to the end."""
    await wires.prepare()
    await wires.follow(fabric.plan(0, (GUEST, NEIGHBOUR)))
    await wires.plug(GUEST.wiring)
    await wires.follow(fabric.plan(0, (GUEST, LATER)))
    await wires.unplug(GUEST.wiring.guest.id, 1)
    await wires.follow(NetworkPlan())


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    with a_fabric() as made:
        yield made


def orphans(fabric: Fabric) -> list[str]:
    """What is there of tenants' when nobody wants anything."""
    host = fabric.hosts[0]
    rules = subprocess.run(
        ("ip", "netns", "exec", host, "nft", "list", "ruleset"), check=True, capture_output=True, text=True
    ).stdout
    named = [
        word for word in (tap_name(GUEST.port.id), "cfb", "cfs") if f'"{word}' in rules.replace('"cfb*"', "")
    ]
    entries = subprocess.run(
        ("bridge", "-n", host, "fdb", "show"), check=True, capture_output=True, text=True
    ).stdout
    macs = [each.port.mac for each in (GUEST, NEIGHBOUR, LATER) if each.port.mac in entries]
    answers = [line for line in ip("neighbour", "show", "nud", "permanent", netns=host).splitlines() if line]
    servers = [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if str(fabric.states[0]).encode() in _read(path) and b"dnsmasq" in _read(path)
    ]
    records = [path.name for path in (fabric.states[0] / "wires").glob("*")]
    return [*leftovers(host, fabric.states[0]), *named, *macs, *answers, *servers, *records]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


async def _dies(fabric: Fabric, at: int) -> None:
    mortal = fabric.wires(0, Mortal(at=at))
    with pytest.raises(Killed):
        await life(fabric, mortal)
    await mortal.close()


async def _is_taken_away(fabric: Fabric, wires: LinuxWires) -> None:
    """The guest is gone for good, and nothing is planned."""
    await wires.unplug(GUEST.wiring.guest.id, 1)
    await wires.follow(NetworkPlan())
    await wires.close()
    assert orphans(fabric) == []


async def _goes_on(fabric: Fabric, wires: LinuxWires) -> None:
    """The guest is wanted as before, and is as if nothing had been."""
    await wires.follow(fabric.plan(0, (GUEST, LATER)))
    await wires.plug(GUEST.wiring)
    host = fabric.hosts[0]
    assert len(service_namespaces(host)) == 1
    shown = ip("-d", "link", "show", "dev", tap_name(GUEST.port.id), netns=host)
    assert "bridge_slave state" in shown
    assert "learning off" in shown
    entries = subprocess.run(
        ("bridge", "-n", host, "fdb", "show"), check=True, capture_output=True, text=True
    ).stdout
    assert f"{GUEST.port.mac} dev {tap_name(GUEST.port.id)}" in entries
    assert LATER.port.mac in entries
    assert NEIGHBOUR.port.mac not in entries
    await _is_taken_away(fabric, wires)


ENDS: tuple[Callable[[Fabric, LinuxWires], Awaitable[None]], ...] = (_is_taken_away, _goes_on)


async def _every_reach(fabric: Fabric) -> list[str]:
    whole = Mortal()
    wires = fabric.wires(0, whole)
    await life(fabric, wires)
    await wires.close()
    assert orphans(fabric) == []
    return whole.reached


async def test_a_daemon_that_dies_at_any_step_leaves_nothing_to_nobody(fabric: Fabric) -> None:
    """At the first time that each step is reached, and its successor is told that nobody wants anything."""
    reached = await _every_reach(fabric)
    assert {name.removeprefix("hostd.wires.") for name in reached} == set(STEPS)

    for at in sorted({reached.index(name) for name in reached}):
        await _dies(fabric, at)
        successor = fabric.wires(0)
        await successor.prepare()
        await _is_taken_away(fabric, successor)


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__.strip("_"))
async def test_a_daemon_may_die_at_any_time_a_step_is_reached(
    fabric: Fabric, end: Callable[[Fabric, LinuxWires], Awaitable[None]]
) -> None:
    for at in range(len(await _every_reach(fabric))):
        await _dies(fabric, at)
        successor = fabric.wires(0)
        await successor.prepare()
        await end(fabric, successor)


PROGRAM = """
import asyncio, os, pathlib, sys
from fabric.observability.failpoints import failpoints_from
from tests.integration.hostd import tenant_hosts, test_wires_killed
fabric = tenant_hosts.Fabric((sys.argv[1],), (pathlib.Path(sys.argv[2]),), None)
asyncio.run(test_wires_killed.life(fabric, fabric.wires(0, failpoints_from(os.environ))))
"""


@pytest.mark.parametrize("step", ["linked", "served", "untapped"])
async def test_a_killed_process_is_no_worse(fabric: Fabric, step: str) -> None:
    """`kill -9`, of a process of its own: what it had open is closed by the kernel, and by nobody else."""
    program = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PROGRAM,
        fabric.hosts[0],
        str(fabric.states[0]),
        cwd=ROOT,
        env=dict(os.environ) | {VARIABLE: f"hostd.wires.{step}:kill"},
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert await program.wait() == -signal.SIGKILL

    successor = fabric.wires(0)
    await successor.prepare()
    await _goes_on(fabric, successor)
