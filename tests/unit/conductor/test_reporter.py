"""Hosts' measurements: many to a transaction, each under its host's session."""

from __future__ import annotations

import asyncio

from fabric.conductor.reporter import TOGETHER, Reporter
from fabric.model.host import Host, HostReport, Resources, Session, SessionState
from fabric.model.session import Report
from fabric.store import codec
from fabric.store.base import Txn
from fabric.store.keys import HOST, REPORT, SESSION
from fabric.store.memory import MemoryStore

CAPACITY = Resources(vcpus=8, ram_mib=8192, disk_gib=100)
EPOCH = 3


class StoppedClock:
    def now_ms(self) -> int:
        return 1

    def boot_s(self) -> float:
        return 1.0


async def _store(hosts: int) -> MemoryStore:
    store = MemoryStore("cell1")
    for number in range(hosts):
        name = f"h{number}"
        host = Host(name=name, cell="cell1", zone="z", capacity=CAPACITY, guest_cidr="10.0.0.0/24", slots=9)
        session = Session(host=name, epoch=EPOCH, state=SessionState.UP)
        await store.commit(
            Txn(put={HOST.at(name): codec.encode(host), SESSION.at(name): codec.encode(session)})
        )
    return store


def _report(*, epoch: int = EPOCH, running: int = 1) -> Report:
    return Report(
        epoch=epoch,
        total=CAPACITY,
        used=CAPACITY,
        running=running,
        hypervisor="qemu",
        hypervisor_version="7.2",
        agent_version="1.0",
    )


async def _once(reporter: Reporter) -> None:
    """Everything that waits, and not the pause after it: a store in memory answers at once."""
    running = asyncio.create_task(reporter.run())
    for _ in range(10):
        await asyncio.sleep(0)
    running.cancel()


async def _stored(store: MemoryStore) -> dict[str, HostReport]:
    found = await store.list(REPORT.under())
    return {
        key.partition("/")[2]: codec.decode(HostReport, each.value) for key, each in found.entries.items()
    }


async def test_the_reports_of_many_hosts_share_a_transaction() -> None:
    store = await _store(TOGETHER + 1)
    reporter = Reporter(store, clock=StoppedClock())
    before = store.revision
    for number in range(TOGETHER + 1):
        reporter.tell(f"h{number}", EPOCH, _report())

    await _once(reporter)

    assert len(await _stored(store)) == TOGETHER + 1
    assert store.revision == before + 2


async def test_only_the_latest_report_of_a_host_is_written() -> None:
    store = await _store(1)
    reporter = Reporter(store, clock=StoppedClock())
    reporter.tell("h0", EPOCH, _report(running=1))
    reporter.tell("h0", EPOCH, _report(running=2))

    await _once(reporter)

    assert (await _stored(store))["h0"].running == 2


async def test_a_report_of_an_earlier_session_is_not_written_and_keeps_nobody_elses_back() -> None:
    store = await _store(2)
    reporter = Reporter(store, clock=StoppedClock())
    reporter.tell("h0", EPOCH - 1, _report(epoch=EPOCH - 1))
    reporter.tell("h1", EPOCH, _report())

    await _once(reporter)

    assert set(await _stored(store)) == {"h1"}


async def test_a_broken_record_costs_the_other_hosts_nothing() -> None:
    store = await _store(3)
    await store.commit(Txn(put={SESSION.at("h1"): b"\xff\xff not a record"}))
    reporter = Reporter(store, clock=StoppedClock())
    for number in range(3):
        reporter.tell(f"h{number}", EPOCH, _report())

    await _once(reporter)

    assert set(await _stored(store)) == {"h0", "h2"}
