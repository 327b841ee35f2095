"""Every data plane keeps every law; Linux in a namespace of the test's own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fabric.clock import SystemClock
from hostd.driver.fake import INSTANT, FakeMachine
from hostd.network.driver import LinuxWires, NetworkSettings
from hostd.network.fake import FakeWires
from tests.conformance.namespaces import a_namespace
from tests.conformance.wires.laws import LAWS, Law

ROOT = Path(__file__).resolve().parents[3]
MISSING = [name for name in ("ip", "bridge", "nft", "dnsmasq", "nsenter") if shutil.which(name) is None]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
async def test_fake_wires(law: Law) -> None:
    await law(FakeWires(FakeMachine("fake-1", delays=INSTANT)))


@pytest.mark.owns_machine
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}")
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
async def test_linux_wires(law: Law, tmp_path: Path) -> None:
    with a_namespace("wires") as netns:
        wires = LinuxWires(
            NetworkSettings(state=tmp_path, netns=netns, guest_cidr="10.77.0.0/24", dhcp_user="root"),
            SystemClock(),
        )
        try:
            await law(wires)
        finally:
            await wires.dismantle()
            await wires.close()


@pytest.mark.owns_machine
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}")
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_linux_wires_in_the_daemons_own_namespace(law: Law, tmp_path: Path) -> None:
    """As on a production host: the whole process is in the namespace, and is told of none."""
    program = (
        "import asyncio, pathlib, sys\n"
        "from fabric.clock import SystemClock\n"
        "from hostd.network.driver import LinuxWires, NetworkSettings\n"
        "from tests.conformance.wires import laws\n"
        "async def run():\n"
        "    state = pathlib.Path(sys.argv[1])\n"
        "    wires = LinuxWires(NetworkSettings(state=state, dhcp_user='root'), SystemClock())\n"
        "    try:\n"
        "        await getattr(laws, sys.argv[2])(wires)\n"
        "    finally:\n"
        "        await wires.dismantle()\n"
        "        await wires.close()\n"
        "asyncio.run(run())\n"
    )
    with a_namespace("own") as netns:
        subprocess.run(
            ("ip", "netns", "exec", netns, sys.executable, "-c", program, str(tmp_path), law.__name__),
            cwd=ROOT,
            check=True,
        )
