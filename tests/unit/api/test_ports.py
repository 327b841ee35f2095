"""Ports and security groups: what is made, what is refused and why. The books are checked after every test."""

from __future__ import annotations

from typing import Any

import pytest

from fabric.errors import (
    AlreadyExists,
    InvalidRequest,
    NoCapacity,
    PermissionDenied,
    Reason,
    WrongState,
)
from fabric.pb.network.v1 import port_service_pb2 as prt
from fabric.pb.network.v1 import security_group_service_pb2 as grp
from tests.unit.api.network_world import ADMIN, OTHER, NetworkWorld, nebula


async def test_a_port_has_an_address_of_each_family_a_mac_and_the_default_group(world: NetworkWorld) -> None:
    await world.network("lan")
    await world.subnet("lan", "10.0.0.0/24")
    await world.subnet("lan", "fd00::/64")

    made = await world.port("lan", "web")

    four, six = (each.ip_address for each in made.fixed_ips)
    (default,) = await world.list("SecurityGroup")
    assert (four.rpartition(".")[0], six.startswith("fd00::")) == ("10.0.0", True)
    assert made.mac_address.startswith("fa:16:3e:")
    assert list(made.security_groups) == [default.id]
    assert default.name == "default"
    assert await world.get("Port", "web") == made


async def test_a_port_has_what_was_asked_for(world: NetworkWorld) -> None:
    await nebula(world)
    await world.group("web")

    made = await world.port(
        "nebula_net",
        fixed_ips=[
            prt.FixedIp(subnet="nebula_subnet", ip_address="10.0.0.77"),
            prt.FixedIp(subnet="nebula_subnet"),
        ],
        mac_address="FA:16:3E:00:00:07",
        security_groups=["web", "default"],
        allowed_address_pairs=[prt.AllowedAddressPair(cidr="10.0.0.200")],
    )

    assert made.fixed_ips[0].ip_address == "10.0.0.77"
    assert made.mac_address == "fa:16:3e:00:00:07"
    assert len(made.security_groups) == 2
    assert made.allowed_address_pairs[0].cidr == "10.0.0.200/32"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"network": "no-such"}, "port.network"),
        ({"fixed_ips": [prt.FixedIp(ip_address="10.9.0.1")]}, "port.fixed_ips[0].ip_address"),
        ({"fixed_ips": [prt.FixedIp(ip_address="10.0.0.1")]}, "port.fixed_ips[0].ip_address"),
        ({"fixed_ips": [prt.FixedIp(ip_address="10.0.0.2")]}, "port.fixed_ips[0].ip_address"),
        ({"fixed_ips": [prt.FixedIp(ip_address="nonsense")]}, "port.fixed_ips[0].ip_address"),
        ({"fixed_ips": [prt.FixedIp()]}, "port.fixed_ips[0]"),
        ({"fixed_ips": [prt.FixedIp(subnet="no-such")]}, "port.fixed_ips[0].subnet"),
        ({"fixed_ips": [prt.FixedIp(subnet="public-subnet")]}, "port.fixed_ips[0].subnet"),
        ({"fixed_ips": [prt.FixedIp(ip_address="10.0.0.9")] * 2}, "port.fixed_ips"),
        ({"fixed_ips": [prt.FixedIp(ip_address="10.0.0.9")], "no_fixed_ip": True}, "port.no_fixed_ip"),
        ({"security_groups": ["no-such"]}, "port.security_groups[0]"),
        ({"security_groups": ["default", "default"]}, "port.security_groups"),
        ({"security_groups": ["default"], "no_security_group": True}, "port.no_security_group"),
        ({"mac_address": "01:00:5e:00:00:01"}, "port.mac_address"),
        ({"mac_address": "00:00:00:00:00:00"}, "port.mac_address"),
        (
            {"allowed_address_pairs": [prt.AllowedAddressPair(cidr="0.0.0.0/0")]},
            "port.allowed_address_pairs[0].cidr",
        ),
        (
            {"allowed_address_pairs": [prt.AllowedAddressPair(cidr="10.0.0.1/8")]},
            "port.allowed_address_pairs[0].cidr",
        ),
        (
            {"allowed_address_pairs": [prt.AllowedAddressPair(cidr="fd00::%x }; flush ruleset #/64")]},
            "port.allowed_address_pairs[0].cidr",
        ),
        ({"port_security_disabled": True, "security_groups": ["default"]}, "port.security_groups"),
    ],
)
async def test_what_no_port_can_have_is_refused_by_its_field(
    world: NetworkWorld, fields: dict[str, Any], field: str
) -> None:
    await nebula(world)

    with pytest.raises(InvalidRequest) as raised:
        await world.port(**{"network": "nebula_net", **fields})

    assert raised.value.field == field
    assert await world.list("Port") == []


async def test_an_address_and_a_mac_are_given_once_and_come_back(world: NetworkWorld) -> None:
    await nebula(world)
    wish: dict[str, Any] = {"fixed_ips": [prt.FixedIp(ip_address="10.0.0.77")]}
    mac: dict[str, Any] = {"mac_address": "fa:16:3e:00:00:07"}
    first = await world.port("nebula_net", **wish, **mac)

    for again in (wish, mac):
        with pytest.raises(WrongState) as raised:
            await world.port("nebula_net", **again)
        assert raised.value.reason is Reason.RESOURCE_IN_USE
    await world.delete("Port", first.id)

    await world.port("nebula_net", **wish, **mac)


async def test_a_subnet_is_given_to_its_last_address_and_no_further(world: NetworkWorld) -> None:
    await world.network("lan")
    await world.subnet("lan", "10.0.0.0/28")
    ports = [await world.port("lan") for _ in range(12)]

    with pytest.raises(NoCapacity) as raised:
        await world.port("lan")

    assert raised.value.reason is Reason.ADDRESSES_EXHAUSTED
    assert {each.fixed_ips[0].ip_address for each in ports} == {f"10.0.0.{it}" for it in range(3, 15)}
    await world.subnet("lan", "10.0.1.0/28")
    assert (await world.port("lan")).fixed_ips[0].ip_address.startswith("10.0.1.")


async def test_groups_and_filters_of_a_port_change(world: NetworkWorld) -> None:
    await nebula(world)
    web = await world.group("web")
    await world.port("nebula_net", "p")

    changed = await world.update("Port", "p", security_groups=["web"], name="q", description="d")
    assert list(changed.security_groups) == [web.id]
    await world.update("Port", "q", security_groups=["web", "default"])
    with pytest.raises(WrongState):
        await world.update("Port", "q", port_security_disabled=True)
    bare = await world.update("Port", "q", security_groups=[], port_security_disabled=True)
    assert (bare.no_security_group, bare.port_security_disabled) == (True, True)
    await world.delete("SecurityGroup", "web")


async def test_on_anothers_network_one_may_not_endanger_its_neighbours(world: NetworkWorld) -> None:
    await world.network("lan", ADMIN, shared=True)
    await world.subnet("lan", "10.5.0.0/24", who=ADMIN)
    guest = await world.port("lan")

    dangers: tuple[dict[str, Any], ...] = (
        {"port_security_disabled": True},
        {"mac_address": "fa:16:3e:00:00:07"},
        {"allowed_address_pairs": [prt.AllowedAddressPair(cidr="10.5.0.9")]},
    )
    for fields in dangers:
        with pytest.raises(PermissionDenied):
            await world.port("lan", **fields)
    with pytest.raises(PermissionDenied):
        await world.update("Port", guest.id, port_security_disabled=True, security_groups=[])
    with pytest.raises(PermissionDenied):
        await world.port("public")


async def test_the_cookbooks_group_opens_ssh_and_http(world: NetworkWorld) -> None:
    await world.group("nebula_web_sg")
    for port in (22, 80):
        await world.rule("nebula_web_sg", protocol="tcp", port_range_min=port, port_range_max=port)

    rules = (await world.get("SecurityGroup", "nebula_web_sg")).rules

    assert [(it.direction, it.protocol, it.port_range_min) for it in rules][2:] == [
        (grp.DIRECTION_INGRESS, "tcp", 22),
        (grp.DIRECTION_INGRESS, "tcp", 80),
    ]
    assert [it.direction for it in rules][:2] == [grp.DIRECTION_EGRESS] * 2
    assert not rules[0].HasField("port_range_min")


async def test_every_project_has_a_default_group_of_its_own_that_stays(world: NetworkWorld) -> None:
    (mine,), (theirs,) = await world.list("SecurityGroup"), await world.list("SecurityGroup", OTHER)

    assert mine.id != theirs.id
    assert [it.remote_group for it in mine.rules] == [mine.id, mine.id, "", ""]
    with pytest.raises(WrongState):
        await world.delete("SecurityGroup", "default")
    with pytest.raises(WrongState):
        await world.update("SecurityGroup", "default", name="mine")
    with pytest.raises(AlreadyExists):
        await world.group("default")
    await world.delete("SecurityGroupRule", mine.rules[0].id)
    assert len((await world.get("SecurityGroup", "default")).rules) == 3


async def test_a_group_in_use_is_not_deleted(world: NetworkWorld) -> None:
    await nebula(world)
    await world.group("db")
    await world.group("web")
    await world.port("nebula_net", "p", security_groups=["db"])
    rule = await world.rule("web", protocol="tcp", port_range_min=3306, remote_group="db")
    await world.rule("db", remote_group="db")

    with pytest.raises(WrongState, match="ports"):
        await world.delete("SecurityGroup", "db")
    await world.delete("Port", "p")
    with pytest.raises(WrongState, match="rules"):
        await world.delete("SecurityGroup", "db")
    await world.delete("SecurityGroupRule", rule.id)
    await world.delete("SecurityGroup", "db")
    await world.delete("SecurityGroup", "web")


async def test_a_group_takes_its_hold_of_others_with_it(world: NetworkWorld) -> None:
    await world.group("db")
    await world.group("web")
    await world.rule("web", remote_group="db")
    await world.delete("SecurityGroup", "web")

    await world.delete("SecurityGroup", "db")


async def test_rules_are_listed_shown_and_refused_twice(world: NetworkWorld) -> None:
    await world.group("web")
    made = await world.rule("web", protocol="tcp", port_range_min=22)

    with pytest.raises(AlreadyExists, match=made.id):
        await world.rule("web", protocol="tcp", port_range_min=22, description="again")
    assert await world.get("SecurityGroupRule", made.id) == made
    assert made.id in {it.id for it in await world.list("SecurityGroupRule", security_group="web")}
    assert len(await world.list("SecurityGroupRule")) == 4 + 3
    with pytest.raises(InvalidRequest) as raised:
        await world.rule("web", protocol="tcp", port_range_min=22, port_range_max=1)
    assert raised.value.field == "rule.port_range_max"
