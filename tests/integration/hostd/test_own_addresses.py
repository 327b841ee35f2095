"""What a host does not do to its own way out, whatever subnet its guests are said to be in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fabric.clock import SystemClock
from hostd.network.base import NetworkError
from hostd.network.driver import LinuxWires, NetworkSettings
from tests.conformance.namespaces import a_namespace, ip

MISSING = [name for name in ("ip", "bridge", "nft", "nsenter") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.owns_machine,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}"),
]


async def test_a_subnet_for_guests_that_the_host_itself_is_in_is_refused(tmp_path: Path) -> None:
    """Its first address, which would be the bridge's, is likely to be the host's own router."""
    with a_namespace("host") as host, a_namespace("out") as outside:
        ip("link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", outside, netns=host)
        ip("address", "add", "10.77.0.200/24", "dev", "up0", netns=host)
        ip("link", "set", "up0", "up", netns=host)
        ip("route", "add", "default", "via", "10.77.0.1", netns=host)
        wires = LinuxWires(
            NetworkSettings(state=tmp_path, netns=host, guest_cidr="10.77.0.0/24"), SystemClock()
        )

        with pytest.raises(NetworkError):
            await wires.prepare()

        assert "via 10.77.0.1 dev up0" in ip("route", "get", "203.0.113.9", netns=host)
        await wires.dismantle()
        await wires.close()
