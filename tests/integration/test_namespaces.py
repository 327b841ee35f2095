"""What tests make of network namespaces is gone when they end, however that is."""

from __future__ import annotations

import shutil
import signal
import subprocess

import pytest

from tests.conformance.namespaces import a_namespace, ip, namespaces
from tests.e2e.running import until

pytestmark = [
    pytest.mark.owns_machine,
    pytest.mark.skipif(shutil.which("ip") is None, reason="not installed: ip"),
]


class Failed(Exception):
    """A test that failed in the middle."""


def test_a_host_whose_test_fails_takes_along_what_was_made_for_it() -> None:
    """It was left to the tests, and those of routers left theirs behind whenever they failed."""
    with a_namespace("other") as other:
        hosts: list[str] = []
        lodgers: list[subprocess.Popen[bytes]] = []

        with pytest.raises(Failed):
            fail_in_the_middle(hosts, lodgers)

        assert [namespaces(host) for host in hosts] == [[]]
        assert [lodger.wait(10) for lodger in lodgers] == [-signal.SIGKILL]
        assert namespaces(other) == [other]


def fail_in_the_middle(hosts: list[str], lodgers: list[subprocess.Popen[bytes]]) -> None:
    """A host with a router and with DHCP, and then no end of it. Tells which host, and who lives there."""
    with a_namespace("h") as host:
        hosts.append(host)
        for name in (f"{host}.cfr-1", f"{host}.cfn-2"):
            ip("netns", "add", name)
        lodger = subprocess.Popen(("ip", "netns", "exec", f"{host}.cfn-2", "sleep", "600"))
        lodgers.append(lodger)
        until(lambda: ip("netns", "pids", f"{host}.cfn-2") == f"{lodger.pid}\n", "somebody lives there")
        raise Failed
