"""What becomes of writes and leases when members die, pause, fall silent or lose each other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from fabric.clock import SystemClock
from fabric.errors import Ambiguous, NotFound, Unavailable
from fabric.store.base import Committed, Refused, Store, Txn
from fabric.store.etcd import EtcdSettings, EtcdStore
from fabric.store.settle import commit_settled
from tests.chaos.etcd_process import Certificates, Cluster, find_binaries
from tests.chaos.proxy import Proxy

Connect = Callable[..., EtcdStore]

GUARD_S = 20.0
"""Ends a test whose call hangs: ten times what the settings promise, so that a busy machine does not fail it."""


async def history(store: Store, key: str) -> list[bytes | None]:
    """Every value a key ever had, by a watch from the first revision."""
    snapshot = await store.get(key)
    values: list[bytes | None] = []
    async for batch in store.watch(key, after=0):
        values += [event.value for event in batch.events if event.key == key]
        if batch.revision >= snapshot.seen(key):
            break
    return values


# ---------------------------------------------------------------------------------------- away or unknown


async def test_nobody_there_is_unavailable_and_never_ambiguous(single: Cluster, connect: Connect) -> None:
    single.members[0].kill()
    store = connect(single.settings())

    async with asyncio.timeout(GUARD_S):
        for asking in (
            store.get("a"),
            store.list(""),
            store.commit(Txn(put={"a": b"1"})),
            store.grant(10),
        ):
            with pytest.raises(Unavailable) as caught:
                await asking
            assert not isinstance(caught.value, Ambiguous)


async def test_a_write_to_a_paused_member_is_ambiguous_and_a_read_unavailable(
    single: Cluster, connect: Connect
) -> None:
    store = connect(single.settings())
    await store.get()
    single.members[0].pause()

    async with asyncio.timeout(2 * GUARD_S):
        with pytest.raises(Ambiguous):
            await store.commit(Txn(put={"a": b"1"}))
        with pytest.raises(Unavailable) as caught:
            await store.get("a")
    assert not isinstance(caught.value, Ambiguous)
    single.members[0].resume()
    await asyncio.to_thread(single.members[0].wait_healthy)
    assert (await store.get("a")).value("a") in {None, b"1"}


@pytest.mark.timeout(300)
async def test_without_a_quorum_calls_end_soon_and_later_succeed(three: Cluster, connect: Connect) -> None:
    store = connect(three.settings())
    await store.commit(Txn(put={"a": b"1"}))
    lost = three.members[:2]
    for member in lost:
        member.pause()

    answered: list[type[BaseException]] = []
    async with asyncio.timeout(10 * GUARD_S):
        while len(answered) < 3 or answered[-1] is not Unavailable:
            with pytest.raises(Unavailable) as caught:
                async with asyncio.timeout(GUARD_S):
                    await store.commit(Txn(put={"a": b"2"}))
            answered.append(caught.type)
        with pytest.raises(Unavailable):
            await store.get("a")
        for member in lost:
            member.resume()
        while True:
            with contextlib.suppress(Unavailable):
                # Not the same key: a write in doubt may still be applied, after this one.
                await store.commit(Txn(put={"b": b"3"}))
                break
    # Once the rest knows that there is no leader it turns writes away before trying: nothing is left in doubt.
    assert answered[-1] is Unavailable
    assert (await retried(store, "b"))[1] == b"3"


async def test_a_dead_member_in_the_list_does_not_matter(three: Cluster, connect: Connect) -> None:
    three.members[0].kill()
    await asyncio.to_thread(three.leader)

    for _ in range(5):
        store = connect(three.settings())
        assert isinstance(await store.commit(Txn(put={"a": b"1"})), Committed)


async def test_a_lost_answer_is_ambiguous_and_the_write_is_found(single: Cluster, connect: Connect) -> None:
    direct = connect(single.settings())
    async with Proxy(single.endpoints[0]) as proxy:
        store = connect(single.settings(proxy.endpoint))
        await store.get()
        proxy.silence("down")

        with structlog.testing.capture_logs() as logs:

            async def heal_when_applied_and_given_up() -> None:
                async for _ in direct.watch("a", after=0):
                    break
                while not any(log["event"] == "store.try_failed" for log in logs):
                    await asyncio.sleep(0.05)
                proxy.heal()

            healing = asyncio.create_task(heal_when_applied_and_given_up())
            outcome = await commit_settled(store, Txn(unchanged={"a": 0}, put={"a": b"mine"}), mark="a")
            await healing

    assert isinstance(outcome, Committed)
    assert outcome.revision == (await direct.get("a")).seen("a")
    assert await history(direct, "a") == [b"mine"]


async def test_a_request_that_arrives_late_is_applied_once(single: Cluster, connect: Connect) -> None:
    direct = connect(single.settings())
    async with Proxy(single.endpoints[0]) as proxy:
        for round_number in range(5):
            key = f"late/{round_number}"
            store = connect(single.settings(proxy.endpoint))
            await store.get()
            proxy.silence("up")
            asyncio.get_running_loop().call_later(1.0 + 0.3 * round_number, proxy.heal)

            outcome = await commit_settled(store, Txn(unchanged={key: 0}, put={key: b"mine"}), mark=key)

            assert isinstance(outcome, Committed)
            assert await history(direct, key) == [b"mine"]


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_a_leader_lost_under_a_stream_of_writes_loses_and_doubles_none(
    three: Cluster, connect: Connect, fault: str
) -> None:
    store = connect(three.settings())
    committed: list[int] = []
    refused: list[int] = []

    async def write(worker: int) -> None:
        for step in range(60):
            number = worker * 1000 + step
            while True:
                seen = await retried(store, f"w/{worker}")
                txn = Txn(
                    unchanged={f"w/{worker}": seen[0]}, put={f"w/{worker}": b"%d" % number, "noise": b""}
                )
                try:
                    outcome = await commit_settled(store, txn, mark=f"w/{worker}", patience_s=30)
                except Ambiguous as unknown:
                    raise AssertionError("the fate of a write was not found out") from unknown
                except Unavailable:
                    await asyncio.sleep(0.1)
                    continue
                (committed if isinstance(outcome, Committed) else refused).append(number)
                break
            await asyncio.sleep(0.02)

    writing = asyncio.gather(*(write(worker) for worker in range(4)))
    await asyncio.sleep(0.5)
    leader = await asyncio.to_thread(three.leader)
    getattr(leader, fault)()
    async with asyncio.timeout(90):
        await asyncio.sleep(3)
        if fault == "pause":
            leader.resume()
        else:
            leader.start()
        await writing

    assert refused == []
    assert sorted(committed) == [worker * 1000 + step for worker in range(4) for step in range(60)]
    for worker in range(4):
        written = await history(connect(three.settings()), f"w/{worker}")
        assert written == [b"%d" % (worker * 1000 + step) for step in range(60)]


async def retried(store: Store, key: str) -> tuple[int, bytes | None]:
    while True:
        try:
            snapshot = await store.get(key)
        except Unavailable:
            await asyncio.sleep(0.1)
        else:
            return snapshot.seen(key), snapshot.value(key)


# ---------------------------------------------------------------------------------------- leases


class HastyClock(SystemClock):
    """Runs ahead of etcd's: what ends by it has ended well before etcd's own count does."""

    def boot_s(self) -> float:
        return super().boot_s() * 1.5


async def test_a_lease_is_given_up_before_etcd_drops_it(single: Cluster, connect: Connect) -> None:
    """By our own clock, which is made to lead by a second: with clocks that agree etcd may come first while we are only on our way to look
    (seen one time in a hundred, on a machine with nothing else to do).
    """
    direct = connect(single.settings())
    async with Proxy(single.endpoints[0]) as proxy:
        store = connect(single.settings(proxy.endpoint), clock=HastyClock())
        lease = await store.grant(4)
        await store.commit(Txn(put={"alive": b""}, leases={"alive": lease.id}))
        keeping = asyncio.create_task(store.keep_alive(lease))
        await asyncio.sleep(1.5)
        proxy.silence()

        async with asyncio.timeout(GUARD_S):
            await keeping
        assert (await direct.get("alive")).value("alive") == b""
        proxy.heal()


async def test_a_lease_is_kept_through_cuts(single: Cluster, connect: Connect) -> None:
    async with Proxy(single.endpoints[0]) as proxy:
        store = connect(single.settings(proxy.endpoint))
        leases = [await store.grant(5) for _ in range(5)]
        keeping = [asyncio.create_task(store.keep_alive(lease)) for lease in leases]
        for _ in range(14):
            await asyncio.sleep(0.5)
            proxy.cut()

        assert not any(task.done() for task in keeping)
        for task in keeping:
            task.cancel()
        await asyncio.gather(*keeping, return_exceptions=True)
        # Still there: a lease that is gone cannot be bound to.
        for lease in leases:
            await retried(store, "a")
            assert isinstance(await store.commit(Txn(put={"a": b""}, leases={"a": lease.id})), Committed)


async def test_a_lease_outlives_a_member(three: Cluster, connect: Connect) -> None:
    store = connect(three.settings())
    lease = await store.grant(7)
    await store.commit(Txn(put={"alive": b""}, leases={"alive": lease.id}))
    keeping = asyncio.create_task(store.keep_alive(lease))
    await asyncio.sleep(1)
    (await asyncio.to_thread(three.leader)).kill()
    await asyncio.sleep(9)

    assert not keeping.done()
    assert (await retried(store, "alive"))[1] == b""
    keeping.cancel()


async def test_a_lease_ended_by_somebody_else_is_noticed(single: Cluster, connect: Connect) -> None:
    store, other = connect(single.settings()), connect(single.settings())
    lease = await store.grant(3)
    keeping = asyncio.create_task(store.keep_alive(lease))
    await other.revoke(lease)

    async with asyncio.timeout(GUARD_S):
        await keeping
    with pytest.raises(NotFound):
        await store.commit(Txn(put={"a": b""}, leases={"a": lease.id}))


async def test_a_lease_of_another_process_can_be_kept(single: Cluster, connect: Connect) -> None:
    lease = await connect(single.settings()).grant(4)
    keeper = connect(single.settings())
    keeping = asyncio.create_task(keeper.keep_alive(lease))
    await asyncio.sleep(lease.ttl_s + 2)

    assert not keeping.done()
    assert isinstance(await keeper.commit(Txn(put={"a": b""}, leases={"a": lease.id})), Committed)
    keeping.cancel()


# ---------------------------------------------------------------------------------------- who may, and what is said


async def test_only_a_client_certificate_of_our_authority_is_let_in(tmp_path: Path, connect: Connect) -> None:
    binaries = find_binaries()
    if not binaries:
        pytest.skip("NO ETCD HERE: run tools/setup first")
    certificates = Certificates.make(tmp_path / "tls")
    binary = next(iter(binaries.values()))
    with Cluster(tmp_path / "etcd", binary=binary, members=3, certificates=certificates) as cluster:
        ours = cluster.settings()
        nobody = replace(ours, cert_path=None, key_path=None)
        foreign = replace(ours, cert_path=certificates.foreign_cert, key_path=certificates.foreign_key)
        plain = EtcdSettings(endpoints=cluster.endpoints)

        assert isinstance(await connect(ours).commit(Txn(put={"a": b"1"})), Committed)
        for stranger in (nobody, foreign, plain):
            with pytest.raises(Unavailable):
                await connect(stranger).get("a")


async def test_a_server_of_another_authority_is_not_believed(tmp_path: Path, connect: Connect) -> None:
    binaries = find_binaries()
    if not binaries:
        pytest.skip("NO ETCD HERE: run tools/setup first")
    theirs, ours = Certificates.make(tmp_path / "theirs"), Certificates.make(tmp_path / "ours")
    with (
        Cluster(tmp_path / "e", binary=next(iter(binaries.values())), certificates=theirs) as cluster,
        pytest.raises(Unavailable),
    ):
        await connect(replace(cluster.settings(), ca_path=ours.ca)).get("a")


async def test_an_etcd_too_old_to_be_sound_is_warned_of(single: Cluster, connect: Connect) -> None:
    said: dict[str, Any] = {}
    with structlog.testing.capture_logs() as logs:
        await connect(single.settings()).get()
        # The version is asked for beside the first call.
        async with asyncio.timeout(GUARD_S):
            while not said.keys() & {"store.etcd_unsound", "store.etcd_connected"}:
                await asyncio.sleep(0.02)
                said = {log["event"]: log for log in logs}

    version = (said.get("store.etcd_unsound") or said["store.etcd_connected"])["version"]
    assert ("store.etcd_unsound" in said) == (version < "3.5")


async def test_values_are_never_logged(single: Cluster, connect: Connect) -> None:
    store = connect(single.settings())
    with structlog.testing.capture_logs() as logs:
        await store.commit(Txn(put={"a": b"swordfish"}))
        single.members[0].pause()
        with pytest.raises(Ambiguous) as caught:
            await store.commit(Txn(put={"a": b"swordfish"}))
        single.members[0].resume()

    assert logs
    assert "swordfish" not in repr(logs) + repr(caught.value) + repr(caught.value.facts)


async def test_a_refusal_after_a_lost_answer_is_told_apart_from_success(
    single: Cluster, connect: Connect
) -> None:
    """Somebody else wrote first while our request was stuck; ours can never be applied any more."""
    direct = connect(single.settings())
    async with Proxy(single.endpoints[0]) as proxy:
        store = connect(single.settings(proxy.endpoint))
        await store.get()
        proxy.silence("up")

        async def other() -> None:
            await direct.commit(Txn(put={"a": b"theirs"}))
            await asyncio.sleep(2)
            proxy.heal()

        (outcome, _) = await asyncio.gather(
            commit_settled(store, Txn(unchanged={"a": 0}, put={"a": b"mine"}), mark="a"), other()
        )

    assert isinstance(outcome, Refused)
    assert outcome.current.value("a") == b"theirs"
    assert await history(direct, "a") == [b"theirs"]
