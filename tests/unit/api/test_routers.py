"""Routers and floating IPs: what leads where, and what stays because of it. The books are checked after every test."""

from __future__ import annotations

import pytest

from fabric.errors import (
    InvalidRequest,
    PermissionDenied,
    Reason,
    WrongState,
)
from fabric.pb.network.v1 import port_service_pb2 as prt
from fabric.store.keys import VNI
from tests.unit.api.network_world import ADMIN, NetworkWorld, nebula


async def test_a_router_joins_a_subnet_at_its_gateway_and_leads_out(world: NetworkWorld) -> None:
    await nebula(world)

    router = await world.get("Router", "nebula_router")

    assert [each.ip_address for each in router.interfaces] == ["10.0.0.1"]
    assert router.external_ips[0].ip_address.startswith("172.24.4.")
    assert not router.snat_disabled


async def test_a_router_is_refused_what_would_make_a_packet_go_two_ways(world: NetworkWorld) -> None:
    await nebula(world)
    await world.network("lan")
    await world.subnet("lan", "10.0.0.0/16", "wide")
    await world.subnet("lan", "172.24.0.0/16", "outside")
    await world.subnet("lan", "10.9.0.0/24", "isolated", no_gateway=True)

    for subnet in ("wide", "outside", "isolated"):
        with pytest.raises(InvalidRequest) as raised:
            await world.add_interface("nebula_router", subnet)
        assert raised.value.field == "subnet"
    await world.router("r2")
    await world.add_interface("r2", "outside")
    with pytest.raises(InvalidRequest, match="overlaps"):
        await world.update("Router", "r2", external_network="public")
    with pytest.raises(InvalidRequest):
        await world.update("Router", "r2", external_network="lan")
    with pytest.raises(InvalidRequest):
        await world.add_interface("r2", "public-subnet")


async def test_no_two_routers_or_networks_have_the_same_tunnel(world: NetworkWorld) -> None:
    for number in range(10):
        await world.network(f"n{number}")
        await world.router(f"r{number}")
    held = (await world.store.list(VNI.under())).entries
    await world.delete("Router", "r0")

    assert len(held) == 20
    assert len((await world.store.list(VNI.under())).entries) == 19


async def test_a_subnet_has_one_router(world: NetworkWorld) -> None:
    await nebula(world)
    await world.router("r2")

    for router in ("r2", "nebula_router"):
        with pytest.raises(WrongState) as raised:
            await world.add_interface(router, "nebula_subnet")
        assert raised.value.reason is Reason.RESOURCE_IN_USE
    with pytest.raises(InvalidRequest):
        await world.remove_interface("r2", "nebula_subnet")


async def test_a_router_with_interfaces_is_not_deleted(world: NetworkWorld) -> None:
    await nebula(world)

    with pytest.raises(WrongState) as raised:
        await world.delete("Router", "nebula_router")
    await world.remove_interface("nebula_router", "nebula_subnet")
    await world.delete("Router", "nebula_router")

    assert raised.value.reason is Reason.RESOURCE_IN_USE


async def test_nobody_makes_themselves_the_gateway_of_anothers_network(world: NetworkWorld) -> None:
    await world.network("lan", ADMIN, shared=True)
    made = await world.subnet("lan", "10.5.0.0/24", who=ADMIN)
    await world.router("mine")

    with pytest.raises(PermissionDenied):
        await world.add_interface("mine", made.id)


async def test_a_gateway_changes_and_its_addresses_come_back(world: NetworkWorld) -> None:
    await world.network("other-public", ADMIN, external=True)
    await world.subnet("other-public", "198.51.100.0/24", who=ADMIN)
    await world.subnet("other-public", "2001:db8::/64", who=ADMIN)
    await nebula(world)

    moved = await world.update("Router", "nebula_router", external_network="other-public", snat_disabled=True)

    assert len(moved.external_ips) == 2
    assert moved.snat_disabled
    await world.delete("Network", "public", ADMIN)
    await world.update("Router", "nebula_router", external_network="other-public")


async def test_a_floating_ip_leads_to_a_port_and_elsewhere_and_nowhere(world: NetworkWorld) -> None:
    await nebula(world)
    one, two = await world.port("nebula_net", "one"), await world.port("nebula_net", "two")
    router = await world.get("Router", "nebula_router")

    floating = await world.floating_ip("public", port="one")
    assert (floating.port, floating.fixed_ip, floating.router_id) == (
        one.id,
        one.fixed_ips[0].ip_address,
        router.id,
    )
    again = await world.update("FloatingIp", floating.ip_address, port="one", description="web")
    assert again.port == one.id
    moved = await world.update("FloatingIp", floating.ip_address, port="two")
    assert moved.port == two.id
    loose = await world.update("FloatingIp", floating.id, port="")
    assert (loose.port, loose.fixed_ip, loose.router_id) == ("", "", "")
    assert await world.get("FloatingIp", floating.ip_address) == loose


async def test_a_floating_ip_can_be_asked_for_by_address(world: NetworkWorld) -> None:
    made = await world.floating_ip("public", ip_address="172.24.4.10")

    assert made.ip_address == "172.24.4.10"
    with pytest.raises(WrongState):
        await world.floating_ip("public", ip_address="172.24.4.10")
    for wrong in ("172.24.4.1", "10.0.0.5", "fd00::1", "x"):
        with pytest.raises(InvalidRequest) as raised:
            await world.floating_ip("public", ip_address=wrong)
        assert raised.value.field == "floating_ip.ip_address"


async def test_one_floating_ip_leads_to_an_address(world: NetworkWorld) -> None:
    await nebula(world)
    await world.port("nebula_net", "p")
    await world.floating_ip("public", port="p")

    with pytest.raises(WrongState) as raised:
        await world.floating_ip("public", port="p")

    assert raised.value.reason is Reason.RESOURCE_IN_USE


async def test_of_several_addresses_one_says_which(world: NetworkWorld) -> None:
    await nebula(world)
    port = await world.port("nebula_net", "p", fixed_ips=[prt.FixedIp(subnet="nebula_subnet")] * 2)
    first, second = (each.ip_address for each in port.fixed_ips)

    with pytest.raises(InvalidRequest) as raised:
        await world.floating_ip("public", port="p")
    assert raised.value.field == "floating_ip.fixed_ip"
    floating = await world.floating_ip("public", port="p", fixed_ip=first)
    assert (await world.floating_ip("public", port="p", fixed_ip=second)).fixed_ip == second
    await world.delete("Port", "p")
    assert (await world.get("FloatingIp", floating.id)).port == ""


async def test_a_floating_ip_needs_a_router_that_leads_there(world: NetworkWorld) -> None:
    await world.network("lan")
    await world.subnet("lan", "10.0.0.0/24", "s")
    await world.port("lan", "p")
    await world.port("lan", "bare", no_fixed_ip=True)

    with pytest.raises(WrongState):
        await world.floating_ip("public", port="p")
    await world.router("r")
    await world.add_interface("r", "s")
    with pytest.raises(WrongState):
        await world.floating_ip("public", port="p")
    await world.update("Router", "r", external_network="public")
    await world.floating_ip("public", port="p")
    with pytest.raises(InvalidRequest):
        await world.floating_ip("public", port="bare")
    with pytest.raises(InvalidRequest):
        await world.floating_ip("lan")


async def test_what_a_floating_ip_goes_by_stays(world: NetworkWorld) -> None:
    await nebula(world)
    await world.port("nebula_net", "p")
    floating = await world.floating_ip("public", port="p")

    with pytest.raises(WrongState):
        await world.remove_interface("nebula_router", "nebula_subnet")
    with pytest.raises(WrongState):
        await world.update("Router", "nebula_router", external_network="")
    await world.delete("Port", "p")

    assert (await world.get("FloatingIp", floating.id)).port == ""
    await world.update("Router", "nebula_router", external_network="")
