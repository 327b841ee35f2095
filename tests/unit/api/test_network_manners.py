"""What holds for networks and all that belongs to them: quota, requests that are sent again, strangers, pages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fabric.errors import (
    Conflict,
    FabricError,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    Reason,
)
from fabric.model.quota import NetworkLimits
from fabric.pb.network.v1 import network_service_pb2 as net
from fabric.pb.network.v1 import port_service_pb2 as prt
from fabric.store.memory import MemoryStore
from tests.unit.api import network_books
from tests.unit.api.network_world import ADMIN, OTHER, OWN, NetworkWorld, nebula


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("networks", lambda world, name: world.network(name)),
        ("subnets", lambda world, name: world.subnet("lan", f"10.{name[1:]}.0.0/24")),
        ("ports", lambda world, name: world.port("lan", name)),
        ("routers", lambda world, name: world.router(name)),
        ("floating_ips", lambda world, name: world.floating_ip("public", description=name)),
        ("security_groups", lambda world, name: world.group(name)),
    ],
)
async def test_quota_is_exact_and_comes_back(
    kind: str, make: Callable[[NetworkWorld, str], Awaitable[Any]]
) -> None:
    store = MemoryStore()
    world, limited = NetworkWorld(store), NetworkWorld(store, NetworkLimits(**{kind: 3}))
    await world.network("public", ADMIN, external=True)
    await world.subnet("public", "172.24.4.0/24", who=ADMIN)
    if kind != "networks":
        await world.network("lan")
    if kind != "subnets":
        await world.network("base", OTHER)
    made = [await make(limited, f"n{number}") for number in range(3)]

    with pytest.raises(QuotaExceeded) as raised:
        await make(limited, "n3")
    await world.delete(type(made[0]).DESCRIPTOR.name, made[1].id)
    await make(limited, "n4")

    assert raised.value.facts == {"resource": kind, "limit": "3", "used": "3", "asked": "1"}
    await network_books.check(store)


async def test_without_a_limit_nothing_is_counted() -> None:
    world = NetworkWorld(MemoryStore(), NetworkLimits(networks=-1))

    await world.network("lan")

    await network_books.check(world.store)


async def test_a_request_sent_again_makes_nothing_twice(world: NetworkWorld) -> None:
    request = net.CreateNetworkRequest(request_id="once", network=net.Network(name="lan"))
    first = await world.networks.create_network(request, OWN)
    again = await world.networks.create_network(request, OWN)
    request.network.name = "other"

    with pytest.raises(Conflict) as raised:
        await world.networks.create_network(request, OWN)

    assert first == again
    assert raised.value.reason is Reason.REQUEST_ID_MISMATCH
    assert [each.name for each in await world.list("Network")] == ["lan", "public"]


async def test_what_is_foreign_looks_exactly_as_if_it_were_absent(world: NetworkWorld) -> None:
    await nebula(world)
    port = await world.port("nebula_net")
    floating = await world.floating_ip("public")
    group = await world.group("web")
    theirs = {
        "Network": (await world.get("Network", "nebula_net")).id,
        "Subnet": (await world.get("Subnet", "nebula_subnet")).id,
        "Port": port.id,
        "Router": (await world.get("Router", "nebula_router")).id,
        "FloatingIp": floating.id,
        "SecurityGroup": group.id,
        "SecurityGroupRule": group.rules[0].id,
    }
    absent = "99999999-9999-4999-8999-999999999999"

    for noun, their_id in theirs.items():
        for ask in _asks(world, noun):
            assert await _refusal(ask, their_id) == await _refusal(ask, absent), noun
            with pytest.raises(NotFound):
                await ask(their_id)
        assert their_id not in {each.id for each in await world.list(noun, OTHER)}


def _asks(world: NetworkWorld, noun: str) -> list[Callable[[str], Awaitable[Any]]]:
    """Everything that can be asked of one thing."""
    asks: list[Callable[[str], Awaitable[Any]]] = [
        lambda word: world.get(noun, word, OTHER),
        lambda word: world.delete(noun, word, OTHER),
    ]
    if noun != "SecurityGroupRule":
        asks.append(lambda word: world.update(noun, word, OTHER, description="mine now"))
    return asks


async def test_what_is_foreign_cannot_be_named_in_ones_own(world: NetworkWorld) -> None:
    await nebula(world)
    port, group = await world.port("nebula_net"), await world.group("web")
    network, subnet = await world.get("Network", "nebula_net"), await world.get("Subnet", "nebula_subnet")
    await world.network("lan", OTHER)
    await world.subnet("lan", "10.0.0.0/24", "s", OTHER)
    await world.group("mine", OTHER)
    await world.router("r", OTHER)
    absent = "99999999-9999-4999-8999-999999999999"

    uses: list[tuple[str, Callable[[str], Awaitable[Any]]]] = [
        (network.id, lambda word: world.port(word, who=OTHER)),
        (network.id, lambda word: world.subnet(word, "10.9.0.0/24", "x", OTHER)),
        (network.id, lambda word: world.router("r3", OTHER, external_network=word)),
        (network.id, lambda word: world.floating_ip(word, OTHER)),
        (subnet.id, lambda word: world.port("lan", who=OTHER, fixed_ips=[prt.FixedIp(subnet=word)])),
        (subnet.id, lambda word: world.add_interface("r", word, OTHER)),
        (group.id, lambda word: world.port("lan", who=OTHER, security_groups=[word])),
        (group.id, lambda word: world.rule("mine", OTHER, remote_group=word)),
        (group.id, lambda word: world.rule(word, OTHER)),
        (port.id, lambda word: world.floating_ip("public", OTHER, port=word)),
    ]

    for foreign, use in uses:
        assert await _refusal(use, foreign) == await _refusal(use, absent)


async def _refusal(ask: Callable[[str], Awaitable[Any]], word: str) -> tuple[str, str, str]:
    with pytest.raises(FabricError) as raised:
        await ask(word)
    field = raised.value.field if isinstance(raised.value, InvalidRequest) else ""
    return type(raised.value).__name__, raised.value.message.replace(word, "X"), field


async def test_an_update_names_what_it_changes(world: NetworkWorld) -> None:
    await world.network("lan")

    for fields in ({}, {"external": True}):
        request = net.UpdateNetworkRequest(request_id="r", network="lan")
        request.update_mask.paths.extend(fields)
        with pytest.raises(InvalidRequest) as raised:
            await world.networks.update_network(request, OWN)
        assert raised.value.field == "update_mask"
    with pytest.raises(InvalidRequest) as raised:
        await world.update("Network", "lan", name="")
    assert raised.value.field == "name"


async def test_a_token_for_no_project_makes_nothing(world: NetworkWorld) -> None:
    nowhere = type(ADMIN)(user_id="root", system_admin=True)

    with pytest.raises(PermissionDenied):
        await world.network("lan", nowhere)
    with pytest.raises(PermissionDenied):
        await world.group("web", nowhere)
    assert await world.list("SecurityGroup", nowhere) == []


async def test_pages_go_on_where_they_ended(world: NetworkWorld) -> None:
    for number in range(5):
        await world.network(f"n{number}")

    first = await world.networks.list_networks(net.ListNetworksRequest(page_size=4), OWN)
    rest = await world.networks.list_networks(
        net.ListNetworksRequest(page_size=4, page_token=first.next_page_token), OWN
    )

    assert [each.name for each in (*first.networks, *rest.networks)] == [
        "n0",
        "n1",
        "n2",
        "n3",
        "n4",
        "public",
    ]
    assert rest.next_page_token == ""
