"""A deleted server that is kept: off, back as it was, and gone for good when its time is over, or at once where somebody says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.running import Running, a_fabric, a_small_disk, until

pytestmark = [pytest.mark.owns_machine, pytest.mark.slow, pytest.mark.timeout(300)]

RECLAIM_S = 20
"""Long enough to look at what is kept, and to bring it back; short enough to wait for."""

WORDS = ("--flavor", "m1.kept", "--image", "kept_os", "--network", "default", "--wait")


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    disk: Path = a_small_disk(tmp_path_factory.mktemp("disk"))
    with a_fabric("--hypervisor", "fake", "--reclaim", str(RECLAIM_S)) as running:
        running.cli(
            "flavor", "create", "--id", "auto", "--ram", "128", "--disk", "1", "--vcpus", "1", "m1.kept"
        )
        running.cli("image", "create", "--disk-format", "raw", "kept_os", "--file", str(disk))
        yield running


def _used(fabric: Running) -> int:
    used: int = fabric.shown("project", "show", "admin")["used_instances"]
    return used


def test_a_deleted_server_is_kept_restored_and_in_the_end_reclaimed(fabric: Running) -> None:
    made = fabric.shown("server", "create", *WORDS, "kept_web")

    fabric.cli("server", "delete", "--wait", "kept_web")
    kept = fabric.shown("server", "show", "kept_web")
    fabric.cli("server", "restore", "--wait", "kept_web")
    back = fabric.shown("server", "show", "kept_web")
    fabric.cli("server", "delete", "--wait", "kept_web")
    again = fabric.shown("server", "show", "kept_web")

    assert (kept["status"], made["purged_at"], back["purged_at"]) == ("SOFT_DELETED", None, None)
    assert kept["purged_at"] < again["purged_at"]
    same = ("id", "status", "power_state", "addresses", "image", "flavor", "host", "created")
    assert {name: back[name] for name in same} == {name: made[name] for name in same}
    until(
        lambda: fabric.run("server", "show", made["id"]).returncode != 0 and _used(fabric) == 0,
        "the server is gone, and its project is not charged for it any more",
        timeout_s=RECLAIM_S + 30,
        every_s=1.0,
    )


def test_a_server_that_is_deleted_by_force_is_gone_at_once(fabric: Running) -> None:
    fabric.cli("server", "create", *WORDS, "forced_web")
    fabric.cli("server", "create", *WORDS, "kept_and_forced_web")

    fabric.cli("server", "delete", "--wait", "kept_and_forced_web")
    fabric.cli("server", "delete", "--force", "--wait", "forced_web", "kept_and_forced_web")

    assert fabric.shown("server", "list") == []
