"""What the checker catches of ports: each rule broken on purpose, and what is no breach let through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from fabric.model.instance import Instance, Location
from fabric.model.network import FixedAddress, NetworkPort, Port
from fabric.store import keys
from fabric.store.codec import encode
from tests.history.ports import Ports
from tests.sim.checker_history import active, located

SERVER = active()
LOCATION = located()
FREE = NetworkPort(
    id="port",
    name="",
    project_id="p",
    network_id="net",
    mac="fa:16:3e:00:00:01",
    fixed_addresses=(FixedAddress(subnet_id="sub", address="10.0.0.7"),),
    security_group_ids=("group",),
    quota_slot=3,
)
BOUND = replace(FREE, instance_id=SERVER.id)
OWNER = keys.PORT.at("p", "port")
HELD = {
    keys.ADDRESS.at("sub", "10.0.0.7"): OWNER,
    keys.PORT_MAC.at("net", FREE.mac): OWNER,
    keys.SECURITY_GROUP_MEMBER.at("group", "port"): "p",
    keys.NETWORK_USE.at("p", "ports", "3"): "port",
}
INTERFACE = Port(
    id="port",
    network_id="net",
    network_name="net",
    mac=FREE.mac,
    address="10.0.0.7",
    prefix_length=24,
    gateway="",
    vni=7,
)
WITH_PORT = replace(
    SERVER,
    request=replace(SERVER.request, guest=replace(SERVER.request.guest, ports=(INTERFACE,))),
)


def write(ports: Ports, port: NetworkPort | None, held: Mapping[str, str | None]) -> None:
    """One transaction."""
    ports.wrote(OWNER, None if port is None else encode(port))
    for key, owner in held.items():
        ports.wrote(key, None if owner is None else owner.encode())


def wrong(ports: Ports, *, port_ids: tuple[str, ...] = (), record: Instance | None = None) -> str:
    """What is wrong, where the server's index row names these ports and its record is this."""
    ports.wrote(keys.LOCATION.at(SERVER.id), b"")
    if record is not None:
        ports.has_record(record)
    locations: Mapping[str, Location] = {SERVER.id: replace(LOCATION, port_ids=port_ids)}
    return ports.wrong(locations, {} if record is None else {record.id: record}) or ""


@pytest.fixture
def ports() -> Ports:
    """A port that is nobody's."""
    made = Ports()
    write(made, FREE, HELD)
    return made


def test_a_port_that_comes_is_bound_is_let_go_of_and_ends_is_no_breach(ports: Ports) -> None:
    assert wrong(ports) == ""
    write(ports, BOUND, {})
    assert wrong(ports, port_ids=("port",)) == ""
    assert wrong(ports, port_ids=("port",), record=WITH_PORT) == ""
    assert ports.unsettled({SERVER.id: WITH_PORT}) is None
    write(ports, FREE, {})
    assert wrong(ports, record=SERVER) == ""
    write(ports, None, dict.fromkeys(HELD))
    assert wrong(ports, record=SERVER) == ""
    assert ports.unsettled({}) is None


@pytest.mark.parametrize("key", sorted(HELD))
def test_p1_a_port_without_what_it_says_it_holds(ports: Ports, key: str) -> None:
    write(ports, FREE, {key: None})

    assert wrong(ports).startswith("P1")


@pytest.mark.parametrize("key", sorted(HELD))
def test_p1_a_port_that_ended_and_left_something(ports: Ports, key: str) -> None:
    write(ports, None, {each: None for each in HELD if each != key})

    assert wrong(ports).startswith("P1")


def test_p1_an_address_that_another_was_given(ports: Ports) -> None:
    write(ports, FREE, {keys.ADDRESS.at("sub", "10.0.0.7"): keys.PORT.at("p", "other")})

    assert wrong(ports).startswith("P1")


def test_p2_a_port_bound_to_a_server_whose_row_does_not_name_it(ports: Ports) -> None:
    write(ports, BOUND, {})

    assert wrong(ports).startswith("P2")


def test_p2_a_row_that_names_a_port_that_is_not_bound(ports: Ports) -> None:
    assert wrong(ports, port_ids=("port",)).startswith("P2")


def test_p3_a_server_that_has_a_port_that_is_not_its_own(ports: Ports) -> None:
    assert wrong(ports, record=WITH_PORT).startswith("P3")


def test_p4_a_port_that_its_server_has_not(ports: Ports) -> None:
    write(ports, BOUND, {})

    assert (ports.unsettled({SERVER.id: SERVER}) or "").startswith("P4")
    assert (ports.unsettled({}) or "").startswith("P4")


def test_p4_an_address_that_is_held_for_nobody(ports: Ports) -> None:
    write(ports, FREE, {keys.ADDRESS.at("sub", "10.0.0.8"): OWNER})

    assert (ports.unsettled({}) or "").startswith("P4")
