"""`fabric dev` itself: it keeps processes running, and leaves nothing behind whoever died."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.e2e.running import Running, a_fabric, leftovers, until

pytestmark = [pytest.mark.owns_machine, pytest.mark.timeout(200)]


@pytest.fixture(scope="module")
def fabric(fake_fabric: Callable[..., AbstractContextManager[Running]]) -> Iterator[Running]:
    with fake_fabric() as running:
        yield running


def test_a_second_up_changes_nothing_and_says_so(fabric: Running) -> None:
    before = {name: row["pid"] for name, row in fabric.processes().items()}

    again = fabric.run("dev", "up")

    assert again.returncode == 0
    assert "a fabric is running" in again.stderr
    assert {name: row["pid"] for name, row in fabric.processes().items()} == before


def test_a_process_that_dies_is_started_again(fabric: Running) -> None:
    before = fabric.processes()["scheduler"]

    fabric.dev("kill", "scheduler")

    after = until(
        lambda: (
            (now := fabric.processes()["scheduler"])["restarts"] > before["restarts"]
            and now["state"] == "ready"
            and now
        ),
        "the scheduler is ready again",
    )
    assert after["pid"] != before["pid"]
    assert after["last_end"] == "killed by SIGKILL"


def test_a_process_that_is_stopped_stays_so_until_it_is_started(fabric: Running) -> None:
    fabric.dev("stop", "scheduler")
    stopped = fabric.processes()["scheduler"]
    fabric.dev("start", "scheduler")

    assert (stopped["state"], stopped["pid"]) == ("stopped", None)
    assert fabric.processes()["scheduler"]["state"] == "ready"


def test_one_start_takes_an_environment_of_its_own(fabric: Running) -> None:
    def level() -> bool:
        pid = fabric.processes()["scheduler"]["pid"]
        with open(f"/proc/{pid}/environ", "rb") as environ:  # noqa: PTH123 - procfs
            return b"FABRIC_SCHEDULER__LOG__LEVEL=debug" in environ.read().split(b"\0")

    fabric.dev("restart", "scheduler", "--env", "FABRIC_SCHEDULER__LOG__LEVEL=debug")
    with_it = level()
    fabric.dev("restart", "scheduler")

    assert with_it
    assert not level()


def test_a_process_that_nobody_has_is_refused_by_name(fabric: Running) -> None:
    done = fabric.run("dev", "restart", "schedular")

    assert done.returncode == 2
    assert "schedular" in done.stderr
    assert "scheduler" in done.stderr


def test_down_finds_everything_after_the_supervisor_was_killed() -> None:
    with a_fabric("--hypervisor", "libvirt") as fabric:
        topology = json.loads((fabric.state / "topology.json").read_text())
        netns = topology["cells"][0]["hosts"][0]["link"]["netns"]
        os.kill(int((fabric.state / "supervisor.pid").read_text()), signal.SIGKILL)
        assert os.path.exists(f"/run/netns/{netns}")  # noqa: PTH110 - a namespace, not a file of ours

        said = fabric.run("dev", "down")

        assert said.returncode == 0, said.stderr
        assert not os.path.exists(f"/run/netns/{netns}")  # noqa: PTH110 - as above
        assert leftovers(fabric.state) == []


def test_up_removes_what_an_earlier_fabric_left() -> None:
    with a_fabric("--hypervisor", "fake") as fabric:
        before = {row["pid"] for row in fabric.processes().values()}
        os.kill(int((fabric.state / "supervisor.pid").read_text()), signal.SIGKILL)

        said = fabric.run("dev", "up", "--hypervisor", "fake")

        assert said.returncode == 0, said.stderr
        assert "removing what is left" in said.stderr
        assert not before & {row["pid"] for row in fabric.processes().values()}
