"""A person at a real server: its serial port in their terminal, its screen by a WebSocket, its counters, and a password set inside it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import ssl
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from websockets.asyncio.client import connect

from tests.e2e.running import FABRIC, Running, guest_images, until

pytestmark = [pytest.mark.owns_machine, pytest.mark.timeout(600)]

SERVER = "console_web"
PASSWORD = "c4nary: of the console's test"
PATIENCE_S = 120.0
ESCAPE = b"\x1d"


class Person:
    """Somebody with a terminal, in which `fabric console attach` runs."""

    def __init__(self, fabric: Running, *words: str) -> None:
        self.eyes, self.inner = pty.openpty()
        self.before = termios.tcgetattr(self.inner)
        self.process = subprocess.Popen(
            (str(FABRIC), "console", "attach", *words, SERVER),
            stdin=self.inner,
            stdout=self.inner,
            stderr=self.inner,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("FABRIC_")},
                "FABRIC_CLOUDS_FILE": str(fabric.clouds_file),
                "FABRIC_CLOUD": "admin",
                "XDG_CACHE_HOME": str(fabric.state / "client" / "cache"),
            },
        )
        os.set_blocking(self.eyes, False)
        self.seen = b""

    def types(self, keys: bytes) -> None:
        os.write(self.eyes, keys)

    def sees(self, words: bytes) -> None:
        """Until these words are shown; what was shown before them is forgotten."""

        def shown() -> bool:
            with contextlib.suppress(BlockingIOError, OSError):
                self.seen += os.read(self.eyes, 65536)
            return words in self.seen

        until(shown, f"{words!r} after {self.seen[-300:]!r}", timeout_s=PATIENCE_S, every_s=0.05)
        self.seen = self.seen.partition(words)[2]

    def ends(self) -> int:
        """With this status, and the terminal as it was."""
        status = self.process.wait(30)
        assert termios.tcgetattr(self.inner) == self.before
        return status

    def gone(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.eyes)
        os.close(self.inner)


@pytest.fixture(scope="module")
def fabric(running_fabric: Running) -> Iterator[Running]:
    """With a server that has an agent."""
    running_fabric.cli(
        *("flavor", "create", "--id", "auto", "--ram", "128", "--disk", "1", "--vcpus", "1", "m1.console")
    )
    image = guest_images() / "cellfabric-guest.qcow2"
    running_fabric.cli("image", "create", "--disk-format", "qcow2", "console_os", "--file", str(image))
    words = ("--flavor", "m1.console", "--image", "console_os", "--network", "default", "--wait", SERVER)
    running_fabric.cli("server", "create", *words, timeout_s=240)
    yield running_fabric
    running_fabric.cli("server", "delete", "--wait", SERVER)
    running_fabric.cli("image", "delete", "console_os")
    running_fabric.cli("flavor", "delete", "m1.console")


@pytest.fixture
def person(fabric: Running) -> Iterator[Person]:
    made = Person(fabric)
    yield made
    made.gone()


@pytest.fixture(scope="module")
def password(fabric: Running) -> str:
    """Set through the agent, which starts last; until then it is said to be missing."""

    def is_set() -> bool:
        done = fabric.run("server", "set", "--password", SERVER, stdin=f"{PASSWORD}\n")
        assert done.returncode == 0 or "qemu-guest-agent" in done.stderr, done.stderr
        return done.returncode == 0

    until(is_set, "the password is set", timeout_s=PATIENCE_S, every_s=1.0)
    return PASSWORD


def test_a_person_logs_in_at_the_serial_console_and_leaves(
    fabric: Running, password: str, person: Person
) -> None:
    person.sees(b"the escape character is ^]")
    person.types(b"\r")
    person.sees(b"login: ")
    person.types(b"root\r")
    person.sees(b"Password: ")
    person.types(password.encode() + b"\r")
    person.sees(b"# ")
    person.types(b"echo answer-$((6 * 7))\r")
    person.sees(b"answer-42")

    # One at a time: who comes second is told, or takes it over.
    second = fabric.run("console", "attach", SERVER)
    assert (second.returncode, "somebody else" in second.stderr) == (5, True)
    other = Person(fabric, "--force")
    try:
        assert person.ends() == 1
        person.sees(b"somebody else has taken the console over")
        other.types(b"\rexit\r")
        other.sees(b"login: ")
        other.types(ESCAPE)
        assert other.ends() == 0
    finally:
        other.gone()
    # The log is written from a pipe, by a daemon of its own: it comes after what a viewer is shown.
    until(
        lambda: "answer-42" in fabric.cli("console", "log", "show", SERVER),
        "the log has what was shown",
        timeout_s=PATIENCE_S,
        every_s=0.5,
    )


def test_a_pipe_is_typed_and_answered(fabric: Running) -> None:
    done = fabric.run("console", "attach", "--linger", "6", SERVER, stdin="\r\r")

    assert done.returncode == 0, done.stderr
    assert "login:" in done.stdout


def test_a_browser_sees_the_screen_once_for_a_ticket(fabric: Running) -> None:
    url = urlsplit(fabric.shown("console", "url", "show", SERVER)["url"])
    (ticket,) = parse_qs(url.fragment)["ticket"]
    trust = ssl.create_default_context(cafile=str(fabric.clouds_file.parent / "ca.pem"))

    async def look() -> bytes:
        address = f"wss://{url.netloc}/vnc?ticket={ticket}"
        async with connect(address, ssl=trust, origin=f"https://{url.netloc}", proxy=None) as viewer:  # type: ignore[arg-type]  # an origin is a string
            assert await viewer.recv() == b"RFB 003.008\n"
            await viewer.send(b"RFB 003.008\n")
            assert await viewer.recv() == b"\x01\x01"
            await viewer.send(b"\x01")
            assert await viewer.recv() == bytes(4)
            await viewer.send(b"\x01")
            screen = await viewer.recv()
            assert isinstance(screen, bytes)
            return screen

    screen = asyncio.run(look())

    assert b"QEMU" in screen
    assert int.from_bytes(screen[:2], "big") >= 640
    with pytest.raises(Exception, match="403"):
        asyncio.run(look())


def test_counters_are_those_of_the_guest(fabric: Running) -> None:
    counters = fabric.shown("server", "show", "--diagnostics", SERVER)
    port = fabric.shown("server", "show", SERVER)

    assert counters["state"] == "running"
    assert 0 < counters["uptime"] < 3600
    assert [cpu["time_ms"] > 0 for cpu in counters["cpu_details"]] == [True]
    assert counters["memory_details"]["maximum_kib"] == 128 * 1024
    assert sum(disk["read_bytes"] for disk in counters["disk_details"]) > 1_000_000
    assert counters["num_nics"] == 1
    assert counters["nic_details"][0]["tx_packets"] > 0
    assert port["status"] == "ACTIVE"


def test_the_password_is_nowhere_but_in_the_guest(fabric: Running, password: str) -> None:
    found = [
        path
        for path in fabric.state.rglob("*")
        if path.is_file() and "disk" not in path.name and _holds(path, password)
    ]

    assert found == []


def _holds(path: Path, secret: str) -> bool:
    with contextlib.suppress(OSError):
        if path.stat().st_size < 200 * 1024 * 1024 and "image" not in str(path) and "blobs" not in str(path):
            return secret.encode() in path.read_bytes()
    return False


def test_a_console_ends_when_the_server_is_stopped(fabric: Running, person: Person) -> None:
    person.sees(b"the escape character is ^]")
    time.sleep(0.5)  # the guest's side of the port is opened when ours is

    fabric.cli("server", "stop", "--wait", SERVER, timeout_s=240)

    person.sees(b"the server is off")
    assert person.ends() == 0
    refused = fabric.run("console", "attach", SERVER)
    assert (refused.returncode, "it is SHUTOFF" in refused.stderr) == (5, True)
    assert fabric.run("server", "set", "--password", SERVER, stdin="x\n").returncode == 5
