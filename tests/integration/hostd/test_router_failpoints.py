"""A router whose making, change or end is cut short at any step is whole, or gone, after the next process has followed the plan."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from fabric.errors import Unavailable
from fabric.model.network_plan import NetworkPlan, PlannedRouter
from hostd.network.netns import Namespace
from hostd.network.routers import Routers
from tests.conformance.namespaces import a_namespace, ip
from tests.integration.hostd.router_hosts import (
    ARouter,
    RoutedGuest,
    RoutedNetwork,
    router_leftovers,
    state_of,
)
from tests.integration.hostd.tenant_hosts import TUNNELS

MISSING = [name for name in ("ip", "bridge", "nft", "nsenter") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.owns_machine,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}"),
]

LAN = RoutedNetwork("lan", 0x51, 1)
ROUTER = ARouter("r", 0x52, (LAN,), gateway=1, address="203.0.113.10")
GUEST, OTHER = RoutedGuest(LAN, 0, 11), RoutedGuest(LAN, 0, 12)
BRIDGES = {LAN.id: "lan0"}
MAKING = ("made", "linked", "filtered", "settled", "cut")
CHANGING = ("linked", "filtered", "settled", "cut")


@dataclass
class Broken:
    """Fails at one step, the first time."""

    step: str
    reached: bool = False

    async def reach(self, name: str) -> None:
        if name == f"hostd.router.{self.step}" and not self.reached:
            self.reached = True
            raise Unavailable(name)


def a_plan(floating: dict[str, RoutedGuest], **changes: bool) -> NetworkPlan:
    router: PlannedRouter = replace(ROUTER, gateway=0 if changes else 1).planned(0, floating)
    return NetworkPlan(tunnel_address=TUNNELS[0], networks=(LAN.planned(),), routers=(router,))


FIRST = a_plan({"203.0.113.50": GUEST})
SECOND = a_plan({"203.0.113.51": OTHER}, leads_out_here=True)


@pytest.fixture
def host() -> Iterator[str]:
    with a_namespace("h") as name:
        for words in (
            ("link", "add", "lan0", "type", "bridge"),
            ("link", "set", "lan0", "up"),
            ("link", "add", "out0", "type", "veth", "peer", "name", "out1"),
            ("link", "set", "out0", "up"),
            ("link", "set", "out1", "up"),
        ):
            ip(*words, netns=name)
        yield name
        assert router_leftovers(name) == []


def some(host: str, step: str = "") -> tuple[Routers, Broken]:
    broken = Broken(step)
    return Routers(Namespace(host), {"external": "out0"}, failpoints=broken), broken


async def followed(host: str, plan: NetworkPlan) -> None:
    """By a process that knows nothing of what was before, and ends."""
    routers, _ = some(host)
    await routers.converge(plan, BRIDGES, told=True)
    await routers.close()


async def removed(host: str) -> None:
    await followed(host, NetworkPlan(tunnel_address=TUNNELS[0]))
    assert router_leftovers(host) == []


@pytest.mark.parametrize("step", MAKING)
async def test_one_that_was_being_made_is_made(host: str, step: str) -> None:
    await followed(host, FIRST)
    wanted = await state_of(host)
    await removed(host)
    routers, broken = some(host, step)

    with pytest.raises(Unavailable):
        await routers.converge(FIRST, BRIDGES, told=True)
    await routers.close()
    await followed(host, FIRST)

    assert broken.reached
    assert await state_of(host) == wanted
    await removed(host)


@pytest.mark.parametrize("step", MAKING)
async def test_one_that_was_being_made_and_is_not_wanted_any_more_is_gone(host: str, step: str) -> None:
    routers, _ = some(host, step)

    with pytest.raises(Unavailable):
        await routers.converge(FIRST, BRIDGES, told=True)
    await routers.close()

    await removed(host)


@pytest.mark.parametrize("step", CHANGING)
async def test_one_that_was_being_changed_is_as_if_it_had_been_made_so(host: str, step: str) -> None:
    await followed(host, SECOND)
    wanted = await state_of(host)
    await followed(host, FIRST)
    assert await state_of(host) != wanted
    routers, broken = some(host, step)

    with pytest.raises(Unavailable):
        await routers.converge(SECOND, BRIDGES, told=True)
    await routers.close()
    await followed(host, SECOND)

    assert broken.reached
    assert await state_of(host) == wanted
    await removed(host)


async def test_the_process_that_failed_makes_it_whole_as_well(host: str) -> None:
    await followed(host, SECOND)
    wanted = await state_of(host)
    routers, _ = some(host, "settled")
    with pytest.raises(Unavailable):
        await routers.converge(FIRST, BRIDGES, told=True)

    await routers.converge(FIRST, BRIDGES, told=True)
    await routers.converge(SECOND, BRIDGES, told=True)
    await routers.close()

    assert await state_of(host) == wanted
    await removed(host)


async def test_one_whose_end_was_cut_short_is_gone(host: str) -> None:
    await followed(host, FIRST)
    routers, broken = some(host, "unlinked")

    with pytest.raises(Unavailable):
        await routers.converge(NetworkPlan(tunnel_address=TUNNELS[0]), {}, told=True)
    await routers.close()

    assert broken.reached
    await removed(host)
