"""Many who change the same networks at once, on a store whose answers get lost: the books balance whatever happens."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import pytest

from fabric.errors import Ambiguous, FabricError, Unavailable
from fabric.model.quota import NetworkLimits
from fabric.pb.network.v1 import port_service_pb2 as prt
from fabric.store.base import Batch, Committed, Lease, Refused, Snapshot, Store, Txn
from fabric.store.keys import FLOATING_IP
from fabric.store.memory import MemoryStore
from tests.sim.loop import SimLoop
from tests.unit.api import network_books
from tests.unit.api.network_world import ADMIN, OTHER, OWN, NetworkWorld, nebula
from tests.unit.api.test_instances import Faulty


class Torn:
    """A store between whose reads and writes others come, and whose answers get lost now and then, applied or not."""

    def __init__(self, store: MemoryStore, chance: random.Random, *, lossy: float = 0.05) -> None:
        self._store = store
        self._chance = chance
        self._lossy = lossy

    @property
    def name(self) -> str:
        return self._store.name

    async def get(self, *keys: str) -> Snapshot:
        await self._others()
        return await self._store.get(*keys)

    async def list(self, prefix: str) -> Snapshot:
        await self._others()
        return await self._store.list(prefix)

    async def commit(self, txn: Txn) -> Committed | Refused:
        await self._others()
        fate = self._chance.random()
        if fate < self._lossy / 2:
            raise Unavailable("never sent")
        outcome = await self._store.commit(txn)
        if fate < self._lossy:
            raise Ambiguous("the answer was lost")
        return outcome

    def watch(self, prefix: str, *, after: int) -> AsyncIterator[Batch]:
        return self._store.watch(prefix, after=after)

    async def grant(self, ttl_s: float) -> Lease:
        return await self._store.grant(ttl_s)

    async def keep_alive(self, lease: Lease) -> None:
        await self._store.keep_alive(lease)

    async def revoke(self, lease: Lease) -> None:
        await self._store.revoke(lease)

    async def close(self) -> None:
        await self._store.close()

    async def _others(self) -> None:
        for _ in range(self._chance.randrange(6)):
            await asyncio.sleep(0)


class Person:
    """Does one thing after another to a small world that others change too, without looking first."""

    def __init__(self, world: NetworkWorld, chance: random.Random) -> None:
        self._world = world
        self._chance = chance
        self.outcomes: Counter[str] = Counter()

    async def live(self, deeds: int) -> None:
        for _ in range(deeds):
            try:
                await self._deed()
            except FabricError as refused:
                self.outcomes[refused.reason] += 1
            else:
                self.outcomes["done"] += 1

    async def _deed(self) -> None:
        world, chance = self._world, self._chance
        who = chance.choice([OWN, OWN, OTHER, ADMIN])
        name, other = (f"x{chance.randrange(3)}" for _ in range(2))
        match chance.randrange(20):
            case 0 | 1:
                await world.network(name, who)
            case 2 | 3:
                await world.subnet(name, f"10.0.{chance.randrange(2)}.0/29", f"s{other}", who)
            case 4 | 5 | 6:
                await world.port(name, other, who, security_groups=["default", chance.choice(["g0", "g1"])])
            case 7:
                wish = prt.FixedIp(ip_address=f"10.0.0.{chance.randrange(8)}")
                await world.port(name, other, who, fixed_ips=[wish])
            case 8:
                await world.router(name, who, external_network=chance.choice(["", "public"]))
            case 9 | 10:
                await world.add_interface(name, f"s{other}", who)
            case 11:
                await world.remove_interface(name, f"s{other}", who)
            case 12:
                await world.update("Router", name, who, external_network=chance.choice(["", "public"]))
            case 13 | 14:
                await world.floating_ip("public", who, port=chance.choice(["", name]))
            case 15:
                floating = await world.list("FloatingIp", who)
                if floating:
                    await world.update("FloatingIp", chance.choice(floating).id, who, port=name)
            case 16:
                await world.group(chance.choice(["g0", "g1"]), who)
            case 17:
                await world.rule("g0", who, protocol="tcp", remote_group=chance.choice(["", "g1"]))
            case _:
                await self._end(who, name)

    async def _end(self, who: object, name: str) -> None:
        world, chance = self._world, self._chance
        assert who in {OWN, OTHER, ADMIN}
        person = next(each for each in (OWN, OTHER, ADMIN) if each is who)
        noun = chance.choice(["Network", "Subnet", "Port", "Port", "Router", "SecurityGroup", "FloatingIp"])
        if noun == "FloatingIp":
            name = next((each.id for each in await world.list("FloatingIp", person)), name)
        word = {"Subnet": f"s{name}", "SecurityGroup": f"g{name[-1]}"}.get(noun, name)
        await world.delete(noun, word, person)


class SeededIds:
    """Ids that are the same in every run of a seed."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def new_id(self) -> str:
        return str(uuid.UUID(int=self._chance.getrandbits(128), version=4))

    def new_secret(self, nbytes: int = 32) -> bytes:
        return self._chance.randbytes(nbytes)


def lived(seed: int, life: Callable[[random.Random], Coroutine[Any, Any, None]]) -> None:
    """Run in virtual time, with tasks that take turns as the seed has it."""
    SimLoop(random.Random(seed)).run_world(life(random.Random(f"{seed}/life")))


def world_of(store: Store, chance: random.Random, limits: NetworkLimits | None = None) -> NetworkWorld:
    return NetworkWorld(store, limits, ids=SeededIds(random.Random(chance.random())))


@pytest.mark.parametrize("seed", range(12))
def test_the_books_balance_after_any_deeds_of_many_at_once(seed: int) -> None:
    async def life(chance: random.Random) -> None:
        store = MemoryStore()
        limits = NetworkLimits(networks=3, subnets=4, ports=6, routers=3, floating_ips=3, security_groups=3)
        calm = world_of(store, chance, limits)
        await calm.network("public", ADMIN, external=True)
        await calm.subnet("public", "172.24.4.0/28", who=ADMIN)
        people = [
            Person(
                world_of(Torn(store, chance, lossy=0.03), chance, limits), random.Random(f"{seed}/{number}")
            )
            for number in range(6)
        ]

        await asyncio.gather(*(each.live(60) for each in people))

        found = await network_books.check(store)
        total = sum((each.outcomes for each in people), Counter[str]())
        # Both a world in which nothing is ever done and one in which nothing is ever refused would show nothing.
        assert total["done"] > 40
        assert total["RESOURCE_IN_USE"] > 0
        assert sum(map(len, found.values())) > 3

    lived(seed, life)


@pytest.mark.parametrize("seed", range(4))
def test_all_of_a_subnet_is_given_to_those_who_ask_at_once(seed: int) -> None:
    """Exactly as many as there are addresses: each gets one, and nobody is told to try again."""

    async def life(chance: random.Random) -> None:
        store = MemoryStore()
        calm = world_of(store, chance)
        await calm.network("lan")
        await calm.subnet("lan", "10.0.0.0/27")
        worlds = [world_of(Torn(store, chance, lossy=0), chance) for _ in range(4)]

        ports = await asyncio.gather(*(worlds[number % 4].port("lan") for number in range(28)))

        assert len({each.fixed_ips[0].ip_address for each in ports}) == 28
        await network_books.check(store)

    lived(seed, life)


@pytest.mark.parametrize("seed", range(4))
def test_of_those_who_ask_for_one_address_one_gets_it(seed: int) -> None:
    async def life(chance: random.Random) -> None:
        store = MemoryStore()
        world = world_of(Torn(store, chance, lossy=0), chance)
        await world.network("lan")
        await world.subnet("lan", "10.0.0.0/24")
        wish = [prt.FixedIp(ip_address="10.0.0.77")]

        outcomes = await asyncio.gather(
            *(world.port("lan", fixed_ips=wish) for _ in range(10)), return_exceptions=True
        )

        assert sum(isinstance(each, prt.Port) for each in outcomes) == 1
        await network_books.check(store)

    lived(seed, life)


PAIRS: dict[
    str, tuple[Callable[[NetworkWorld], Awaitable[object]], Callable[[NetworkWorld], Awaitable[object]]]
] = {
    "a network ends, a port comes": (
        lambda world: world.delete("Network", "lan"),
        lambda world: world.port("lan", no_fixed_ip=True),
    ),
    "a network ends, a subnet comes": (
        lambda world: world.delete("Network", "lan"),
        lambda world: world.subnet("lan", "10.9.0.0/24"),
    ),
    "a subnet ends, a port comes": (
        lambda world: world.delete("Subnet", "lan-subnet"),
        lambda world: world.port("lan"),
    ),
    "a subnet ends, a router comes": (
        lambda world: world.delete("Subnet", "lan-subnet"),
        lambda world: world.add_interface("lonely", "lan-subnet"),
    ),
    "a group ends, a port comes": (
        lambda world: world.delete("SecurityGroup", "web"),
        lambda world: world.port("lan", security_groups=["web"]),
    ),
    "a group ends, a port joins": (
        lambda world: world.delete("SecurityGroup", "web"),
        lambda world: world.update("Port", "p", OWN, security_groups=["web"]),
    ),
    "a group ends, a rule names it": (
        lambda world: world.delete("SecurityGroup", "web"),
        lambda world: world.rule("default", remote_group="web"),
    ),
    "a port ends, a floating IP comes": (
        lambda world: world.delete("Port", "p"),
        lambda world: world.floating_ip("public", port="p"),
    ),
    "a router leaves, a floating IP comes": (
        lambda world: world.remove_interface("nebula_router", "nebula_subnet"),
        lambda world: world.floating_ip("public", port="p"),
    ),
    "a gateway ends, a floating IP comes": (
        lambda world: world.update("Router", "nebula_router", OWN, external_network=""),
        lambda world: world.floating_ip("public", port="p"),
    ),
    "what is outside ends, a floating IP comes": (
        lambda world: world.delete("Network", "spare", ADMIN),
        lambda world: world.floating_ip("spare"),
    ),
    "what is outside ends, a gateway comes": (
        lambda world: world.delete("Subnet", "spare-subnet", ADMIN),
        lambda world: world.update("Router", "lonely", OWN, external_network="spare"),
    ),
    "sharing ends, a guest comes": (
        lambda world: world.update("Network", "shared", ADMIN, shared=False),
        lambda world: world.port("shared", who=OTHER),
    ),
    "two subnets overlap": (
        lambda world: world.subnet("lan", "10.7.0.0/16", "wide"),
        lambda world: world.subnet("lan", "10.7.7.0/24", "narrow"),
    ),
    "two routers want one subnet": (
        lambda world: world.add_interface("lonely", "lan-subnet"),
        lambda world: world.add_interface("nebula_router", "lan-subnet"),
    ),
    "two floating IPs want one port": (
        lambda world: world.floating_ip("public", port="p"),
        lambda world: world.floating_ip("public", port="p"),
    ),
    "two want one name": (
        lambda world: world.update("Port", "p", OWN, name="q"),
        lambda world: world.port("lan", "q"),
    ),
}


ONE_AFTER_THE_OTHER = {
    "a network ends, a subnet comes": "it ends with the network",
    "a subnet ends, a port comes": "a network without subnets has ports without addresses",
    "a port ends, a floating IP comes": "it leads to nothing when the port has ended",
}
"""Pairs of which both may be done, and why."""


@pytest.mark.parametrize("pair", PAIRS)
def test_of_two_that_cannot_both_be_one_is_refused(pair: str) -> None:
    async def life(chance: random.Random) -> None:
        store = MemoryStore()
        calm = world_of(store, chance)
        await _furnish(calm)
        one, other = PAIRS[pair]
        worlds = [world_of(Torn(store, chance, lossy=0), chance) for _ in range(2)]

        outcomes = await asyncio.gather(one(worlds[0]), other(worlds[1]), return_exceptions=True)

        await network_books.check(store)
        assert all(isinstance(each, FabricError) for each in outcomes if isinstance(each, Exception))
        refused.append(sum(isinstance(each, FabricError) for each in outcomes))

    refused: list[int] = []
    for seed in range(16):
        lived(seed, life)
    assert set(refused) <= ({0, 1} if pair in ONE_AFTER_THE_OTHER else {1})


async def _furnish(world: NetworkWorld) -> None:
    for name in ("public", "spare"):
        await world.network(name, ADMIN, external=True)
    await world.subnet("public", "172.24.4.0/24", "public-subnet", ADMIN)
    await world.subnet("spare", "198.51.100.0/24", "spare-subnet", ADMIN)
    await world.network("shared", ADMIN, shared=True)
    await world.subnet("shared", "10.8.0.0/24", "shared-subnet", ADMIN)
    await nebula(world)
    await world.port("nebula_net", "p")
    await world.network("lan")
    await world.subnet("lan", "10.1.0.0/24", "lan-subnet")
    await world.router("lonely")
    await world.group("web")


def test_a_port_goes_while_its_floating_ip_does() -> None:
    """It was read first, and what leads to it after that: one that was gone by then was an internal error to whoever deleted the port."""

    async def main() -> None:
        store = Faulty("global")
        world = NetworkWorld(store)
        await world.network("public", ADMIN, external=True)
        await world.subnet("public", "172.24.4.0/24", "public-subnet", ADMIN)
        await nebula(world)
        port = await world.port("nebula_net")
        leading = await world.floating_ip("public", port=port.id)
        store.holds_s = {FLOATING_IP.at(OWN.project_id, leading.id): 1.0}

        going = asyncio.create_task(world.delete("Port", port.id))
        await asyncio.sleep(0.1)
        await world.delete("FloatingIp", leading.id)
        await going

        assert await world.list("Port") == []
        await network_books.check(store)

    SimLoop(random.Random(0)).run_world(main())
