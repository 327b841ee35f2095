from __future__ import annotations

import pytest

from hostd.core.dhcp import Files, Lease, command, host_local, hosts_file, is_in_the_way, options_file
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


HOLDERS = {"10.0.0.5": "fa:16:3e:00:00:05", "fd00::5": "fa:16:3e:00:00:05"}


@pytest.mark.parametrize(
    "line",
    [
        "1700086400 fa:16:3e:00:00:05 10.0.0.5 web ff:56:50:4d:98:00:02",
        "1700086400 fa:16:3e:00:00:99 10.0.0.6 other *",
        "1700086400 1040187397 fd00::5 web 00:03:00:01:fa:16:3e:00:00:05",
        "1700086400 1040187397 fd00::5 web 00:01:00:01:2d:1f:4e:5a:fa:16:3e:00:00:05",
        "1700086400 1040187397 fd00::6 other 00:03:00:01:fa:16:3e:00:00:99",
        "duid 00:01:00:01:2d:1f:4e:5a:02:09:a6:9f:30:43",
        "",
    ],
)
def test_a_lease_of_who_has_the_address_is_in_nobodys_way(line: str) -> None:
    assert not is_in_the_way(line, HOLDERS)


@pytest.mark.parametrize(
    "line",
    [
        "1700086400 fa:16:3e:00:00:99 10.0.0.5 before *",
        "1700086400 1040187397 fd00::5 before 00:03:00:01:fa:16:3e:00:00:99",
        # Of a kind that says no MAC: nobody knows whose it was.
        "1700086400 1040187397 fd00::5 before 00:04:b5:5c:42:7e:1a:6e:41:2b:9c:3f:b1:c2:d3:e4:f5:06",
    ],
)
def test_a_lease_of_who_had_the_address_before_is_in_the_way(line: str) -> None:
    assert is_in_the_way(line, HOLDERS)
