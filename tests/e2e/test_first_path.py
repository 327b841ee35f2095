"""The course's path in our words: from a flavor to a shell in a guest, then everything the guest can be told, then nothing left."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.running import Running, guest_images, until

pytestmark = [pytest.mark.owns_machine, pytest.mark.timeout(600)]

PASSWORD = "a password of the test"
BOOT_S = 120.0
"""From ACTIVE to a guest that lets somebody in, under emulation on a busy machine."""


class Tenant:
    """What the notes' section 5 makes, and the commands of its owner."""

    def __init__(self, fabric: Running, folder: Path) -> None:
        self.fabric = fabric
        self.key = folder / "nebula_key.pem"
        images = guest_images()
        fabric.cli("project", "create", "nebula_prod")
        fabric.cli("user", "create", "--project", "nebula_prod", "--password", PASSWORD, "nebula_admin")
        fabric.cli(
            "flavor",
            "create",
            "--id",
            "auto",
            "--ram",
            "512",
            "--disk",
            "1",
            "--vcpus",
            "1",
            "m1.nebula_micro",
        )
        clouds = fabric.clouds_file.read_text()
        fabric.clouds_file.write_text(
            f'{clouds}\n[clouds.nebula]\nendpoint = "127.0.0.1:{fabric.topology["api_port"]}"\n'
            f'ca_file = "ca.pem"\nusername = "nebula_admin"\nproject = "nebula_prod"\npassword_file = "nebula"\n'
        )
        (fabric.clouds_file.parent / "nebula").write_text(PASSWORD)
        # As the notes have it: the private key is what the command prints.
        self.key.write_text(self.cli("keypair", "create", "nebula_key"))
        self.key.chmod(0o600)
        self.cli(
            *("image", "create", "--disk-format", "qcow2", "nebula_standard_os"),
            *("--file", str(images / "cellfabric-guest.qcow2")),
        )

    def cli(self, *words: str) -> str:
        return self.fabric.cli(*words, cloud="nebula", timeout_s=240)

    def show(self, server: str) -> dict[str, Any]:
        found: dict[str, Any] = self.fabric.shown("server", "show", server, cloud="nebula")
        return found

    def create(self, name: str, *more: str, image: str = "nebula_standard_os") -> None:
        self.cli(
            *("server", "create", "--flavor", "m1.nebula_micro", "--image", image, "--network", "default"),
            *("--key-name", "nebula_key", *more, "--wait", name),
        )

    def guest(self, server: str, command: str) -> str | None:
        """What a command in the guest prints; None while it does not let us in."""
        try:
            done = self.fabric.run(
                *("server", "ssh", "-i", str(self.key), server, "--", command), cloud="nebula", timeout_s=20
            )
        except subprocess.TimeoutExpired:
            return None
        return done.stdout if done.returncode == 0 else None

    def inside(self, server: str, command: str) -> str:
        """The same, waited for. What a command prints may well be nothing."""
        said: list[str] = []

        def answered() -> bool:
            if (words := self.guest(server, command)) is not None:
                said.append(words)
            return bool(said)

        until(answered, f"{server} lets us in", timeout_s=BOOT_S, every_s=1)
        return said[0]


@pytest.fixture(scope="module")
def tenant(running_fabric: Running, tmp_path_factory: pytest.TempPathFactory) -> Tenant:
    return Tenant(running_fabric, tmp_path_factory.mktemp("tenant"))


@pytest.fixture(scope="module")
def web(tenant: Tenant, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """nebula_web_01, with user data, running."""
    script = tmp_path_factory.mktemp("data") / "setup.sh"
    script.write_text("#!/bin/sh\necho made by user data > /root/proof\n")
    tenant.create("nebula_web_01", "--user-data", str(script))
    yield "nebula_web_01"
    tenant.cli("server", "delete", "--wait", "nebula_web_01")


def test_a_person_logs_in_with_their_own_key(tenant: Tenant, web: str) -> None:
    words = tenant.inside(web, "fabric-guest-info")

    assert "Cellfabric guest" in words
    assert "nebula-web-01" in words
    assert tenant.show(web)["id"] in words


def test_the_guest_has_the_flavors_size(tenant: Tenant, web: str) -> None:
    tenant.inside(web, "true")

    assert tenant.inside(web, "grep -c ^processor /proc/cpuinfo").strip() == "1"
    assert 400 < int(tenant.inside(web, "awk '/MemTotal/ {print $2}' /proc/meminfo")) // 1024 <= 512
    assert int(tenant.inside(web, "cat /sys/block/vda/size")) * 512 == 1 << 30


def test_user_data_ran_once_at_the_first_boot(tenant: Tenant, web: str) -> None:
    assert tenant.inside(web, "cat /root/proof") == "made by user data\n"


def test_the_metadata_service_tells_a_guest_about_itself(tenant: Tenant, web: str) -> None:
    said = tenant.inside(web, "wget -q -O - http://169.254.169.254/openstack/latest/meta_data.json")

    metadata = json.loads(said)
    assert metadata["uuid"] == tenant.show(web)["id"]
    assert [key.split()[0] for key in metadata["public_keys"].values()] == ["ssh-ed25519"]


def test_the_console_shows_the_boot(tenant: Tenant, web: str) -> None:
    until(
        lambda: "GUEST-READY" in tenant.cli("console", "log", "show", web),
        "a console log with the guest's last words of its boot",
        timeout_s=BOOT_S,
    )


def test_a_guest_reaches_nothing_beyond_its_host(tenant: Tenant, web: str) -> None:
    """The machine listens on its end of the link, where only the machine itself may open connections."""
    link = tenant.fabric.topology["cells"][0]["hosts"][0]["link"]
    machine = link["outer_address"].partition("/")[0]

    reply = tenant.inside(web, f"ping -c 1 -W 2 {machine} >/dev/null 2>&1 && echo reached || echo held")

    assert reply == "held\n"


def test_stop_start_and_reboot_keep_what_the_guest_wrote(tenant: Tenant, web: str) -> None:
    tenant.inside(web, "echo kept > /root/kept; sync")
    boot_id = tenant.inside(web, "cat /proc/sys/kernel/random/boot_id")

    tenant.cli("server", "stop", "--wait", web)
    assert tenant.show(web)["status"] == "SHUTOFF"
    assert tenant.guest(web, "true") is None

    tenant.cli("server", "start", "--wait", web)
    second = tenant.inside(web, "cat /proc/sys/kernel/random/boot_id")

    tenant.cli("server", "reboot", "--hard", "--wait", web)
    third = until(
        lambda: (now := tenant.guest(web, "cat /proc/sys/kernel/random/boot_id")) != second and now,
        "another boot",
        timeout_s=BOOT_S,
    )
    assert len({boot_id, second, third}) == 3
    assert tenant.inside(web, "cat /root/kept") == "kept\n"
    assert tenant.show(web)["status"] == "ACTIVE"


def test_a_server_boots_by_a_kernel_and_a_ramdisk(tenant: Tenant) -> None:
    images = guest_images()
    line = "root=/dev/vda console=ttyS0 panic=5 whose=ours"
    tenant.cli("image", "create", "--file", str(images / "vmlinuz"), "--disk-format", "kernel", "k")
    tenant.cli("image", "create", "--file", str(images / "initrd.img"), "--disk-format", "ramdisk", "r")
    tenant.cli(
        *("image", "create", "--file", str(images / "cellfabric-guest-root.ext4"), "--disk-format", "raw"),
        *("--kernel-id", "k", "--ramdisk-id", "r", "--property", f"os_command_line={line}", "by-kernel"),
    )

    tenant.create("direct", image="by-kernel")

    try:
        assert "whose=ours" in tenant.inside("direct", "cat /proc/cmdline")
    finally:
        tenant.cli("server", "delete", "--wait", "direct")


def test_a_deleted_server_leaves_nothing_on_its_host(tenant: Tenant) -> None:
    tenant.create("short-lived")
    before = tenant.show("short-lived")["id"]
    host = tenant.fabric.topology["cells"][0]["hosts"][0]
    kept = tenant.fabric.state / "host" / host["name"]
    namespace = ("ip", "netns", "exec", host["link"]["netns"])

    def traces() -> list[str]:
        """Every file, domain and filter rule that knows the server."""
        found = [str(path) for path in kept.rglob("*") if before in path.name and path.suffix != ".log"]
        found += [
            line for line in _output(*namespace, "nft", "list", "ruleset").splitlines() if before in line
        ]
        found += [line for line in _output("ps", "-eo", "args").splitlines() if before in line]
        return found

    assert traces()
    tenant.cli("server", "delete", "--wait", "short-lived")

    assert traces() == []
    assert tenant.fabric.run("server", "show", before, cloud="nebula").returncode == 4


def test_the_servers_and_the_host_take_at_most_300_mib_after_all_of_this(tenant: Tenant) -> None:
    """api, scheduler, conductor and hostd together, resident; images have gone through three of them."""
    found = {
        name: row["memory"]
        for name, row in tenant.fabric.processes().items()
        if not name.startswith(("etcd", "libvirtd"))
    }

    assert len(found) == 4
    assert sum(found.values()) <= 300, found


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
