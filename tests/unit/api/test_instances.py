"""Servers through the handlers, on stores in memory and virtual time: what is written, and what is shown while a cell is silent."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from random import Random
from types import MappingProxyType
from typing import Any

import pytest

from fabric.api.catalogue import Catalogue
from fabric.api.cells import Cells
from fabric.api.instance_events import InstanceEventHandlers
from fabric.api.instances import InstanceHandlers
from fabric.api.network_desk import Desk
from fabric.api.pages import Pages
from fabric.api.placed import Whereabouts
from fabric.api.watching import Watching
from fabric.errors import (
    Ambiguous,
    Conflict,
    FabricError,
    InvalidRequest,
    NoCapacity,
    Reason,
    Unavailable,
    WrongState,
)
from fabric.identity.tokens import Tokens
from fabric.ids import RandomIds
from fabric.model.flavor import Flavor
from fabric.model.host import Cell, CellCapacity, Resources, Session, SessionState
from fabric.model.identity import Principal, Role
from fabric.model.image import Image, ImageFormat, ImageState
from fabric.model.instance import ActionMark, Assignment, Build, Instance, OneShot
from fabric.model.network import Network
from fabric.model.network_plan import PlanState
from fabric.model.quota import Charge, NetworkLimits, Quota
from fabric.model.states import TaskState, VmState, Want
from fabric.observability.failpoints import NO_FAILPOINTS, Failpoints
from fabric.pb.compute.v1 import instance_service_pb2 as pb
from fabric.quota.ledger import Ledger
from fabric.store.base import Batch, Committed, Refused, Snapshot, Txn
from fabric.store.codec import decode, encode
from fabric.store.keys import (
    ASSIGNMENT,
    BUILD,
    CAPACITY,
    CELL,
    FLAVOR,
    IMAGE,
    INSTANCE,
    LOCATION,
    NETWORK,
    NETWORK_NAME,
    OVER,
    QUOTA,
    REFUND,
    SESSION,
    Key,
)
from fabric.store.memory import MemoryStore
from tests.console_doubles import NoGuests
from tests.sim.loop import SimLoop
from tests.unit.store.virtual import LoopClock

WHO = Principal(user_id="u", user_name="u", project_id="p", project_name="p", role=Role.MEMBER)


class Faulty(MemoryStore):
    """A store that may answer nothing, or lose the answers to writes that it applied."""

    is_silent = False
    is_deaf = False
    """Reads are answered, writes are not."""
    losing = 0
    largest = 0
    """Compares or writes of the largest transaction there was, whichever were more."""
    lags_s: Mapping[str, float] = MappingProxyType({})
    """How late the watches of prefixes are."""
    holds_s: Mapping[str, float] = MappingProxyType({})
    """How long the next read of a key is held up."""
    list_s: float = 0.0
    """How long reading everything under a prefix takes."""

    async def get(self, *keys: str) -> Snapshot:
        await self._wait()
        held = {key: self.holds_s[key] for key in keys if key in self.holds_s}
        self.holds_s = {key: hold_s for key, hold_s in self.holds_s.items() if key not in held}
        if held:
            await asyncio.sleep(max(held.values()))
        return await super().get(*keys)

    async def list(self, prefix: str) -> Snapshot:
        await self._wait()
        await asyncio.sleep(self.list_s)
        return await super().list(prefix)

    async def commit(self, txn: Txn) -> Committed | Refused:
        await self._wait()
        while self.is_deaf:
            await asyncio.sleep(1.0)
        self.largest = max(self.largest, len(txn.unchanged), len(txn.put) + len(txn.delete))
        outcome = await super().commit(txn)
        if self.losing and isinstance(outcome, Committed):
            self.losing -= 1
            raise Ambiguous("the answer was lost")
        return outcome

    async def watch(self, prefix: str, *, after: int) -> AsyncIterator[Batch]:
        async for batch in super().watch(prefix, after=after):
            await asyncio.sleep(self.lags_s.get(prefix, 0.0))
            yield batch

    async def _wait(self) -> None:
        while self.is_silent:
            await asyncio.sleep(1.0)


class Consoles(NoGuests):
    """Conductors. `silent` ones never answer, and `failure` is what the others say where it is set."""

    is_silent = False
    silent: frozenset[str] = frozenset()
    failure: FabricError | None = None

    async def console_log(self, where: Whereabouts, *, tail_bytes: int) -> bytes:
        return f"{where.conductor} {where.host} {where.placement_epoch}\nlogin:".encode()

    async def plan_state(self, endpoint: str, host: str) -> PlanState | None:
        return None

    async def progress(self, endpoint: str, instance_ids: Sequence[str]) -> Mapping[str, str]:
        if self.is_silent or endpoint in self.silent:
            await asyncio.sleep(60.0)
        if self.failure is not None:
            raise self.failure
        return dict.fromkeys(instance_ids, "image 40 %")


class World:
    """One API server over a global store and two cells, with something on the menu."""

    failpoints: Failpoints = NO_FAILPOINTS
    reclaim_s = 0.0

    def __init__(self) -> None:
        self.store = Faulty("global")
        self.consoles = Consoles()
        self.cells = {name: Faulty(name) for name in ("c1", "c2")}
        clock, ids = LoopClock(), RandomIds()
        catalogue = Catalogue(self.store, clock=clock)
        cells = Cells(self.cells, clock=clock)
        self.handlers = InstanceHandlers(
            catalogue=catalogue,
            cells=cells,
            ledger=Ledger(self.store, ids=ids, jitter=lambda: 0.5),
            desk=Desk(self.store, limits=NetworkLimits(), clock=clock, ids=ids, jitter=lambda: 0.5),
            conductors=self.consoles,
            pages=Pages(),
            clock=clock,
            ids=ids,
            jitter=lambda: 0.5,
            failpoints=self.failpoints,
            reclaim_s=self.reclaim_s,
        )
        self.catalogue, self.views = catalogue, cells
        self.tokens = Tokens(self.store, clock=clock, ids=ids)
        self.events = InstanceEventHandlers(
            catalogue=catalogue,
            cells=cells,
            watching=Watching(
                catalogue=catalogue,
                cells=cells,
                view=self.handlers.view,
                tokens=self.tokens,
                clock=clock,
            ),
        )
        self._runs: tuple[Callable[[], Coroutine[Any, Any, None]], ...] = (catalogue.run, cells.run)
        self._requests = 0

    async def live(self, claim: Callable[[World], Awaitable[None]]) -> None:
        limit = Charge(instances=3, vcpus=100, ram_mib=100_000)
        records: list[tuple[str, object]] = [
            (QUOTA.at("p"), Quota(project_id="p", limit=limit)),
            (FLAVOR.at("f"), Flavor(id="f", name="m1", vcpus=1, ram_mib=512, disk_gib=1)),
            (NETWORK.at("n"), Network(id="n", name="default")),
            (NETWORK_NAME.at("default"), "n"),
            (CELL.at("c1"), Cell(name="c1")),
            (CELL.at("c2"), Cell(name="c2", enabled=False)),
            (
                IMAGE.at("i"),
                Image(id="i", name="linux", project_id="p", format=ImageFormat.RAW, state=ImageState.ACTIVE),
            ),
        ]
        await self.store.commit(Txn(put={key: encode(value) for key, value in records}))
        running = [asyncio.create_task(each()) for each in self._runs]
        await asyncio.sleep(1.0)
        try:
            await claim(self)
        finally:
            for each in running:
                each.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            for store in (self.store, *self.cells.values()):
                await store.close()

    def rid(self) -> str:
        self._requests += 1
        return f"r{self._requests}"

    async def create(self, name: str = "web", **fields: Any) -> pb.Instance:
        asked = {"request_id": self.rid(), "name": name, "flavor": "m1", "image": "linux", **fields}
        request = pb.CreateInstanceRequest(**asked)
        return (await self.handlers.create_instance(request, WHO)).instance

    async def placed(self, name: str = "web") -> str:
        """A server that a scheduler has claimed a host for, and that runs."""
        made = await self.create(name)
        build = await self.read(self.store, BUILD, "c1", made.id)
        assert build is not None
        record = Instance(
            id=made.id,
            request=build.request,
            vm_state=VmState.ACTIVE,
            host="h1",
            placement_epoch=1,
            observed_generation=1,
        )
        order = Assignment(
            instance_id=made.id,
            placement_epoch=1,
            generation=1,
            want=Want.RUN,
            action=ActionMark(),
            guest=build.request.guest,
        )
        session = Session(host="h1", epoch=1, state=SessionState.UP, conductor="127.0.0.1:7620")
        await self.cells["c1"].commit(
            Txn(
                put={
                    INSTANCE.at(made.id): encode(record),
                    ASSIGNMENT.at("h1", made.id): encode(order),
                    SESSION.at("h1"): encode(session),
                }
            )
        )
        await self.store.commit(Txn(delete=(BUILD.at("c1", made.id),)))
        await asyncio.sleep(0.1)
        return made.id

    async def get(self, word: str) -> pb.Instance:
        return (await self.handlers.get_instance(pb.GetInstanceRequest(instance=word), WHO)).instance

    async def stop(self, word: str, request_id: str = "") -> pb.Instance:
        request = pb.StopInstanceRequest(request_id=request_id or self.rid(), instance=word)
        return (await vars(self.handlers)["stop_instance"](request, WHO)).instance

    async def delete(self, word: str, request_id: str = "") -> None:
        request = pb.DeleteInstanceRequest(request_id=request_id or self.rid(), instance=word)
        await self.handlers.delete_instance(request, WHO)

    async def read(self, store: MemoryStore, kind: Key, *fields: str) -> Any:
        stored = (await MemoryStore.get(store, kind.at(*fields))).value(kind.at(*fields))
        return None if stored is None else decode(kind.record, stored)

    async def used(self) -> int:
        quota: Quota = await self.read(self.store, QUOTA, "p")
        return quota.used.instances


def in_a_world(claim: Callable[[World], Awaitable[None]], *, kind: type[World] = World) -> Callable[[], None]:
    def test() -> None:
        async def world() -> None:
            await kind().live(claim)

        SimLoop(Random(0)).run_world(world())

    test.__name__ = claim.__name__
    return test


def elapsed_s(since_s: float = 0.0) -> float:
    return asyncio.get_running_loop().time() - since_s


# ------------------------------------------------------------------------------------------ create


@in_a_world
async def test_a_create_is_one_write_that_charges_indexes_and_queues(world: World) -> None:
    before = world.store.revision
    made = await world.create(user_data=b"#!/bin/sh")

    build: Build = await world.read(world.store, BUILD, "c1", made.id)
    assert world.store.revision == before + 1
    assert (made.status.state, made.status.cell, await world.used()) == ("BUILD", "c1", 1)
    assert build.request.guest.user_data == b"#!/bin/sh"
    assert (await world.read(world.store, LOCATION, made.id)).cell == "c1"


@pytest.mark.parametrize(("field", "key"), [("flavor", FLAVOR.at("f")), ("image", IMAGE.at("i"))])
def test_what_was_deleted_a_moment_ago_makes_no_server(field: str, key: str) -> None:
    @in_a_world
    async def in_the_picture_still_and_in_the_store_no_more(world: World) -> None:
        await world.store.commit(Txn(delete=(key,)))

        with pytest.raises(InvalidRequest) as refused:
            await world.create()

        assert refused.value.field == field
        assert await world.used() == 0

    in_the_picture_still_and_in_the_store_no_more()


@in_a_world
async def test_a_create_is_of_the_flavor_as_it_is(world: World) -> None:
    now = Flavor(id="f", name="m1", vcpus=2, ram_mib=1024, disk_gib=1)
    await world.store.commit(Txn(put={FLAVOR.at("f"): encode(now)}))

    made = await world.create()

    assert (made.spec.vcpus, made.spec.ram_mib) == (2, 1024)


@in_a_world
async def test_a_create_whose_answer_is_lost_is_accepted_once(world: World) -> None:
    world.store.losing = 1

    made = await world.create(request_id="same")
    again = await world.create(request_id="same")

    assert made.id == again.id
    assert await world.used() == 1
    with pytest.raises(Conflict) as raised:
        await world.create("other", request_id="same")
    assert raised.value.reason is Reason.REQUEST_ID_MISMATCH


@in_a_world
async def test_validate_only_checks_everything_and_writes_nothing(world: World) -> None:
    before = world.store.revision

    shown = await world.create(validate_only=True)

    assert shown.spec.ram_mib == 512
    assert world.store.revision == before
    with pytest.raises(InvalidRequest):
        await world.create(validate_only=True, flavor="no-such")


@in_a_world
async def test_validate_only_says_what_no_host_can_hold(world: World) -> None:
    """A flavor larger than every host was answered like one that fits: it was asked for, and ended in NO_VALID_HOST."""
    room = Resources(vcpus=8, ram_mib=256, disk_gib=100)
    capacity = CellCapacity(cell="c1", hosts=1, free=room, largest=room)
    await world.store.commit(Txn(put={CAPACITY.at("c1"): encode(capacity)}))
    await asyncio.sleep(1.0)
    before = world.store.revision

    with pytest.raises(NoCapacity, match="512 MiB") as refused:
        await world.create(validate_only=True)

    assert (refused.value.reason, world.store.revision) == (Reason.NO_VALID_HOST, before)


# ------------------------------------------------------------------------------------------ actions


@in_a_world
async def test_an_action_moves_record_and_order_together(world: World) -> None:
    server = await world.placed()

    shown = await world.stop(server)

    record: Instance = await world.read(world.cells["c1"], INSTANCE, server)
    order: Assignment = await world.read(world.cells["c1"], ASSIGNMENT, "h1", server)
    assert (shown.status.task_state, record.task, record.want) == (
        "powering_off",
        TaskState.POWERING_OFF,
        Want.STOP,
    )
    assert (order.generation, order.want) == (record.generation, record.want)
    assert record.generation == 2


@in_a_world
async def test_an_action_sent_again_is_done_once_even_if_its_answer_was_lost(world: World) -> None:
    server = await world.placed()
    world.cells["c1"].losing = 1

    await world.stop(server, "same")
    await world.stop(server, "same")

    record: Instance = await world.read(world.cells["c1"], INSTANCE, server)
    assert record.generation == 2


@in_a_world
async def test_what_the_lifecycle_forbids_says_what_is_allowed(world: World) -> None:
    server = await world.placed()
    await world.stop(server)

    with pytest.raises(WrongState, match="delete"):
        await world.stop(server)


@in_a_world
async def test_a_reboot_is_a_mark_that_counts_up(world: World) -> None:
    server = await world.placed()
    request = pb.RebootInstanceRequest(request_id="r", instance=server, kind=pb.REBOOT_KIND_HARD)
    await world.handlers.reboot_instance(request, WHO)

    order: Assignment = await world.read(world.cells["c1"], ASSIGNMENT, "h1", server)
    assert order.action == ActionMark(seq=1, kind=OneShot.REBOOT_HARD)


@in_a_world
async def test_a_console_is_asked_of_the_conductor_that_has_the_session(world: World) -> None:
    server = await world.placed()

    answer = await world.handlers.get_console_log(pb.GetConsoleLogRequest(instance=server, lines=1), WHO)

    assert answer.output == b"login:"


# ------------------------------------------------------------------------------------------ delete


@in_a_world
async def test_a_delete_before_the_claim_cancels_the_build(world: World) -> None:
    made = await world.create()

    await world.delete(made.id, "same")
    await world.delete(made.id, "same")

    build: Build = await world.read(world.store, BUILD, "c1", made.id)
    assert build.cancelled
    assert (await world.get(made.id)).status.task_state == "deleting"


@in_a_world
async def test_a_delete_of_a_placed_server_is_its_hosts_to_do(world: World) -> None:
    server = await world.placed()
    await world.delete(server)

    order: Assignment = await world.read(world.cells["c1"], ASSIGNMENT, "h1", server)
    assert order.want is Want.ABSENT
    assert await world.used() == 1  # given back when the host has confirmed


@in_a_world
async def test_a_server_that_never_had_a_host_ends_at_once_and_its_charge_is_owed(world: World) -> None:
    made = await world.create()
    build: Build = await world.read(world.store, BUILD, "c1", made.id)
    record = Instance(id=made.id, request=build.request, vm_state=VmState.ERROR)
    cell = world.cells["c1"]
    await cell.commit(Txn(put={INSTANCE.at(made.id): encode(record)}))

    await world.delete(made.id)

    assert await world.read(cell, INSTANCE, made.id) is None
    assert await world.read(cell, OVER, made.id) is not None
    assert (await world.read(cell, REFUND, made.id)).project_id == "p"


# ------------------------------------------------------------------------------------------ names and silent cells


@in_a_world
async def test_a_name_that_two_servers_have_asks_for_the_id(world: World) -> None:
    ids = sorted([(await world.create()).id, (await world.create()).id])

    with pytest.raises(InvalidRequest) as raised:
        await world.get("web")

    assert raised.value.reason is Reason.NAME_AMBIGUOUS
    assert all(each in raised.value.message for each in ids)


@in_a_world
async def test_servers_of_a_silent_cell_are_unknown_with_the_cell_named(world: World) -> None:
    server = await world.placed()
    world.cells["c1"].is_silent = True
    await asyncio.sleep(5.0)

    begin_s = elapsed_s()
    listed = await world.handlers.list_instances(pb.ListInstancesRequest(), WHO)
    assert elapsed_s(begin_s) <= 1.0
    begin_s = elapsed_s()
    shown = await world.get(server)
    assert elapsed_s(begin_s) <= 2.0

    assert [each.status.state for each in listed.instances] == ["UNKNOWN"]
    assert [each.cell for each in listed.unreachable_cells] == ["c1"]
    assert (shown.status.state, shown.status.cell, shown.name) == ("UNKNOWN", "c1", "web")


@in_a_world
async def test_an_action_in_a_silent_cell_fails_in_time_naming_it_and_works_when_it_is_back(
    world: World,
) -> None:
    server = await world.placed()
    cell = world.cells["c1"]
    cell.is_silent = True

    begin_s = elapsed_s()
    with pytest.raises(Unavailable) as raised:
        await world.stop(server)
    assert elapsed_s(begin_s) <= 2.0
    assert (raised.value.reason, raised.value.facts["cell"]) == (Reason.CELL_UNAVAILABLE, "c1")

    cell.is_silent = False
    await asyncio.sleep(10.0)
    assert (await world.stop(server)).status.task_state == "powering_off"


@in_a_world
async def test_lists_that_are_late_close_no_cell_to_orders(world: World) -> None:
    """A cell with so many servers that reading them anew takes longer than a list waits was held to be away, by orders too, although its
    store answered: three lists were enough.
    """
    server = await world.placed()
    cell = world.cells["c1"]
    cell.list_s, cell.lags_s = 60.0, {INSTANCE.under(): 60.0}
    for number in range(5):
        await cell.commit(Txn(put={f"elsewhere/{number}": b""}))
        listed = await world.handlers.list_instances(pb.ListInstancesRequest(), WHO)
        assert [each.cell for each in listed.unreachable_cells] == ["c1"]

    assert (await world.stop(server)).status.task_state == "powering_off"


@in_a_world
async def test_tenants_do_not_learn_their_host(world: World) -> None:
    server = await world.placed()
    admin = dataclasses.replace(WHO, system_admin=True)

    answer = await world.handlers.get_instance(pb.GetInstanceRequest(instance=server), admin)

    assert (await world.get(server)).status.host == ""
    assert answer.instance.status.host == "h1"


@in_a_world
async def test_conductors_that_do_not_answer_hold_up_a_list_once_not_one_by_one(world: World) -> None:
    server = await world.placed()
    await world.stop(server)
    await world.cells["c2"].commit(
        Txn(put={SESSION.at("h1"): encode(Session(host="h1", epoch=1, state=SessionState.UP, conductor="x"))})
    )
    other = await world.placed("db")
    record: Instance = await world.read(world.cells["c1"], INSTANCE, other)
    location = await world.read(world.store, LOCATION, other)
    moved = dataclasses.replace(record, task=TaskState.POWERING_OFF)
    await world.cells["c2"].commit(Txn(put={INSTANCE.at(other): encode(moved)}))
    await world.store.commit(Txn(put={LOCATION.at(other): encode(dataclasses.replace(location, cell="c2"))}))
    await asyncio.sleep(0.1)
    world.consoles.is_silent = True

    begin_s = elapsed_s()
    listed = await world.handlers.list_instances(pb.ListInstancesRequest(), WHO)

    assert {each.status.cell for each in listed.instances} == {"c1", "c2"}
    assert elapsed_s(begin_s) < 0.5


@in_a_world
async def test_a_write_that_was_cut_off_is_said_to_be_open_not_undone(world: World) -> None:
    server = await world.placed()
    cell = world.cells["c1"]
    cell.is_deaf = True

    with pytest.raises(Ambiguous) as raised:
        await world.stop(server)

    assert (raised.value.reason, raised.value.facts["cell"]) == (Reason.CELL_UNAVAILABLE, "c1")
    assert "request_id" in raised.value.message


@in_a_world
async def test_a_write_whose_answer_was_lost_for_good_names_its_cell_too(world: World) -> None:
    """The store's own words came through: which store, but not that it is the server's cell, and nothing about what to do."""

    async def lost() -> None:
        raise Ambiguous("the answer was lost", store="c1")

    with pytest.raises(Ambiguous) as raised:
        await world.views["c1"].change(lost)

    assert (raised.value.reason, raised.value.facts["cell"]) == (Reason.CELL_UNAVAILABLE, "c1")
