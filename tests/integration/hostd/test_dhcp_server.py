"""A DHCP server and the daemon that looks after it: whatever becomes of the one, the other serves what was wanted last."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostd.core.dhcp import Serving
from hostd.network.dnsmasq import Dnsmasq
from hostd.network.netns import Namespace
from tests.conformance.namespaces import a_namespace, ip

MISSING = [name for name in ("ip", "dnsmasq", "nsenter") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.owns_machine,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}"),
]
MAC = "fa:16:3e:00:00:07"


class Killed(BaseException):
    """The daemon is no more: nothing of it runs on to tidy up."""


@pytest.fixture
def netns() -> Iterator[str]:
    with a_namespace("dhcp") as server:
        ip("link", "add", "lan0", "type", "bridge", "forward_delay", "0", netns=server)
        ip("address", "add", "10.77.0.1/24", "dev", "lan0", netns=server)
        ip("link", "set", "lan0", "up", netns=server)
        yield server


def serving(address: str) -> Serving:
    return Serving(
        interface="lan0",
        ranges=("--dhcp-range=10.77.0.0,static,255.255.255.0,3600s",),
        hosts=f"{MAC},{address},3600s\n",
        holders={address: MAC},
    )


async def started(folder: Path) -> str:
    """The server, once it is there: what enters its namespace for it has made way."""
    pid = (folder / "dnsmasq.pid").read_text().strip()
    async with asyncio.timeout(10):
        while Path(f"/proc/{pid}/comm").read_text() != "dnsmasq\n":
            await asyncio.sleep(0.01)
    return pid


async def test_a_daemon_that_dies_as_it_starts_the_server_anew_leaves_no_old_one(
    netns: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was to be read was written before the server was ended. So the successor found it as it had to be, beside a server that went on
    with what it had read before: a guest was refused its address until something else changed.
    """

    def dies(_pid: int, _number: int) -> None:
        raise Killed

    first = Dnsmasq(Namespace(netns), tmp_path, user="root")
    await first.ensure(serving("10.77.0.7"))
    pid = await started(tmp_path)
    # There is no fake of a process, and this is the very moment that counts.
    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", dies)
        with pytest.raises(Killed):
            await first.ensure(serving("10.77.0.8"))
    first.release()

    successor = Dnsmasq(Namespace(netns), tmp_path, user="root")
    await successor.ensure(serving("10.77.0.8"))
    assert await started(tmp_path) != pid
    await successor.stop()


async def test_what_cannot_be_written_leaves_the_server_as_it_was(netns: str, tmp_path: Path) -> None:
    server = Dnsmasq(Namespace(netns), tmp_path, user="root")
    await server.ensure(serving("10.77.0.7"))
    pid = await started(tmp_path)
    (tmp_path / "dnsmasq.hosts.part").mkdir()

    with pytest.raises(OSError, match=r"dnsmasq\.hosts\.part"):
        await server.ensure(serving("10.77.0.8"))

    assert await started(tmp_path) == pid
    (tmp_path / "dnsmasq.hosts.part").rmdir()
    await server.ensure(serving("10.77.0.8"))
    assert await started(tmp_path) != pid
    await server.stop()
    assert not list(tmp_path.iterdir())
