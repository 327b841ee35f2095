"""A real guest's serial port, screen, counters and agent, by the driver that hostd has: what a person at a console types and sees."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from fabric.model.console import ConsoleKind
from fabric.model.instance import Guest
from fabric.model.states import PowerState
from fabric.rpc.stream import Stream, StreamClosed
from hostd.driver.base import DriverError
from tests.integration.hostd.test_real_guest import (
    MISSING,
    PATIENCE_S,
    Site,
    _guest_image,
    a_server,
    libvirt_machine,
    outside,
    site,
)

__all__ = ["_guest_image", "libvirt_machine", "outside", "site"]

pytestmark = [
    pytest.mark.owns_machine,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}"),
]

PASSWORD = "correct horse: battery"


@dataclass
class Terminal:
    """A console as a person has it: what was seen so far, and fingers."""

    stream: Stream
    seen: bytes = b""

    async def until(self, words: bytes) -> bytes:
        """What is shown up to these words; they are not looked at again."""
        async with asyncio.timeout(PATIENCE_S):
            while words not in self.seen:
                self.seen += await self.stream.receive()
        shown, _, self.seen = self.seen.partition(words)
        return shown

    async def type(self, line: str) -> None:
        await self.stream.send(line.encode() + b"\r")


@pytest.fixture
async def guest(site: Site) -> AsyncIterator[Guest]:
    made = a_server(site, "box", 4)
    await site.spawn(made)
    await site.logged(made, b"GUEST-READY")
    yield made
    await site.remove(made)


async def _set_password(site: Site, guest: Guest) -> None:
    """Through the agent, once it answers: it starts last."""
    arguments = {
        "username": "root",
        "password": base64.b64encode(PASSWORD.encode()).decode(),
        "crypted": False,
    }
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await site.host.driver.agent(guest.id, "guest-set-user-password", arguments, timeout_s=10.0)
            except DriverError as error:
                if error.code != "AGENT_MISSING":
                    raise
                await asyncio.sleep(0.5)
            else:
                return


async def test_a_person_at_the_consoles_of_a_guest(site: Site, guest: Guest) -> None:
    """One boot for all of it: under emulation that is what takes the time."""
    driver = site.host.driver

    # -- the serial port, and a password that was not there before
    await _set_password(site, guest)
    terminal = Terminal(await driver.open_console(guest.id, ConsoleKind.SERIAL))
    await terminal.type("")
    await terminal.until(b"login: ")
    await terminal.type("root")
    await terminal.until(b"Password: ")
    await terminal.type(PASSWORD)
    await terminal.until(b"# ")
    await terminal.type("echo answer-$((6 * 7))")
    await terminal.until(b"answer-42")

    # -- the log of it goes on beside
    await site.logged(guest, b"answer-42")

    # -- the screen
    screen = Terminal(await driver.open_console(guest.id, ConsoleKind.VNC))
    await screen.until(b"RFB 003.008\n")
    await screen.stream.send(b"RFB 003.008\n")
    await screen.until(b"\x01\x01")
    await screen.stream.send(b"\x01")
    await screen.until(b"\0\0\0\0")
    await screen.stream.send(b"\x01")
    size = await screen.until(b"QEMU")
    width, height = int.from_bytes(size[:2], "big"), int.from_bytes(size[2:4], "big")
    assert 320 <= width <= 4096
    assert 200 <= height <= 4096
    await screen.stream.close()

    # -- the counters
    found = await driver.diagnostics(guest.id)
    assert found.power is PowerState.RUNNING
    assert 0 < found.uptime_s < 600
    assert len(found.vcpu_time_ms) == 1
    assert found.vcpu_time_ms[0] > 0
    assert found.memory_kib == 128 * 1024
    assert found.memory_resident_kib > 0
    assert {disk.device for disk in found.disks} >= {"vda"}
    assert sum(disk.read_bytes for disk in found.disks) > 1_000_000
    (interface,) = found.interfaces
    assert interface.mac == guest.ports[0].mac
    assert interface.tx_packets > 0

    # -- the agent's other commands
    assert await driver.agent(guest.id, "guest-fsfreeze-status", {}, timeout_s=10.0) == "thawed"
    with pytest.raises(DriverError) as refused:
        await driver.agent(guest.id, "guest-exec", {"path": "/bin/true"}, timeout_s=10.0)
    assert refused.value.code == "AGENT_FAILED"

    # -- and the end
    await driver.cut_power(guest.id)
    with pytest.raises(StreamClosed):
        await terminal.until(b"never said")
    with pytest.raises(DriverError) as off:
        await driver.agent(guest.id, "guest-ping", {}, timeout_s=10.0)
    assert off.value.code == "GUEST_OFF"
