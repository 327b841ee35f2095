"""Ports of servers that end, or never came to have them: given back once, whole, by however many schedulers whose answers are lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

import pytest

from fabric.clock import Clock
from fabric.model.instance import Instance, Location, Over, PortLeft, Refund
from fabric.model.network import NetworkPort, Port
from fabric.model.states import VmState
from fabric.pb.network.v1 import floating_ip_service_pb2 as fip
from fabric.store import codec, keys
from fabric.store.base import Txn
from tests.unit.api import network_books
from tests.unit.api.network_world import ADMIN, NetworkWorld
from tests.unit.scheduler.stage import WALL_MS, Stage, VirtualClock, builds, play
from tests.unit.scheduler.worlds import request

SERVER = "i-0"


class Networked:
    """A server in the index, with ports that are bound to it: `web`, which is the project's, and others that were made for it."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.net = NetworkWorld(stage.globe)

    async def open(self, *, own: int = 1, groups: int = 0) -> None:
        await self.stage.open()
        await self.stage.accept(*builds(1))
        await self.stage.globe.commit(Txn(delete=(keys.BUILD.at("east", SERVER),)))
        await self.net.network("public", ADMIN, external=True)
        await self.net.subnet("public", "172.24.4.0/24", "public-subnet", ADMIN)
        await self.net.network("red")
        await self.net.subnet("red", "10.0.0.0/24", "red-subnet")
        await self.net.router("edge", external_network="public")
        await self.net.add_interface("edge", "red-subnet")
        for number in range(groups):
            await self.net.group(f"group-{number}")
        names = [f"group-{number}" for number in range(groups)]
        made = [await self.net.port("red", "web")]
        made += [await self.net.port("red", f"own-{at}", security_groups=names) for at in range(own)]
        await self.net.floating_ip("public", port=made[-1].id)
        for at, each in enumerate(made):
            await self.bind(each.id, ends_with_instance=at > 0)

    async def port(self, port_id: str) -> tuple[NetworkPort | None, int]:
        key = keys.PORT.at("own", port_id)
        seen = await self.stage.globe.get(key)
        value = seen.value(key)
        return (None if value is None else codec.decode(NetworkPort, value)), seen.seen(key)

    async def location(self) -> Location | None:
        return (await self.stage.locations()).get(keys.LOCATION.at(SERVER))

    async def bind(self, port_id: str, *, ends_with_instance: bool) -> None:
        """As the API does it."""
        port, _ = await self.port(port_id)
        location = await self.location()
        assert port is not None
        assert location is not None
        bound = replace(port, instance_id=SERVER, ends_with_instance=ends_with_instance)
        row = replace(location, project_id="own", port_ids=(*location.port_ids, port_id))
        await self.stage.globe.commit(
            Txn(
                put={
                    keys.PORT.at("own", port_id): codec.encode(bound),
                    keys.LOCATION.at(SERVER): codec.encode(row),
                }
            )
        )

    async def quota_of_own(self) -> None:
        quota = await self.stage.quota()
        await self.stage.put(self.stage.globe, keys.QUOTA.at("own"), replace(quota, project_id="own"))

    async def end(self) -> None:
        """As a conductor lets go of it."""
        await self.quota_of_own()
        put: dict[str, object] = {
            keys.REFUND.at(SERVER): Refund(instance_id=SERVER, project_id="own"),
            keys.OVER.at(SERVER): Over(instance_id=SERVER, over_time_ms=WALL_MS),
        }
        await self.stage.cells["east"].commit(
            Txn(put={key: codec.encode(value) for key, value in put.items()})
        )

    async def record(self, port_ids: Iterable[str]) -> None:
        """The server's record, with these ports."""
        ports = tuple(
            Port(
                id=each,
                network_id="red",
                network_name="red",
                mac="fa:16:3e:00:00:01",
                address="10.0.0.9",
                prefix_length=24,
                gateway="",
                vni=1,
            )
            for each in port_ids
        )
        asked = request(instance_id=SERVER)
        record = Instance(
            id=SERVER,
            request=replace(asked, guest=replace(asked.guest, ports=ports)),
            vm_state=VmState.ACTIVE,
            host="h",
        )
        await self.stage.put(self.stage.cells["east"], keys.INSTANCE.at(SERVER), record)

    async def left(self, port_id: str, *, not_before_ms: int = 0) -> None:
        work = PortLeft(instance_id=SERVER, project_id="own", port_id=port_id, not_before_ms=not_before_ms)
        await self.stage.put(self.stage.cells["east"], keys.PORT_LEFT.at(port_id), work)

    async def bound(self) -> set[str]:
        """The names of the ports that are the server's; every key that holds something has its holder."""
        found = await network_books.check(self.stage.globe)
        return {each.name for each in found[keys.PORT.template] if each.instance_id == SERVER}

    async def names(self) -> set[str]:
        found = await network_books.check(self.stage.globe)
        return {each.name for each in found[keys.PORT.template]}


def loses_every(nth: int, stage: Stage) -> None:
    """Every nth answer of every store is lost."""
    count = 0

    def loses(_: Txn) -> bool:
        nonlocal count
        count += 1
        return count % nth == 0

    for running in stage.running:
        running.to_global.loses = running.to_cell["east"].loses = loses


@pytest.mark.parametrize("seed", range(4))
def test_a_server_that_ends_gives_its_ports_back_with_its_charge(seed: int) -> None:
    async def world(stage: Stage) -> None:
        it = Networked(stage)
        await it.open(own=2)
        stage.schedule("s1")
        stage.schedule("s2")
        loses_every(3, stage)

        await it.end()
        await asyncio.sleep(30)

        assert await it.names() == {"web"}
        assert await it.bound() == set()
        assert await it.location() is None
        assert await stage.held(keys.REFUND) == set()
        (floating,) = await it.net.list("FloatingIp")
        assert isinstance(floating, fip.FloatingIp)
        assert floating.port == ""

    play(world, seed=seed)


def test_a_server_that_holds_more_than_a_transaction_takes_lets_go_of_it_in_several() -> None:
    async def world(stage: Stage) -> None:
        it = Networked(stage)
        await it.open(own=8, groups=9)
        stage.schedule()
        largest = 0

        def counts(txn: Txn) -> bool:
            nonlocal largest
            largest = max(largest, len(txn.unchanged), len(txn.put) + len(txn.delete))
            return False

        stage.running[0].to_global.loses = counts
        await it.end()
        await asyncio.sleep(30)

        assert 64 < largest <= 128
        assert (await it.names(), await it.bound(), await it.location()) == ({"web"}, set(), None)

    play(world)


@pytest.mark.parametrize("seed", range(4))
def test_a_port_that_its_servers_host_has_let_go_of_is_given_back(seed: int) -> None:
    async def world(stage: Stage) -> None:
        it = Networked(stage)
        await it.open()
        ports = {each.name: each.id for each in await it.net.list("Port")}
        await it.record([])
        stage.schedule("s1")
        stage.schedule("s2")
        loses_every(3, stage)

        await it.left(ports["web"])
        await it.left(ports["own-0"])
        await asyncio.sleep(30)

        assert (await it.names(), await it.bound()) == ({"web"}, set())
        location = await it.location()
        assert location is not None
        assert location.port_ids == ()
        assert await stage.held(keys.PORT_LEFT) == set()

    play(world, seed=seed)


def test_a_port_that_its_server_has_is_not_given_back() -> None:
    async def world(stage: Stage) -> None:
        it = Networked(stage)
        await it.open()
        ports = {each.name: each.id for each in await it.net.list("Port")}
        await it.record(ports.values())
        stage.schedule()

        await it.left(ports["web"])
        await asyncio.sleep(10)

        assert await it.bound() == {"web", "own-0"}
        assert await stage.held(keys.PORT_LEFT) == set()

    play(world)


def test_what_is_for_later_is_done_later() -> None:
    async def world(stage: Stage) -> None:
        clock: Clock = VirtualClock()
        it = Networked(stage)
        await it.open()
        ports = {each.name: each.id for each in await it.net.list("Port")}
        await it.record([])
        stage.schedule()

        await it.left(ports["web"], not_before_ms=clock.now_ms() + 60_000)
        await asyncio.sleep(50)
        assert "web" in await it.bound()

        await asyncio.sleep(30)
        assert "web" not in await it.bound()

    play(world)


def test_who_comes_too_late_to_plug_in_finds_the_work_taken_and_who_comes_too_late_to_bind_the_row_moved() -> (
    None
):
    """The port was never bound: all that is written is what voids the writes that may still be on their way. The work is looked at before
    it is taken away, which would void them as well, but only after somebody may have plugged the port in.
    """

    async def world(stage: Stage) -> None:
        it = Networked(stage)
        await it.open(own=0)
        free = await it.net.port("red", "free")
        await it.record([])
        row_key, work_key = keys.LOCATION.at(SERVER), keys.PORT_LEFT.at(free.id)
        row = (await stage.globe.get(row_key)).seen(row_key)
        await it.left(free.id, not_before_ms=VirtualClock().now_ms() + 1)
        work = (await stage.cells["east"].get(work_key)).seen(work_key)
        reached = asyncio.Event()

        class Death:
            async def reach(self, name: str) -> None:
                if name == "scheduler.port.given_back":
                    reached.set()
                    await asyncio.Event().wait()

        stage.schedule(failpoints=Death())
        await reached.wait()

        assert (await stage.globe.get(row_key)).seen(row_key) > row
        assert (await stage.cells["east"].get(work_key)).seen(work_key) > work
        assert await it.bound() == {"web"}

    play(world)


def test_what_cannot_be_given_back_is_tried_again_later_and_not_at_once() -> None:
    """Taking the work over wrote it anew each time, which looked like news: with one port of the server's that no longer parses, every
    scheduler wrote to the cell's store as fast as that took it.
    """

    async def world(stage: Stage) -> None:
        it = Networked(stage)
        await it.open()
        ports = {each.name: each.id for each in await it.net.list("Port")}
        await it.record([])
        whole = await stage.globe.get(keys.PORT.at("own", ports["own-0"]))
        await stage.globe.commit(Txn(put={keys.PORT.at("own", ports["own-0"]): b"\xff"}))
        stage.schedule()

        await it.left(ports["web"])
        await asyncio.sleep(60)
        to_cell = stage.running[0].to_cell["east"]

        assert to_cell.commits < 10

        await stage.globe.commit(Txn(put={key: entry.value for key, entry in whole.entries.items()}))
        await asyncio.sleep(30)
        assert await it.bound() == {"own-0"}

    play(world)


@pytest.mark.parametrize("failpoint", ["scheduler.refund.given", "scheduler.port.given_back"])
def test_wherever_a_scheduler_dies_another_gives_the_rest_back(failpoint: str) -> None:
    async def world(stage: Stage) -> None:
        it = Networked(stage)
        await it.open()
        ports = {each.name: each.id for each in await it.net.list("Port")}
        await it.record([])
        reached = asyncio.Event()

        class Death:
            async def reach(self, name: str) -> None:
                if name == failpoint:
                    reached.set()
                    await asyncio.Event().wait()

        first = stage.schedule("s1", failpoints=Death())
        if failpoint == "scheduler.refund.given":
            await it.end()
        else:
            await it.left(ports["own-0"])
            await it.left(ports["web"])
        await reached.wait()
        first.task.cancel()
        stage.running.remove(first)
        stage.schedule("s2")
        await asyncio.sleep(20)

        assert (await it.names(), await it.bound()) == ({"web"}, set())
        assert await stage.held(keys.REFUND) == await stage.held(keys.PORT_LEFT) == set()

    play(world)
