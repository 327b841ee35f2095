"""Networks and subnets: what is made, what is refused and why. The books are checked after every test."""

from __future__ import annotations

from typing import Any

import pytest

from fabric.errors import (
    AlreadyExists,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    Reason,
    WrongState,
)
from fabric.model.network import Network
from fabric.pb.network.v1 import subnet_service_pb2 as sub
from fabric.store.base import Txn
from fabric.store.codec import encode
from fabric.store.keys import NETWORK, NETWORK_NAME
from tests.unit.api.network_world import ADMIN, OTHER, OWN, NetworkWorld, nebula


async def test_a_network_is_made_found_by_name_and_id_and_deleted_with_its_subnets(
    world: NetworkWorld,
) -> None:
    made = await world.network("nebula_net", description="Office")
    await world.subnet("nebula_net", "10.0.0.0/24")
    await world.subnet("nebula_net", "fd00::/64")

    by_name, by_id = await world.get("Network", "nebula_net"), await world.get("Network", made.id)
    await world.delete("Network", "nebula_net")

    assert by_name == by_id
    assert (made.kind, made.mtu, made.project_id, made.vni) == ("tenant", 1450, "own", 0)
    assert len(by_id.subnet_ids) == 2
    with pytest.raises(NotFound):
        await world.get("Network", made.id)
    assert [each.name for each in await world.list("Subnet")] == ["public-subnet"]


async def test_only_administrators_see_a_vni_and_no_two_networks_have_the_same(world: NetworkWorld) -> None:
    for number in range(20):
        await world.network(f"n{number}")

    seen = [each.vni for each in await world.list("Network", ADMIN) if each.kind == "tenant"]

    assert len(seen) == len(set(seen)) == 20
    assert all(0 < vni < 1 << 24 for vni in seen)
    assert not any(each.vni for each in await world.list("Network"))


async def test_an_external_network_is_on_a_physical_one_that_only_administrators_see(
    world: NetworkWorld,
) -> None:
    await world.network("fibre", ADMIN, external=True, physical_network="dark-fibre")
    await world.network("plain", ADMIN, external=True)
    await world.network("lan")

    seen = {each.name: each.physical_network for each in await world.list("Network", ADMIN)}

    assert (seen["fibre"], seen["plain"]) == ("dark-fibre", "external")
    assert (await world.get("Network", "lan")).physical_network == ""
    assert (await world.get("Network", "fibre")).physical_network == ""
    with pytest.raises(InvalidRequest) as raised:
        await world.network("inner", ADMIN, physical_network="dark-fibre")
    assert raised.value.field == "network.physical_network"


@pytest.mark.parametrize("fields", [{"shared": True}, {"external": True}])
async def test_only_administrators_make_what_everybody_sees(
    world: NetworkWorld, fields: dict[str, Any]
) -> None:
    with pytest.raises(PermissionDenied):
        await world.network("n", **fields)

    await world.network("n", ADMIN, **fields)
    assert "n" in {each.name for each in await world.list("Network", OTHER)}


async def test_a_projects_own_network_comes_before_a_public_one_of_its_name(world: NetworkWorld) -> None:
    mine = await world.network("public")

    assert (await world.get("Network", "public")).id == mine.id
    assert (await world.get("Network", "public", OTHER)).kind == "external"


async def test_names_are_unique_where_they_are_looked_up(world: NetworkWorld) -> None:
    await world.network("a")
    await world.network("a", OTHER)
    await world.network("b", ADMIN, shared=True)

    with pytest.raises(AlreadyExists):
        await world.network("a")
    with pytest.raises(AlreadyExists):
        await world.network("b", ADMIN, external=True)
    await world.update("Network", "a", name="c")
    with pytest.raises(NotFound):
        await world.get("Network", "a")
    await world.network("a")


async def test_sharing_ends_only_while_nothing_is_there(world: NetworkWorld) -> None:
    await world.network("lan", ADMIN)
    await world.subnet("lan", "10.5.0.0/24", who=ADMIN)
    with pytest.raises(NotFound):
        await world.get("Network", "lan", OTHER)
    await world.update("Network", "lan", ADMIN, shared=True)
    guest = await world.port("lan", who=OTHER)

    with pytest.raises(WrongState) as raised:
        await world.update("Network", "lan", ADMIN, shared=False)
    await world.delete("Port", guest.id, OTHER)
    await world.update("Network", "lan", ADMIN, shared=False)

    assert raised.value.reason is Reason.RESOURCE_IN_USE
    with pytest.raises(NotFound):
        await world.get("Network", "lan", OTHER)


async def test_the_hosts_own_network_stays_as_it_is(world: NetworkWorld) -> None:
    local = Network(id="11111111-1111-4111-8111-111111111111", name="default")
    await world.store.commit(
        Txn(put={NETWORK.at(local.id): encode(local), NETWORK_NAME.at("default"): encode(local.id)})
    )

    assert (await world.get("Network", "default", OTHER)).kind == "host-local"
    with pytest.raises(WrongState):
        await world.delete("Network", "default", ADMIN)
    with pytest.raises(InvalidRequest):
        await world.subnet("default", "10.0.0.0/24", who=ADMIN)
    with pytest.raises(InvalidRequest):
        await world.port("default")
    with pytest.raises(PermissionDenied):
        await world.delete("Network", "default")


async def test_a_network_with_a_port_is_not_deleted(world: NetworkWorld) -> None:
    await nebula(world)
    port = await world.port("nebula_net", no_fixed_ip=True)
    await world.remove_interface("nebula_router", "nebula_subnet")

    with pytest.raises(WrongState) as raised:
        await world.delete("Network", "nebula_net")
    await world.delete("Port", port.id)
    await world.delete("Network", "nebula_net")

    assert raised.value.reason is Reason.RESOURCE_IN_USE


async def test_an_external_network_with_a_gateway_or_a_floating_ip_is_not_deleted(
    world: NetworkWorld,
) -> None:
    floating = await world.floating_ip("public")
    with pytest.raises(WrongState):
        await world.delete("Network", "public", ADMIN)
    await world.delete("FloatingIp", floating.id)
    await world.router("r", external_network="public")
    with pytest.raises(WrongState):
        await world.delete("Network", "public", ADMIN)
    with pytest.raises(WrongState):
        await world.delete("Subnet", "public-subnet", ADMIN)

    await world.update("Router", "r", external_network="")
    await world.delete("Network", "public", ADMIN)


async def test_tenants_have_the_same_range_and_one_network_has_it_once(world: NetworkWorld) -> None:
    for who in (OWN, OTHER):
        await world.network("lan", who)
        await world.subnet("lan", "10.0.0.0/24", who=who)

    with pytest.raises(InvalidRequest, match="overlaps") as raised:
        await world.subnet("lan", "10.0.0.128/25", "again")

    assert raised.value.field == "subnet.cidr"


async def test_a_subnet_is_changed_where_that_cuts_nobody_off(world: NetworkWorld) -> None:
    await nebula(world)

    changed = await world.update(
        "Subnet",
        "nebula_subnet",
        name="renamed",
        no_dhcp=True,
        dns_servers=["9.9.9.9"],
        host_routes=[sub.HostRoute(destination="10.9.0.0/16", next_hop="10.0.0.9")],
        allocation_pools=[sub.AllocationPool(start="10.0.0.100", end="10.0.0.100")],
    )

    assert (changed.name, changed.no_dhcp, list(changed.dns_servers)) == ("renamed", True, ["9.9.9.9"])
    assert (await world.port("nebula_net")).fixed_ips[0].ip_address == "10.0.0.100"
    with pytest.raises(InvalidRequest) as raised:
        await world.update("Subnet", "renamed", dns_servers=["fd00::1"])
    assert raised.value.field == "dns_servers"


async def test_a_subnet_in_use_is_not_deleted(world: NetworkWorld) -> None:
    await nebula(world)
    for free in (
        lambda: world.remove_interface("nebula_router", "nebula_subnet"),
        lambda: world.delete("Port", "p"),
    ):
        if not await world.list("Port"):
            await world.port("nebula_net", "p")
        with pytest.raises(WrongState) as raised:
            await world.delete("Subnet", "nebula_subnet")
        assert raised.value.reason is Reason.RESOURCE_IN_USE
        await free()

    await world.delete("Subnet", "nebula_subnet")
    assert not (await world.get("Network", "nebula_net")).subnet_ids


async def test_strangers_have_no_subnets_on_a_shared_network(world: NetworkWorld) -> None:
    await world.network("lan", ADMIN, shared=True)

    with pytest.raises(PermissionDenied):
        await world.subnet("lan", "10.0.0.0/24")
