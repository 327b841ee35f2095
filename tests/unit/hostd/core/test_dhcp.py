from __future__ import annotations

import pytest

from hostd.core.dhcp import Files, Lease, command, host_local, hosts_file, options_file
from hostd.core.ruleset import Subnet
from tests.conformance.guests import a_port

LEASE = Lease(port=a_port(1, mtu=1450), hostname="web-1")


def test_a_host_line_ties_mac_address_and_name() -> None:
    assert hosts_file([LEASE]) == "fa:16:3e:00:00:01,set:pfa163e000001,10.77.0.2,web-1,86400s\n"


@pytest.mark.parametrize("hostname", ["", "a b", "x,set:all", "-x", "x\ny", "x" * 64, "ü"])
def test_a_hostname_that_is_none_is_left_out(hostname: str) -> None:
    line = hosts_file([Lease(port=a_port(1), hostname=hostname)])

    assert line == "fa:16:3e:00:00:01,set:pfa163e000001,10.77.0.2,86400s\n"


def test_the_default_route_is_in_both_options() -> None:
    """RFC 3442: a client that understands option 121 must ignore option 3."""
    lines = options_file([LEASE]).splitlines()

    assert "tag:pfa163e000001,option:router,10.77.0.1" in lines
    route = "169.254.169.254/32,10.77.0.1,0.0.0.0/0,10.77.0.1"
    assert f"tag:pfa163e000001,option:classless-static-route,{route}" in lines
    assert "tag:pfa163e000001,option:mtu,1450" in lines


def test_no_name_servers_is_no_option() -> None:
    assert "dns-server" not in options_file([Lease(port=a_port(1, dns_servers=()), hostname="x")])


def test_only_fixed_hosts_are_served_and_no_names() -> None:
    files = Files(hosts="/h", options="/o", leases="/l")

    words = command(host_local("br0", [Subnet.of("10.77.0.1", 24)], ()), files, "nobody")

    assert "--dhcp-range=10.77.0.0,static,255.255.255.0,86400s" in words
    assert {"--port=0", "--bind-interfaces", "--interface=br0", "--conf-file=/dev/null"} <= set(words)
