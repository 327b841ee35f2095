"""One real guest, walked through every action of the table: what it says is checked from inside the guest, and from libvirt.

Two hosts on one machine, so that what must come up elsewhere does. The tests are one script: each goes on where the one before it ended.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import libvirt
import pytest

from hostd.driver.libvirt.xml import domain_name
from tests.e2e.running import Running, a_fabric, guest_processes, until
from tests.e2e.test_first_path import Tenant

pytestmark = [pytest.mark.owns_machine, pytest.mark.slow, pytest.mark.timeout(900)]

KEPT = "/root/kept"
"""A file on the root disk; what is in it tells copies apart."""

IN_MEMORY = "/dev/shm/in-memory"  # noqa: S108 - in the guest
"""A file in memory alone."""


@dataclass(slots=True)
class Walk:
    """The server and what is known of it."""

    tenant: Tenant
    name: str = "walker"
    facts: dict[str, str] = field(default_factory=dict)

    # ---------------------------------------------------------------- asking

    def cli(self, *words: str) -> str:
        return self.tenant.cli(*words)

    def do(self, *verb: str, wait: bool = True) -> None:
        """A verb on the server, waited for."""
        self.cli("server", *verb, *(("--wait",) if wait else ()), self.name)

    def admin(self, *words: str) -> str:
        """As the system administrator, in the tenant's project."""
        return self.tenant.fabric.cli(*words, timeout_s=240)

    def refused(self, *words: str) -> str:
        """A command that must fail: what it says."""
        done = self.tenant.fabric.run(*words, cloud="nebula")
        assert done.returncode != 0, f"{words} was done"
        return done.stderr

    @property
    def shown(self) -> dict[str, Any]:
        return self.tenant.show(self.name)

    @property
    def status(self) -> str:
        return str(self.shown["status"])

    @property
    def id(self) -> str:
        return str(self.shown["id"])

    def inside(self, command: str) -> str:
        return self.tenant.inside(self.name, command).strip()

    def boot_id(self) -> str:
        return self.inside("cat /proc/sys/kernel/random/boot_id")

    # ---------------------------------------------------------------- looking beside us

    @property
    def host(self) -> str:
        found: dict[str, Any] = self.tenant.fabric.shown("server", "show", self.id)
        return str(found["host"])

    @contextlib.contextmanager
    def libvirt_on(self, host: str) -> Iterator[libvirt.virConnect]:
        socket = self.tenant.fabric.state / "host" / host / "lv/run/libvirt-sock"
        connect = libvirt.open(f"qemu+unix:///system?socket={socket}")
        try:
            yield connect
        finally:
            connect.close()

    def domains(self) -> dict[str, str]:
        """On which hosts libvirt has the server, and in which state."""
        words = {
            libvirt.VIR_DOMAIN_RUNNING: "running",
            libvirt.VIR_DOMAIN_PAUSED: "paused",
            libvirt.VIR_DOMAIN_SHUTOFF: "off",
        }
        found = {}
        for cell in self.tenant.fabric.topology["cells"]:
            for host in cell["hosts"]:
                with self.libvirt_on(host["name"]) as connect:
                    for domain in connect.listAllDomains():
                        # One may end while it is looked at.
                        with contextlib.suppress(libvirt.libvirtError):
                            if domain.name() == domain_name(self.id):
                                found[host["name"]] = words.get(domain.state()[0], "?")
        return found

    def document(self) -> str:
        """The running definition."""
        with self.libvirt_on(self.host) as connect:
            text: str = connect.lookupByName(domain_name(self.id)).XMLDesc()
            return text


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    with a_fabric("--hosts", "2") as fabric:
        made = Walk(Tenant(fabric, tmp_path_factory.mktemp("tenant")))
        for name, vcpus, ram in (("m1.nebula_small", "2", "640"), ("m1.nebula_other", "1", "640")):
            fabric.cli("flavor", "create", "--ram", ram, "--disk", "2", "--vcpus", vcpus, name)
        made.tenant.create(made.name)
        made.inside(f"echo of the first disk > {KEPT}; sync")
        yield made
        _end(made)


def _end(walk: Walk) -> None:
    fabric: Running = walk.tenant.fabric
    for server in fabric.shown("server", "list", "--all-projects"):
        fabric.cli("server", "delete", "--wait", server["ID"])


def test_a_pause_holds_it_in_memory(walk: Walk) -> None:
    boot_id = walk.boot_id()
    walk.do("pause")
    assert (walk.status, list(walk.domains().values())) == ("PAUSED", ["paused"])

    walk.do("unpause")
    assert (walk.status, list(walk.domains().values())) == ("ACTIVE", ["running"])
    assert walk.boot_id() == boot_id


def test_a_suspend_keeps_its_memory_without_a_process(walk: Walk) -> None:
    boot_id = walk.boot_id()
    walk.inside(f"echo remembered > {IN_MEMORY}")
    walk.do("suspend")
    assert (walk.status, list(walk.domains().values())) == ("SUSPENDED", ["off"])
    assert not guest_processes(walk.id)

    walk.do("resume")
    assert walk.status == "ACTIVE"
    assert (walk.inside(f"cat {IN_MEMORY}"), walk.boot_id()) == ("remembered", boot_id)


def test_reboots_boot_it_anew_softly_and_hard(walk: Walk) -> None:
    boot_ids = {walk.boot_id()}
    for kind in ("--soft", "--hard"):
        walk.do("reboot", kind)
        until(lambda: walk.boot_id() not in boot_ids, f"it rebooted {kind}", timeout_s=120)
        boot_ids.add(walk.boot_id())

    assert walk.inside(f"cat {KEPT}") == "of the first disk"


def test_a_stop_asks_the_guest_first_and_a_start_brings_it_back(walk: Walk) -> None:
    walk.do("stop", "--shutdown-timeout", "120")
    assert (walk.status, list(walk.domains().values())) == ("SHUTOFF", ["off"])
    assert "going down" in walk.cli("console", "log", "show", walk.name)

    walk.do("start")
    assert walk.inside(f"cat {KEPT}") == "of the first disk"


def test_what_the_table_refuses_is_refused_with_what_it_allows(walk: Walk) -> None:
    words = walk.refused("server", "unpause", walk.name)

    assert "cannot unpause while ACTIVE" in words
    assert "pause" in words.partition("allowed now:")[2]


def test_a_lock_refuses_changes_and_says_why(walk: Walk) -> None:
    walk.do("lock", "--reason", "an audit", wait=False)
    assert "locked: an audit" in walk.refused("server", "stop", walk.name)

    walk.do("unlock", wait=False)
    assert walk.status == "ACTIVE"


def test_name_metadata_and_tags_change_while_it_runs(walk: Walk) -> None:
    boot_id = walk.boot_id()
    walk.cli("server", "set", "--property", "role=web", "--tag", "blue", "--name", "wanderer", walk.name)
    walk.name = "wanderer"

    assert "role" in str(walk.shown)
    assert "blue" in str(walk.shown)
    assert "web" in walk.inside("wget -q -O - http://169.254.169.254/openstack/latest/meta_data.json")
    assert walk.boot_id() == boot_id


def test_a_rescue_boots_another_disk_with_its_own_beside_it(walk: Walk) -> None:
    walk.do("rescue", "--no-password")
    assert walk.status == "RESCUE"
    # The guest finds its own disk as the second one: what was written there is there.
    own = walk.inside(f"mkdir -p /mnt/own; mount /dev/vdb2 /mnt/own && cat /mnt/own{KEPT}; umount /mnt/own")
    assert own == "of the first disk"
    assert "No such file" in walk.inside(f"cat {KEPT} 2>&1 || true")

    walk.do("unrescue")
    assert (walk.status, walk.inside(f"cat {KEPT}")) == ("ACTIVE", "of the first disk")


def test_a_snapshot_boots_as_a_new_server_with_its_data(walk: Walk) -> None:
    walk.inside("sync")
    walk.cli("server", "image", "create", "--name", "walked", "--wait", walk.name)
    assert walk.status == "ACTIVE"

    walk.tenant.create("copy", image="walked")
    assert walk.tenant.inside("copy", f"cat {KEPT}").strip() == "of the first disk"
    walk.cli("server", "delete", "--wait", "copy")
    walk.cli("image", "delete", "walked")


def test_backups_rotate(walk: Walk) -> None:
    for _ in range(2):
        walk.cli(
            *("server", "backup", "create", "--name", "nightly", "--type", "daily"),
            *("--rotate", "1", "--wait", walk.name),
        )

    def backups() -> list[str]:
        listed = walk.tenant.fabric.shown("image", "list", cloud="nebula")
        return [image["ID"] for image in listed if image["Name"].startswith("nightly")]

    until(lambda: len(backups()) == 1, "one backup is left", timeout_s=60)
    walk.cli("image", "delete", backups()[0])


def test_shelved_it_frees_its_host_and_comes_back_on_another(walk: Walk) -> None:
    before = walk.host
    walk.inside("sync")
    walk.do("shelve", "--offload")
    assert (walk.status, walk.domains()) == ("SHELVED_OFFLOADED", {})

    walk.admin("host", "set", "--disable", before)
    walk.do("unshelve")
    walk.admin("host", "set", "--enable", before)
    assert (walk.status, walk.host != before) == ("ACTIVE", True)
    assert list(walk.domains()) == [walk.host]
    assert walk.inside(f"cat {KEPT}") == "of the first disk"


def test_a_resize_shows_in_the_guest_and_can_be_kept(walk: Walk) -> None:
    before = walk.host
    walk.cli("server", "resize", "--flavor", "m1.nebula_small", "--wait", walk.name)
    assert (walk.status, walk.host != before) == ("VERIFY_RESIZE", True)
    assert walk.inside("grep -c ^processor /proc/cpuinfo") == "2"
    assert int(walk.inside("awk '/MemTotal/ {print $2}' /proc/meminfo")) > 560 * 1024
    assert int(walk.inside("cat /sys/block/vda/size")) * 512 == 2 << 30

    walk.cli("server", "resize", "confirm", walk.name)
    until(lambda: list(walk.domains()) == [walk.host], "the source is clean", timeout_s=60)
    assert (walk.status, walk.inside(f"cat {KEPT}")) == ("ACTIVE", "of the first disk")


def test_a_resize_can_be_taken_back(walk: Walk) -> None:
    before = walk.host
    walk.cli("server", "resize", "--flavor", "m1.nebula_other", "--wait", walk.name)
    assert walk.inside("grep -c ^processor /proc/cpuinfo") == "1"

    walk.cli("server", "resize", "revert", "--wait", walk.name)
    assert (walk.status, walk.host) == ("ACTIVE", before)
    assert walk.inside("grep -c ^processor /proc/cpuinfo") == "2"


def test_a_cold_migration_moves_it_as_it_is(walk: Walk) -> None:
    before = walk.host
    walk.admin("server", "migrate", "--wait", walk.id)
    assert (walk.status, walk.host != before) == ("VERIFY_RESIZE", True)

    walk.cli("server", "resize", "confirm", walk.name)
    assert walk.inside(f"cat {KEPT}") == "of the first disk"


def test_a_rebuild_keeps_the_address_and_nothing_else(walk: Walk) -> None:
    address = walk.shown["addresses"]
    walk.do("rebuild", "--image", "nebula_standard_os")

    assert (walk.status, walk.shown["addresses"]) == ("ACTIVE", address)
    assert "No such file" in walk.inside(f"cat {KEPT} 2>&1 || true")


def test_everything_that_was_done_is_written_down(walk: Walk) -> None:
    words = walk.cli("server", "event", "list", walk.name)

    for action in ("rebuild", "migrate", "resize"):
        assert action in words


def test_its_end_leaves_nothing(walk: Walk) -> None:
    walk.do("delete")

    for cell in walk.tenant.fabric.topology["cells"]:
        for host in cell["hosts"]:
            with walk.libvirt_on(host["name"]) as connect:
                assert connect.listAllDomains() == []
            kept: Path = walk.tenant.fabric.state / "host" / host["name"] / "hostd/instances"
            assert not kept.exists() or list(kept.iterdir()) == []
