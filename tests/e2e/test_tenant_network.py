"""A tenant's own network, as the course's notes end: a server behind a router, and a shell in it through a floating IP."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.running import Running, a_fabric, guest_images, until

pytestmark = [pytest.mark.owns_machine, pytest.mark.timeout(600)]

BOOT_S = 180.0
"""From ACTIVE to a guest that lets somebody in, under emulation on a busy machine."""
PASSWORD = "a password of the test"
RANGE = "10.0.0.0/24"
SSH_OPTIONS = (
    *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes"),
    *("-o", "ConnectTimeout=2", "-o", "LogLevel=ERROR", "-o", "BatchMode=yes"),
)


@dataclass
class Tenant:
    """A project with a user and a key of its own, whose names all begin with a word."""

    fabric: Running
    word: str
    key: Path
    addresses: dict[str, str] = field(default_factory=dict)

    def cli(self, *words: str) -> str:
        return self.fabric.cli(*words, cloud=self.word, timeout_s=240)

    def shown(self, *words: str) -> Any:
        return self.fabric.shown(*words, cloud=self.word)

    def move_in(self) -> None:
        """Project, user and key; a network behind a router; a group that lets SSH in."""
        word, clouds = self.word, self.fabric.clouds_file
        self.fabric.cli("project", "create", f"{word}_prod")
        self.fabric.cli(
            "user", "create", "--project", f"{word}_prod", "--password", PASSWORD, f"{word}_admin"
        )
        clouds.write_text(
            f'{clouds.read_text()}\n[clouds.{word}]\nendpoint = "127.0.0.1:{self.fabric.topology["api_port"]}"\n'
            f'ca_file = "ca.pem"\nusername = "{word}_admin"\nproject = "{word}_prod"\npassword_file = "{word}"\n'
        )
        (clouds.parent / word).write_text(PASSWORD)
        self.key.write_text(self.cli("keypair", "create", f"{word}_key"))
        self.key.chmod(0o600)
        self.cli("network", "create", f"{word}_net")
        self.cli("subnet", "create", "--network", f"{word}_net", "--subnet-range", RANGE, f"{word}_subnet")
        self.cli("router", "create", f"{word}_router")
        self.cli("router", "set", "--external-gateway", "public", f"{word}_router")
        self.cli("router", "add", "subnet", f"{word}_router", f"{word}_subnet")
        self.cli("security", "group", "create", f"{word}_web_sg")
        self.let_in(22)

    def let_in(self, port: int) -> str:
        """A rule; its id."""
        words = ("security", "group", "rule", "create", "--proto", "tcp", "--dst-port", str(port))
        made: dict[str, Any] = self.shown(*words, f"{self.word}_web_sg")
        return str(made["id"])

    def create(self, name: str, *, host: int, address: str = "") -> None:
        """On one of the two hosts: the other takes none meanwhile."""
        net = f"{self.word}_net"
        where = ("--nic", f"net-id={net},v4-fixed-ip={address}") if address else ("--network", net)
        other = f"cell1-host{3 - host}"
        self.fabric.cli("host", "set", "--disable", other)
        try:
            self.cli(
                *("server", "create", "--flavor", "m1.nebula_micro", "--image", "nebula_standard_os"),
                *(*where, "--key-name", f"{self.word}_key", "--security-group", f"{self.word}_web_sg"),
                *("--wait", name),
            )
        finally:
            self.fabric.cli("host", "set", "--enable", other)

    def fixed_address(self) -> str:
        """That of the project's only port."""
        (port,) = self.shown("port", "list")
        (address,) = re.findall(r"10\.0\.0\.\d+", json.dumps(port["Fixed IP Addresses"]))
        return str(address)

    def give_floating_ip(self, server: str) -> str:
        """One of the outside's addresses, leading to the server."""
        made: dict[str, Any] = self.shown("floating", "ip", "create", "public")
        address = self.addresses[server] = str(made["floating_ip_address"])
        self.cli("server", "add", "floating", "ip", server, address)
        return address

    def ssh(self, server: str, *command: str) -> tuple[str, ...]:
        return ("ssh", *SSH_OPTIONS, "-i", str(self.key), f"root@{self.addresses[server]}", *command)

    def guest(self, server: str, command: str) -> str | None:
        """What a command in the guest prints; None while it does not let us in."""
        try:
            done = subprocess.run(
                self.ssh(server, command), capture_output=True, text=True, check=False, timeout=20
            )
        except subprocess.TimeoutExpired:
            return None
        return done.stdout if done.returncode == 0 else None

    def inside(self, server: str, command: str) -> str:
        """The same, waited for."""
        said: list[str] = []

        def answered() -> bool:
            if (words := self.guest(server, command)) is not None:
                said.append(words)
            return bool(said)

        until(answered, f"{server} lets us in", timeout_s=BOOT_S, every_s=1)
        return said[0]

    def is_open(self, server: str, port: int = 22) -> bool:
        """Whether anybody answers there."""
        try:
            with socket.create_connection((self.addresses[server], port), timeout=1):
                return True
        except OSError:
            return False


class Session:
    """Somebody who is logged in, and whose guest says something all the time."""

    def __init__(self, command: tuple[str, ...]) -> None:
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._heard = 0
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for _ in self._process.stdout:
            self._heard += 1

    def hears_more(self, *, patience_s: float) -> bool:
        """Whether the guest is heard once more."""
        before, until_s = self._heard, time.monotonic() + patience_s
        while self._heard == before and time.monotonic() < until_s:
            time.sleep(0.02)
        return self._heard > before

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture(scope="module")
def fabric() -> Iterator[Running]:
    """Two hosts, with the flavor and the image that everybody uses."""
    with a_fabric("--hosts", "2") as made:
        size = ("--ram", "256", "--disk", "1", "--vcpus", "1")
        made.cli("flavor", "create", "--id", "auto", *size, "m1.nebula_micro")
        image = guest_images() / "cellfabric-guest.qcow2"
        made.cli(
            *("image", "create", "--public", "--disk-format", "qcow2", "--file", str(image)),
            "nebula_standard_os",
        )
        yield made


@pytest.fixture(scope="module")
def nebula(fabric: Running, tmp_path_factory: pytest.TempPathFactory) -> Tenant:
    made = Tenant(fabric, "nebula", tmp_path_factory.mktemp("nebula") / "nebula_key.pem")
    made.move_in()
    return made


@pytest.fixture(scope="module")
def web(nebula: Tenant) -> Iterator[str]:
    """nebula_web_01, reached by a floating IP."""
    nebula.create("nebula_web_01", host=1)
    nebula.give_floating_ip("nebula_web_01")
    yield "nebula_web_01"
    nebula.cli("server", "delete", "--wait", "nebula_web_01")


def test_a_person_logs_in_through_the_floating_ip_with_their_own_key(nebula: Tenant, web: str) -> None:
    words = nebula.inside(web, "fabric-guest-info")

    assert "nebula-web-01" in words
    # Where it was reached is nothing that a guest knows of.
    assert nebula.fixed_address() in words
    assert nebula.addresses[web] not in words


def test_a_rule_that_goes_ends_the_session_and_one_that_comes_lets_in_without_a_reboot(
    nebula: Tenant, web: str
) -> None:
    boot = nebula.inside(web, "cat /proc/sys/kernel/random/boot_id")
    session = Session(nebula.ssh(web, "while :; do echo here; sleep 0.1; done"))
    assert session.hears_more(patience_s=30)

    (rule,) = [
        each["ID"]
        for each in nebula.shown("security", "group", "rule", "list", "nebula_web_sg")
        if "22" in json.dumps(each["Port Range"])
    ]
    nebula.cli("security", "group", "rule", "delete", rule)
    until(lambda: not nebula.is_open(web), "SSH is closed", timeout_s=30)
    # What was under way when it closed has been heard by now.
    session.hears_more(patience_s=1)
    died = not session.hears_more(patience_s=2)
    session.close()

    began_s = time.monotonic()
    nebula.let_in(22)
    told_s = time.monotonic()
    until(lambda: nebula.is_open(web), "SSH is open", timeout_s=30, every_s=0.01)
    open_s = time.monotonic()
    sys.stdout.write(f"open {open_s - told_s:.2f} s after the command, which took {told_s - began_s:.2f} s\n")

    assert died
    assert nebula.inside(web, "cat /proc/sys/kernel/random/boot_id") == boot


def test_a_killed_hostd_interrupts_no_session(nebula: Tenant, web: str) -> None:
    session = Session(nebula.ssh(web, "while :; do echo here; sleep 0.1; done"))
    assert session.hears_more(patience_s=30)

    nebula.fabric.dev("kill", "hostd-cell1-host1")
    heard_without = session.hears_more(patience_s=5)
    nebula.fabric.until_ready("hostd-cell1-host1")
    heard_with = session.hears_more(patience_s=5)
    session.close()

    assert (heard_without, heard_with) == (True, True)


def test_the_guest_reaches_the_outside_under_its_floating_ip(nebula: Tenant, web: str) -> None:
    gateway = nebula.fabric.topology["segments"]["gateway"].partition("/")[0]

    assert "1 packets received" in nebula.inside(web, f"ping -c 1 -W 5 {gateway} || true")


@pytest.mark.slow
@pytest.mark.usefixtures("web")
def test_two_tenants_with_one_range_on_two_hosts_never_meet(
    fabric: Running, nebula: Tenant, tmp_path: Path
) -> None:
    """Both have servers with the same two addresses, one on each host; each reaches its own across hosts, and not the other's."""
    orion = Tenant(fabric, "orion", tmp_path / "orion_key.pem")
    orion.move_in()
    first, second = nebula.fixed_address(), "10.0.0.77"
    nebula.create("nebula_web_02", host=2, address=second)
    orion.create("orion_web_01", host=1, address=first)
    orion.create("orion_web_02", host=2, address=second)
    orion.give_floating_ip("orion_web_01")
    try:
        for tenant in (nebula, orion):
            server = f"{tenant.word}_web_02"
            tenant.give_floating_ip(server)
            tenant.let_in(80)
            # One that says its name to whoever connects, for as long as the guest lives.
            served = "while :; do hostname | nc -l -p 80; done"
            tenant.inside(server, f"setsid sh -c '{served}' </dev/null >/dev/null 2>&1 &")

        for tenant in (nebula, orion):
            said = tenant.inside(f"{tenant.word}_web_01", _asked(second))
            assert said.strip() == f"{tenant.word}-web-02"
        # By its floating IP a tenant reaches another's as anybody does.
        said = orion.inside("orion_web_01", _asked(nebula.addresses["nebula_web_02"]))
        assert said.strip() == "nebula-web-02"
    finally:
        nebula.cli("server", "delete", "--wait", "nebula_web_02")
        orion.cli("server", "delete", "--wait", "orion_web_01", "orion_web_02")


def _asked(address: str) -> str:
    return f"until nc -w 3 {address} 80 </dev/null | grep web; do sleep 1; done"


@pytest.mark.slow
@pytest.mark.usefixtures("web")
def test_the_way_out_is_at_another_host_when_its_own_is_lost(fabric: Running, nebula: Tenant) -> None:
    """For who has no floating IP. The lost host's daemon comes back with the plan that it kept, and takes nothing back by it."""
    (address,) = [
        each["ip_address"] for each in nebula.shown("router", "show", "nebula_router")["external_fixed_ips"]
    ]
    gateway = fabric.topology["segments"]["gateway"].partition("/")[0]
    (lost,) = until(lambda: holders(fabric, address), "the router leads out somewhere")
    other = 3 - lost
    nebula.create("nebula_out_01", host=other)
    try:
        public = nebula.give_floating_ip("nebula_out_01")
        asks = (
            f"while :; do ping -c 1 -W 1 {gateway} >/dev/null && date +%s >> /root/answers; sleep 0.3; done"
        )
        nebula.inside("nebula_out_01", f"setsid sh -c '{asks}' </dev/null >/dev/null 2>&1 &")
        nebula.cli("server", "remove", "floating", "ip", "nebula_out_01", public)

        fabric.dev("stop", "--now", f"hostd-cell1-host{lost}")
        until(lambda: other in holders(fabric, address), "another host leads out", timeout_s=120)
        fabric.dev("start", f"hostd-cell1-host{lost}")
        until(lambda: holders(fabric, address) == [other], "only that host leads out")
        moved_s = time.time()
        time.sleep(3)  # for the guest to ask some more: only its own answers are evidence
        nebula.cli("server", "add", "floating", "ip", "nebula_out_01", public)
        answers = [int(word) for word in nebula.inside("nebula_out_01", "cat /root/answers").split()]

        assert [each for each in answers if moved_s < each]
    finally:
        nebula.cli("server", "delete", "--wait", "nebula_out_01")


def holders(fabric: Running, address: str) -> list[int]:
    """The hosts of which a router has the address outside."""
    found = []
    spaces = subprocess.run(
        ("ip", "netns", "list"), capture_output=True, text=True, check=True
    ).stdout.split()
    for number, host in enumerate(fabric.topology["cells"][0]["hosts"], start=1):
        for space in spaces:
            if space.startswith(f"{host['link']['netns']}.cfr-"):
                seen = subprocess.run(
                    ("ip", "-n", space, "address", "show"), capture_output=True, text=True, check=False
                )
                found += [number] * (f" {address}/32 " in seen.stdout)
    return found
