"""A record that does not parse stands in the way of its own host or server, and of no other."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from fabric.conductor.proofs import Prover
from fabric.conductor.quarantine import Quarantines
from fabric.model.host import Host, Session, SessionState
from fabric.model.states import TaskState
from fabric.model.volume import Volume, VolumeState
from fabric.store.base import Txn
from fabric.store.codec import decode, encode
from fabric.store.keys import ASSIGNMENT, HOST, SESSION, TOMBSTONE, VOLUME
from fabric.store.memory import MemoryStore
from tests.unit.conductor.worlds import (
    CAPACITY,
    IMAGE,
    SERIAL,
    CountingIds,
    LoopClock,
    World,
    instance_id,
    run,
    until,
)

NO_RECORD = b"\xff"


@dataclass(eq=False)
class Holder:
    host: str
    epoch: int = 1
    proofs: int = 0
    losses: list[str] = field(default_factory=list)

    def proved(self, sent_boot_s: float) -> None:
        self.proofs += 1

    def lost(self, why: str) -> None:
        self.losses.append(why)


async def _store(*hosts: str) -> MemoryStore:
    store = MemoryStore("east")
    sessions = {
        SESSION.at(host): encode(Session(host=host, epoch=1, state=SessionState.UP)) for host in hosts
    }
    await store.commit(Txn(put={**sessions, SESSION.at("broken"): NO_RECORD}))
    return store


def test_a_broken_session_costs_no_other_host_its_permit() -> None:
    """A hundred sessions are proved by one read, which one broken record failed each time: all their hosts' permits ran out together."""

    async def world() -> None:
        prover = Prover(await _store("h1", "h2"), clock=LoopClock(), jitter=lambda: 0.5)
        holders = [Holder("h1"), Holder("broken"), Holder("h2")]
        for holder in holders:
            prover.want(holder)
        running = asyncio.create_task(prover.run())
        await asyncio.sleep(1)
        running.cancel()

        assert [each.proofs for each in holders] == [1, 0, 1]
        assert not any(each.losses for each in holders)

    run(world)


def test_a_host_that_cannot_be_shut_out_keeps_no_other_in() -> None:
    """They are written one after the other, and the first was tried for ever."""

    async def world() -> None:
        store = await _store("h1")
        host = Host(name="h1", cell="east", zone="z1", capacity=CAPACITY, cert_serial="1")
        await store.commit(Txn(put={HOST.at("h1"): encode(host)}))
        quarantines = Quarantines(store, clock=LoopClock(), ids=CountingIds("q"), jitter=lambda: 0.5)
        quarantines.put("broken", "1", "lied")
        quarantines.put("h1", "1", "lied")
        running = asyncio.create_task(quarantines.run())
        await asyncio.sleep(2)
        running.cancel()

        stored = (await store.get(SESSION.at("h1"))).value(SESSION.at("h1"))
        assert stored is not None
        assert decode(Session, stored).state is SessionState.QUARANTINED

    run(world)


def test_a_server_that_cannot_be_looked_after_keeps_no_other_from_it() -> None:
    """A round over overdue tasks ended at the first that failed, and began there again two seconds later."""

    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            host = await cell.up(service, "h1")
            host.keep_beating()
            for number in (1, 2):
                await cell.place(number, "h1", task_deadline_ms=cell.clock.now_ms() + 1000)
            await cell.store.commit(Txn(put={TOMBSTONE.at("h1", instance_id(1)): NO_RECORD}))

            async def is_ended() -> bool:
                return (await cell.instance(2)).task is TaskState.NONE

            await until(is_ended)

            assert (await cell.instance(1)).task is TaskState.SPAWNING

    run(world)


def test_a_broken_volume_keeps_no_other_from_being_forgotten() -> None:
    """All that came after it by key stayed for ever: a round over volumes that have ended began anew, and ended there each time."""

    async def world() -> None:
        async with World() as cell:
            over = Volume(id="over", project_id="p", state=VolumeState.DELETED, update_time_ms=1)
            await cell.store.commit(
                Txn(put={VOLUME.at("broken"): NO_RECORD, VOLUME.at("over"): encode(over)})
            )
            await cell.conductor()

            async def is_forgotten() -> bool:
                return VOLUME.at("over") not in (await cell.store.list(VOLUME.under())).entries

            await until(is_forgotten, within_s=3600)

            assert list((await cell.store.list(VOLUME.under())).entries) == [VOLUME.at("broken")]

    run(world)


def test_a_broken_order_keeps_the_host_from_no_other_servers_image() -> None:
    """All orders of a host are looked through for the image: one that did not parse kept it from making any other server."""

    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            await cell.place(1, "h1")
            await cell.store.commit(Txn(put={ASSIGNMENT.at("h1", instance_id(0)): NO_RECORD}))

            data = [piece async for piece in service.fetch_image("h1", SERIAL, IMAGE, 7)]

            assert data

    run(world)
