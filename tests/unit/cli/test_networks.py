"""The network's nouns: the words of the cookbook do what they say, and what is refused says why, with the exit code for it."""

from __future__ import annotations

import json

import pytest

from tests.unit.cli.shell import Shell


@pytest.fixture
def outside(shell: Shell) -> Shell:
    """A command line with a network that leads out."""
    shell.ok("network", "create", "--external", "public")
    shell.ok("subnet", "create", "--network", "public", "--subnet-range", "172.24.4.0/24", "public_subnet")
    return shell


@pytest.fixture
def office(outside: Shell) -> Shell:
    """And one with a tenant's network that is joined to it."""
    outside.ok("network", "create", "office")
    outside.ok("subnet", "create", "--network", "office", "--subnet-range", "10.0.0.0/24", "office_subnet")
    outside.ok("router", "create", "--external-gateway", "public", "office_router")
    outside.ok("router", "add", "subnet", "office_router", "office_subnet")
    return outside


def test_the_cookbook_ends_with_a_port_that_is_reached_from_outside(office: Shell) -> None:
    office.ok("security", "group", "create", "nebula_web_sg")
    for port in ("22", "80"):
        office.ok(
            "security", "group", "rule", "create", "--proto", "tcp", "--dst-port", port, "nebula_web_sg"
        )
    office.ok("port", "create", "--network", "office", "--security-group", "nebula_web_sg", "web")
    office.ok("floating", "ip", "create", "--floating-ip-address", "172.24.4.10", "--port", "web", "public")

    shown = office.json("floating", "ip", "show", "172.24.4.10")
    port = office.json("port", "show", "web")
    rules = office.json("security", "group", "rule", "list", "nebula_web_sg")

    assert shown["port_id"] == port["id"]
    assert shown["fixed_ip_address"] == port["fixed_ips"][0]["ip_address"]
    assert [it["Port Range"] for it in rules if it["Direction"] == "ingress"] == ["22:22", "80:80"]
    assert office.ok("port", "list", "-f", "value", "-c", "Name") == "web\n"


def test_a_network_is_changed_and_deleted(shell: Shell) -> None:
    made = shell.json("network", "create", "--mtu", "1400", "--description", "Office", "office")
    shell.ok("network", "set", "--name", "renamed", "--share", "office")

    shown = shell.json("network", "show", "renamed")
    assert (made["mtu"], made["kind"], made["description"]) == (1400, "tenant", "Office")
    assert (shown["id"], shown["shared"]) == (made["id"], True)
    assert shown["provider:segmentation_id"] > 0
    shell.ok("network", "set", "--no-share", "renamed")
    shell.ok("network", "delete", "renamed")
    assert shell.run("network", "show", "renamed").exit_code == 4


def test_an_external_network_says_what_it_is_on(shell: Shell) -> None:
    made = shell.json("network", "create", "--external", "--provider-physical-network", "fibre", "outside")

    assert made["provider:physical_network"] == "fibre"
    assert shell.run("network", "create", "--provider-physical-network", "fibre", "inside").exit_code == 2


def test_a_subnet_says_what_guests_are_told(office: Shell) -> None:
    made = office.json(
        "subnet",
        "create",
        *("--network", "office", "--subnet-range", "10.1.0.0/24", "--gateway", "10.1.0.254"),
        *("--allocation-pool", "start=10.1.0.10,end=10.1.0.19", "--dns-nameserver", "9.9.9.9"),
        *("--host-route", "destination=10.9.0.0/16,gateway=10.1.0.9", "--no-dhcp", "second"),
    )
    assert made["gateway_ip"] == "10.1.0.254"
    assert made["allocation_pools"] == [{"start": "10.1.0.10", "end": "10.1.0.19"}]
    assert made["host_routes"] == [{"destination": "10.9.0.0/16", "nexthop": "10.1.0.9"}]
    assert (made["ip_version"], made["enable_dhcp"]) == (4, False)

    office.ok("subnet", "set", "--dns-nameserver", "1.1.1.1", "--dhcp", "second")
    office.ok("subnet", "set", "--no-host-route", "--no-allocation-pool", "--allocation-pool",
              "start=10.1.0.30,end=10.1.0.39", "second")  # fmt: skip
    shown = office.json("subnet", "show", "second")
    assert shown["dns_nameservers"] == ["9.9.9.9", "1.1.1.1"]
    assert (shown["enable_dhcp"], shown["host_routes"]) == (True, [])
    assert shown["allocation_pools"] == [{"start": "10.1.0.30", "end": "10.1.0.39"}]
    assert len(office.json("subnet", "list", "--network", "office")) == 2
    office.ok("subnet", "delete", "second")


def test_a_port_has_what_was_asked_for_and_changes(office: Shell) -> None:
    office.ok("security", "group", "create", "db")
    made = office.json(
        "port",
        "create",
        *("--network", "office", "--fixed-ip", "subnet=office_subnet,ip-address=10.0.0.7"),
        *("--mac-address", "fa:16:3e:00:00:07", "--allowed-address", "ip-address=10.0.0.200", "web"),
    )
    assert (made["fixed_ips"][0]["ip_address"], made["mac_address"]) == ("10.0.0.7", "fa:16:3e:00:00:07")
    assert made["allowed_address_pairs"] == [
        {"ip_address": "10.0.0.200/32", "mac_address": "fa:16:3e:00:00:07"}
    ]

    office.ok("port", "set", "--security-group", "db", "--no-allowed-address", "web")
    assert len(office.json("port", "show", "web")["security_group_ids"]) == 2
    office.ok("port", "set", "--no-security-group", "--disable-port-security", "--name", "bare", "web")
    shown = office.json("port", "show", "bare")
    assert (shown["security_group_ids"], shown["port_security_enabled"]) == ([], False)
    office.ok("port", "delete", "bare")
    assert office.json("port", "list") == []


def test_a_router_leads_out_until_it_is_told_otherwise(office: Shell) -> None:
    shown = office.json("router", "show", "office_router")
    assert shown["external_fixed_ips"][0]["ip_address"].startswith("172.24.4.")
    assert shown["interfaces"][0]["ip_address"] == "10.0.0.1"

    office.ok("router", "set", "--disable-snat", "--description", "d", "office_router")
    office.ok("router", "unset", "--external-gateway", "office_router")
    shown = office.json("router", "show", "office_router")
    assert (shown["enable_snat"], shown["external_network_id"]) == (False, None)
    office.ok("router", "set", "--external-gateway", "public", "office_router")
    assert office.run("router", "delete", "office_router").exit_code == 5
    office.ok("router", "remove", "subnet", "office_router", "office_subnet")
    office.ok("router", "delete", "office_router")
    assert office.json("router", "list") == []


def test_a_floating_ip_is_led_and_let_go(office: Shell) -> None:
    office.ok("port", "create", "--network", "office", "web")
    address = office.json("floating", "ip", "create", "public")["floating_ip_address"]

    office.ok("floating", "ip", "set", "--port", "web", address)
    assert office.json("floating", "ip", "list")[0]["Fixed IP Address"] is not None
    office.ok("floating", "ip", "unset", "--port", address)
    assert office.json("floating", "ip", "show", address)["port_id"] is None
    office.ok("floating", "ip", "delete", address)
    assert office.json("floating", "ip", "list") == []


def test_rules_are_written_as_in_openstack(shell: Shell) -> None:
    shell.ok("security", "group", "create", "web")
    ping = shell.json("security", "group", "rule", "create", "--protocol", "icmp", "--icmp-type", "8", "web")
    out = shell.json(
        *("security", "group", "rule", "create", "--egress", "--ethertype", "IPv6", "--proto", "udp"),
        *("--dst-port", "53:54", "--remote-ip", "fd00::/64", "web"),
    )
    friends = shell.json("security", "group", "rule", "create", "--remote-group", "default", "web")

    assert (ping["protocol"], ping["port_range_min"], ping["port_range_max"]) == ("icmp", 8, None)
    assert (out["direction"], out["ether_type"], out["remote_ip_prefix"]) == ("egress", "IPv6", "fd00::/64")
    assert (out["port_range_min"], out["port_range_max"]) == (53, 54)
    assert friends["remote_group_id"] == shell.json("security", "group", "show", "default")["id"]
    assert "ingress IPv4 icmp type=8" in shell.ok("security", "group", "show", "web")
    assert shell.json("security", "group", "rule", "show", ping["id"]) == ping
    shell.ok("security", "group", "rule", "delete", ping["id"], friends["id"])
    assert len(shell.json("security", "group", "rule", "list", "web")) == 3
    shell.ok("security", "group", "set", "--name", "site", "web")
    shell.ok("security", "group", "delete", "site")


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("network create office", 5, "office"),
        ("network delete office", 5, "ports or routers"),
        ("network show nothing", 4, "nothing"),
        ("network set office", 2, "nothing to change"),
        ("subnet set office_subnet", 2, "nothing to change"),
        ("router set office_router", 2, "nothing to change"),
        ("security group set default", 2, "nothing to change"),
        ("subnet create --network office --subnet-range 10.0.0.0/25 x", 2, "overlaps"),
        ("subnet create --network office --subnet-range 10.1.0.5/24 x", 2, "10.1.0.0/24"),
        (
            "subnet create --network office --subnet-range 10.1.0.0/24 --gateway 10.2.0.1 x",
            2,
            "subnet.gateway",
        ),
        ("subnet create --network office --subnet-range 10.1.0.0/24 --ip-version 6 x", 2, "IPv6"),
        (
            "subnet create --network office --subnet-range 10.1.0.0/24 --allocation-pool 10.1.0.5-10.1.0.9 x",
            2,
            "start=START,end=END",
        ),
        ("subnet delete office_subnet", 5, "in use"),
        ("port create --network nowhere x", 2, "port.network"),
        ("port create --network office --fixed-ip ip-address=10.7.0.1 x", 2, "port.fixed_ips[0].ip_address"),
        ("router unset office_router", 2, "--external-gateway"),
        ("router add subnet office_router office_subnet", 5, "already"),
        ("floating ip create office", 2, "not external"),
        ("floating ip unset 172.24.4.9", 2, "--port"),
        ("security group delete default", 5, "default"),
        ("security group rule create --dst-port 22 default", 2, "rule.port_range_min"),
        ("security group rule create --proto tpc default", 2, "rule.protocol"),
        ("security group rule create --proto tcp --dst-port ssh default", 2, "ssh"),
        ("security group rule create --dst-port 22 --icmp-type 8 default", 2, "--icmp-type"),
    ],
)
def test_what_is_refused_says_why(office: Shell, line: str, code: int, says: str) -> None:
    result = office.run(*line.split())

    assert result.exit_code == code, result.output
    assert says in result.stderr


def test_the_last_address_is_followed_by_advice(outside: Shell) -> None:
    outside.ok("network", "create", "tiny")
    outside.ok("subnet", "create", "--network", "tiny", "--subnet-range", "10.0.0.0/29", "tiny_subnet")
    for number in range(4):
        outside.ok("port", "create", "--network", "tiny", f"p{number}")

    result = outside.run("port", "create", "--network", "tiny", "more")

    assert result.exit_code == 6
    assert "allocation pool" in result.stderr


def test_a_packet_is_followed_through_what_is_known(office: Shell) -> None:
    office.ok("port", "create", "--network", "office", "office_port")
    result = office.run("network", "trace", "--from", "office_port", "--to", "198.51.100.7", "-f", "json")

    steps = {each["Step"]: each["Outcome"] for each in json.loads(result.stdout)}
    assert steps == {"host": "blocked", "egress": "passes", "route": "blocked"}
    assert result.stderr.endswith("to 198.51.100.7: blocked\n")
    assert office.run("network", "trace", "--from", "office_port").exit_code == 2


def test_an_address_of_a_port_needs_the_port_and_says_so_in_the_commands_words(office: Shell) -> None:
    address = office.json("floating", "ip", "create", "public")["floating_ip_address"]
    result = office.run("floating", "ip", "set", "--fixed-ip-address", "10.0.0.9", address)

    assert result.exit_code == 2
    assert "--port" in result.stderr


@pytest.mark.parametrize("option", ["--remote-ip", "--remote-group", "--proto"])
@pytest.mark.parametrize("nothing", ["", " "])
def test_a_rule_that_an_empty_variable_was_to_narrow_down_is_not_made(
    office: Shell, option: str, nothing: str
) -> None:
    office.ok("security", "group", "create", "narrow")
    before = office.json("security", "group", "rule", "list", "narrow")
    result = office.run("security", "group", "rule", "create", option, nothing, "narrow")

    assert result.exit_code == 2
    assert office.json("security", "group", "rule", "list", "narrow") == before
