"""What joins servers to networks, in OpenStack's words."""

from __future__ import annotations

import pytest

from fabric.errors import QuotaExceeded
from fabric.pb.compute.v1 import instance_service_pb2 as pb
from tests.unit.cli.shell import Shell


@pytest.fixture
def office(shell: Shell) -> Shell:
    """A server `web` with two ports on `red`, of which the second alone is behind a router that leads out."""
    server = shell.api.put_instance("web")
    del server.status.addresses[:]
    for name, cidr in (("red", "10.0.0.0/24"), ("blue", "10.1.0.0/24")):
        shell.ok("network", "create", name)
        shell.ok("subnet", "create", "--network", name, "--subnet-range", cidr, f"{name}-subnet")
    shell.ok("network", "create", "--external", "public")
    shell.ok("subnet", "create", "--network", "public", "--subnet-range", "172.24.4.0/24", "public-subnet")
    shell.ok("router", "create", "edge")
    shell.ok("router", "set", "--external-gateway", "public", "edge")
    shell.ok("router", "add", "subnet", "edge", "blue-subnet")
    for name in ("red", "blue"):
        port = shell.json("port", "create", "--network", name, f"{name}-port")
        shell.api.network.bind(port["id"], server.id)
        server.status.addresses.add(
            network_name=name,
            network_id=port["network_id"],
            port_id=port["id"],
            address=port["fixed_ips"][0]["ip_address"],
            kind="FIXED",
        )
    return shell


def attached(shell: Shell) -> pb.AttachInterfaceRequest:
    (sent,) = shell.api.requests("attach_interface")
    assert isinstance(sent, pb.AttachInterfaceRequest)
    return sent


@pytest.mark.parametrize(
    ("words", "network", "port", "addresses"),
    [
        (["network", "web", "red"], "red", "", []),
        (["port", "web", "red-port"], "", "red-port", []),
        (["fixed", "ip", "web", "red"], "red", "", []),
        (["fixed", "ip", "--fixed-ip-address", "10.0.0.9", "web", "red"], "red", "", ["10.0.0.9"]),
    ],
)
def test_interfaces_are_added_in_openstacks_words(
    office: Shell, words: list[str], network: str, port: str, addresses: list[str]
) -> None:
    office.ok("server", "add", *words)

    sent = attached(office)
    assert (sent.instance, sent.network, sent.port) == ("web", network, port)
    assert [each.ip_address for each in sent.fixed_ips] == addresses


@pytest.mark.parametrize("words", [["port", "web", "10.0.0.9"], ["fixed", "ip", "web", "10.0.0.9"]])
def test_an_interface_is_removed_by_its_port_or_its_address(office: Shell, words: list[str]) -> None:
    office.ok("server", "remove", *words)

    (sent,) = office.api.requests("detach_interface")
    assert (sent.instance, sent.port) == ("web", "10.0.0.9")


def test_a_network_is_removed_with_every_interface_on_it(office: Shell) -> None:
    server = office.api.instances["web"]
    first = server.status.addresses[0]
    red = {"network_name": "red", "network_id": first.network_id}
    server.status.addresses.add(port_id=first.port_id, address="fd00::9", **red)
    server.status.addresses.add(port_id="another", address="10.0.0.99", **red)
    office.ok("network", "create", "green")

    office.ok("server", "remove", "network", "web", "red")

    assert [each.port for each in office.api.requests("detach_interface")] == [first.port_id, "another"]
    assert "no interface on network green" in office.run("server", "remove", "network", "web", "green").stderr


def test_a_network_is_removed_by_the_name_that_it_has_now(office: Shell) -> None:
    """A server shows the names that its networks had when it came to be on them: the new one was not found, and by the old one also the
    interfaces on another network that has it by now were pulled out.
    """
    office.ok("network", "set", "--name", "office", "red")
    office.ok("network", "create", "red")

    office.ok("server", "remove", "network", "web", "office")
    by_old_name = office.run("server", "remove", "network", "web", "red")

    (port_id,) = (each.port for each in office.api.requests("detach_interface"))
    assert port_id == office.api.instances["web"].status.addresses[0].port_id
    assert "no interface on network red" in by_old_name.stderr


def test_a_floating_ip_leads_to_the_address_that_a_router_leads_out_of(office: Shell) -> None:
    leading = office.json("floating", "ip", "create", "public")
    blue = office.json("port", "show", "blue-port")

    office.ok("server", "add", "floating", "ip", "web", leading["floating_ip_address"])
    shown = office.json("floating", "ip", "show", leading["id"])
    assert (shown["port_id"], shown["fixed_ip_address"]) == (blue["id"], blue["fixed_ips"][0]["ip_address"])

    office.ok("server", "remove", "floating", "ip", "web", leading["floating_ip_address"])
    assert office.json("floating", "ip", "show", leading["id"])["port_id"] is None
    again = office.run("server", "remove", "floating", "ip", "web", leading["floating_ip_address"])
    assert (again.exit_code, "does not lead to server web" in again.stderr) == (1, True)


def test_a_floating_ip_that_no_router_leads_says_why(office: Shell) -> None:
    leading = office.json("floating", "ip", "create", "public")
    red = office.json("port", "show", "red-port")["fixed_ips"][0]["ip_address"]

    refused = office.run(
        "server", "add", "floating", "ip", "--fixed-ip-address", red, "web", leading["floating_ip_address"]
    )
    nothing = office.run(
        "server", "add", "floating", "ip", "--fixed-ip-address", "10.9.9.9", "web", leading["id"]
    )

    assert (refused.exit_code, "no router leads" in refused.stderr) == (5, True)
    assert (nothing.exit_code, "has no address 10.9.9.9" in nothing.stderr) == (1, True)


def test_another_address_is_tried_only_where_no_way_leads_to_the_first(office: Shell) -> None:
    """Whatever came in the way was taken for that, and the floating IP led to the server's second address."""
    leading = office.json("floating", "ip", "create", "public")
    office.api.fail["update_floating_ip"] = [QuotaExceeded("no more changes today")]

    refused = office.run("server", "add", "floating", "ip", "web", leading["id"])

    assert "no more changes today" in refused.stderr
    assert len(office.api.requests("update_floating_ip")) == 1
    assert office.json("floating", "ip", "show", leading["id"])["port_id"] is None


def test_a_server_is_put_into_a_group_and_out_of_it(office: Shell) -> None:
    office.ok("server", "add", "security", "group", "web", "nebula_web_sg")
    office.ok("server", "remove", "security", "group", "web", "nebula_web_sg")

    for method in ("add_instance_security_group", "remove_instance_security_group"):
        (sent,) = office.api.requests(method)
        assert (sent.instance, sent.security_group) == ("web", "nebula_web_sg")


def test_ports_say_whose_they_are_and_are_listed_by_server(office: Shell) -> None:
    office.ok("port", "create", "--network", "red", "free")
    server = office.api.instances["web"]

    assert office.json("port", "show", "red-port")["device_id"] == server.id
    assert office.json("port", "show", "free")["device_id"] == ""
    listed = office.json("port", "list", "--server", "web")
    assert [(each["Name"], each["Server"]) for each in listed] == [
        ("blue-port", server.id),
        ("red-port", server.id),
    ]


def test_a_server_shows_its_addresses_by_network(office: Shell) -> None:
    server = office.api.instances["web"]
    blue = server.status.addresses[1]
    server.status.addresses.add(
        network_name="blue",
        network_id=blue.network_id,
        port_id=blue.port_id,
        address="172.24.4.9",
        kind="FLOATING",
    )

    shown = office.json("server", "show", "web")["addresses"]

    assert list(shown) == ["red", "blue"]
    assert shown["blue"] == [blue.address, "172.24.4.9"]
