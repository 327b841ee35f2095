"""Whatever a router was, after a plan it is as one that was made for that plan: addresses, routes, rules and all."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest

from fabric.model.network_plan import (
    NetworkPlan,
    OutsideSubnet,
    PlannedFloatingIp,
    PlannedNetwork,
    PlannedRouter,
    RouterOutside,
)
from hostd.network.netns import Namespace
from hostd.network.routers import Routers
from tests.conformance.guests import an_id
from tests.conformance.namespaces import a_namespace, ip
from tests.integration.hostd.router_hosts import RoutedNetwork, router_leftovers, state_of
from tests.integration.hostd.tenant_hosts import TUNNELS

MISSING = [name for name in ("ip", "bridge", "nft", "nsenter") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.owns_machine,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}"),
]

NETWORKS = (RoutedNetwork("lan", 0x51, 1), RoutedNetwork("dmz", 0x52, 2))
BRIDGES = {network.id: f"{network.word}0" for network in NETWORKS}
PHYSICAL = {"shared": "out0", "bridged": "br-ex"}
PLANS = 9
STARTS_ANEW = 0.3


def a_plan(chance: random.Random) -> NetworkPlan:
    """Any plan. Much of it is as in others, so that it is changed and not made anew."""
    mtus = {network.id: chance.choice((1450, 1400)) for network in NETWORKS}
    networks = tuple(network.planned(mtu=mtus[network.id]) for network in NETWORKS)
    words = chance.choice((("one",), ("one",), ("one", "two"), ("two",), ()))
    return NetworkPlan(
        tunnel_address=TUNNELS[0],
        networks=networks,
        routers=tuple(a_router(word, networks, chance) for word in words),
    )


def a_router(word: str, networks: tuple[PlannedNetwork, ...], chance: random.Random) -> PlannedRouter:
    # A network has one router; so two have one each.
    mine = NETWORKS[:1] if word == "one" else NETWORKS[1:]
    legs = [leg for network in mine for leg in network.legs]
    assert {leg.network_id for leg in legs} <= {network.id for network in networks}
    number = 10 if word == "one" else 20
    is_gateway = chance.random() < 0.5
    floating = tuple(
        PlannedFloatingIp(
            address=f"203.0.113.{number + place}",
            fixed_address=f"10.{mine[0].octet}.0.{chance.choice((11, 12)) + place}",
            fixed_network_id=mine[0].id,
        )
        for place in (1, 4, 7)
        if chance.random() < 0.4
    )
    outside = RouterOutside(
        physical_network=chance.choice(("shared", "shared", "bridged")),
        mtu=1500,
        mac=f"fa:16:3e:00:{number:02x}:{chance.choice((1, 1, 2)):02x}",
        subnets=(OutsideSubnet(cidr="203.0.113.0/24", gateway=chance.choice(("203.0.113.1", ""))),),
        addresses=(f"203.0.113.{number}",) if chance.random() < 0.8 else (),
        is_gateway=is_gateway,
        gateway_tunnel_address="" if is_gateway else chance.choice(("", "192.0.2.2", "192.0.2.3")),
        snat=chance.random() < 0.8,
        floating_ips=floating,
    )
    made = PlannedRouter(
        id=an_id(f"router {word}"),
        vni=0x60 + number,
        legs=tuple(legs[: chance.choice((1, 2, 2))]),
        outside=outside,
    )
    return made if chance.random() < 0.85 else replace(made, outside=None)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    with a_namespace("h") as one, a_namespace("h") as other:
        for name in (one, other):
            for words in (
                ("link", "add", "out0", "type", "veth", "peer", "name", "out1"),
                *(("link", "add", bridge, "type", "bridge") for bridge in (*BRIDGES.values(), "br-ex")),
                *(("link", "set", each, "up") for each in ("out0", "out1", *BRIDGES.values(), "br-ex")),
            ):
                ip(*words, netns=name)
        yield one, other
        assert router_leftovers(one) + router_leftovers(other) == []


@pytest.mark.parametrize("seed", range(2))
async def test_a_router_that_was_changed_is_as_one_that_was_made(hosts: tuple[str, str], seed: int) -> None:
    chance = random.Random(seed)
    changed, made = hosts
    routers = Routers(Namespace(changed), PHYSICAL)
    for number in range(PLANS):
        plan = a_plan(chance)
        if chance.random() < STARTS_ANEW:
            await routers.close()
            routers = Routers(Namespace(changed), PHYSICAL)
        await routers.converge(plan, BRIDGES, told=True)
        fresh = Routers(Namespace(made), PHYSICAL)
        await fresh.converge(plan, BRIDGES, told=True)

        assert await state_of(changed) == await state_of(made), (
            f"plan {number} of seed {seed}: {plan.routers}"
        )
        await fresh.dismantle()
    await routers.dismantle()
