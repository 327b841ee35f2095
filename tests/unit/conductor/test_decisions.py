"""Decisions on values: what each relies on, so that nothing is written on the strength of what has moved (R1, I6)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fabric.conductor.core import fence, flow, permit, repair
from fabric.conductor.core.draft import Draft, Found
from fabric.errors import Bug
from fabric.model.host import Host, Resources, Session, SessionState, Use
from fabric.model.instance import Assignment, Instance, Request, Tombstone
from fabric.model.network import NO_SLOT, Port
from fabric.model.session import Hello, HostState, Released, Status
from fabric.model.states import PowerState, TaskState, VmState, Want
from fabric.store.keys import ALIVE, ASSIGNMENT, HOST, INSTANCE, OVER, REFUND, SESSION, TOMBSTONE, USE
from tests.unit.conductor.worlds import CAPACITY, EPOCH_MS, GUEST, SERIAL, assignment_of, guest, instance_id

NOW_MS = EPOCH_MS
ONE = instance_id(1)
INVENTORY = Host(
    name="h1",
    cell="east",
    zone="z1",
    capacity=CAPACITY,
    cert_serial=SERIAL,
    guest_cidr="10.1.0.0/24",
    slots=9,
)
UP = Session(host="h1", epoch=7, state=SessionState.UP)
BUILDING = Instance(
    id=ONE,
    request=Request(guest=guest(1), network_id="net"),
    vm_state=VmState.BUILDING,
    task=TaskState.SPAWNING,
    host="h1",
    placement_epoch=1,
    slot=0,
    task_deadline_ms=NOW_MS + 1,
)
OWN_PORT = Port(
    id="own",
    network_id="net",
    network_name="default",
    mac="fa:16:3e:00:00:00",
    address="10.1.0.10",
    prefix_length=24,
    gateway="10.1.0.1",
)
STATUS = Status(
    epoch=7,
    instance_id=ONE,
    placement_epoch=1,
    generation=1,
    action_seq=0,
    state=HostState.ACTIVE,
    power=PowerState.RUNNING,
)
FAILED = replace(STATUS, state=HostState.ERROR, power=PowerState.NOSTATE, fault_code="DISK_FULL")


def _draft() -> Draft:
    """A placed instance on a host that is up, with the next host beside it. Revisions are all 5."""
    values: dict[str, object | None] = {
        SESSION.at("h1"): UP,
        HOST.at("h1"): INVENTORY,
        USE.at("h1"): Use(host="h1", claimed=GUEST, instances=1, slots=(0,)),
        INSTANCE.at(ONE): BUILDING,
        ASSIGNMENT.at("h1", ONE): assignment_of(BUILDING),
        TOMBSTONE.at("h1", ONE): None,
        ALIVE.at("h1"): None,
        SESSION.at("h2"): replace(UP, host="h2"),
        HOST.at("h2"): replace(INVENTORY, name="h2"),
        USE.at("h2"): None,
    }
    return Draft({key: Found(value, 0 if value is None else 5) for key, value in values.items()})


def _with(value: object, key: str) -> Draft:
    draft = _draft()
    return Draft({**draft._found, key: Found(value, 0 if value is None else 5)})


def _take(draft: Draft, status: Status, *, epoch: int = 7) -> flow.Outcome:
    return flow.take_status(draft, "h1", epoch, status, now_ms=NOW_MS, op_id="op")


def test_a_status_relies_on_the_record_and_on_the_session() -> None:
    draft = _draft()

    assert _take(draft, STATUS) is flow.ACCEPTED
    assert draft.unchanged == {SESSION.at("h1"): 5, INSTANCE.at(ONE): 5}
    assert draft.puts.keys() == {INSTANCE.at(ONE)}


def test_an_end_relies_on_all_it_ends() -> None:
    deleting = replace(BUILDING, task=TaskState.DELETING, want=Want.ABSENT)
    draft = _with(deleting, INSTANCE.at(ONE))

    _take(draft, replace(STATUS, state=HostState.ABSENT, power=PowerState.NOSTATE))

    assert draft.unchanged == dict.fromkeys(
        (SESSION.at("h1"), INSTANCE.at(ONE), ASSIGNMENT.at("h1", ONE), USE.at("h1")), 5
    )
    assert set(draft.deletes) == {INSTANCE.at(ONE), ASSIGNMENT.at("h1", ONE)}
    assert draft.puts.keys() == {USE.at("h1"), OVER.at(ONE), REFUND.at(ONE)}
    assert draft.get(USE, "h1") == Use(host="h1", op_id="op")


def test_a_move_relies_on_both_hosts() -> None:
    draft = _with(replace(BUILDING, alternates=("h2",)), INSTANCE.at(ONE))

    _take(draft, FAILED)

    compared = (
        SESSION.at("h1"),
        USE.at("h1"),
        INSTANCE.at(ONE),
        ASSIGNMENT.at("h1", ONE),
        SESSION.at("h2"),
        HOST.at("h2"),
    )
    assert draft.unchanged == {**dict.fromkeys(compared, 5), USE.at("h2"): 0}
    assert draft.get(TOMBSTONE, "h1", ONE) == Tombstone(instance_id=ONE, placement_epoch=1)
    assert draft.get(ASSIGNMENT, "h1", ONE) is None
    moved = draft.get(ASSIGNMENT, "h2", ONE)
    assert moved is not None
    record = draft.get(INSTANCE, ONE)
    assert record is not None
    assert (moved.placement_epoch, moved.want) == (2, Want.RUN)
    assert moved.generation == record.generation > BUILDING.generation


@pytest.mark.parametrize("state", sorted(set(SessionState) - {SessionState.UP}))
def test_only_a_host_that_is_up_is_moved_to(state: SessionState) -> None:
    draft = _with(replace(BUILDING, alternates=("h2",)), INSTANCE.at(ONE))
    draft = Draft({**draft._found, SESSION.at("h2"): Found(replace(UP, host="h2", state=state), 5)})

    _take(draft, FAILED)

    after = draft.get(INSTANCE, ONE)
    assert after is not None
    assert (after.host, after.vm_state, after.want) == ("h1", VmState.ERROR, Want.STOP)


def test_a_running_server_that_fails_is_never_moved() -> None:
    running = replace(BUILDING, vm_state=VmState.ACTIVE, task=TaskState.NONE, alternates=("h2",))
    draft = _with(running, INSTANCE.at(ONE))

    _take(draft, FAILED)

    after = draft.get(INSTANCE, ONE)
    assert after is not None
    assert (after.host, after.vm_state) == ("h1", VmState.ERROR)


@pytest.mark.parametrize("state", sorted(set(SessionState) - fence.LIVE))
def test_whoever_has_lost_the_session_writes_nothing(state: SessionState) -> None:
    for session in (None, replace(UP, epoch=8), replace(UP, state=state)):
        draft = _with(session, SESSION.at("h1"))

        assert _take(draft, STATUS) is flow.LOST
        released = Released(epoch=7, instance_id=ONE, placement_epoch=1)
        assert flow.take_released(draft, "h1", 7, released, now_ms=0, op_id="op") is flow.LOST
        assert fence.settle_in(draft, "h1", 7, now_ms=NOW_MS, op_id="op") is None
        assert not draft


def test_unreachable_relies_on_the_sign_of_life_being_gone() -> None:
    draft = _draft()

    assert fence.mark_unreachable(draft, "h1", now_ms=NOW_MS, op_id="op")
    assert draft.unchanged == {SESSION.at("h1"): 5, ALIVE.at("h1"): 0}
    marked = draft.get(SESSION, "h1")
    assert marked is not None
    assert (marked.state, marked.epoch) == (SessionState.UNREACHABLE, 7)
    assert not fence.mark_unreachable(_with("7", ALIVE.at("h1")), "h1", now_ms=NOW_MS, op_id="op")


def test_a_join_relies_on_the_session_and_on_what_the_admin_approved() -> None:
    draft = _draft()

    joined = fence.join(
        draft,
        "h1",
        Hello(boot_id="b", agent_version="1", highest_epoch=3),
        cert_serial=SERIAL,
        conductor="c1:1",
        now_ms=NOW_MS,
        op_id="op",
    )

    assert isinstance(joined, Session)
    assert (joined.epoch, joined.state) == (8, SessionState.JOIN)
    assert draft.unchanged == {SESSION.at("h1"): 5, HOST.at("h1"): 5}


@pytest.mark.parametrize("before", [None, UP])
def test_a_host_cannot_use_up_the_epochs_of_its_name(before: Session | None) -> None:
    known_epoch = 0 if before is None else before.epoch

    def join(highest_epoch: int) -> Session | fence.No:
        return fence.join(
            _with(before, SESSION.at("h1")),
            "h1",
            Hello(boot_id="b", agent_version="1", highest_epoch=highest_epoch),
            cert_serial=SERIAL,
            conductor="c1",
            now_ms=NOW_MS,
            op_id="op",
        )

    restored, greedy = join(known_epoch + fence.EPOCH_LEAP), join(known_epoch + fence.EPOCH_LEAP + 1)

    assert isinstance(restored, Session)
    assert restored.epoch == known_epoch + fence.EPOCH_LEAP + 1
    assert isinstance(greedy, fence.No)


def test_a_quarantine_takes_the_epoch_with_it() -> None:
    draft = _draft()

    assert fence.quarantine(draft, "h1", "lied", now_ms=NOW_MS, op_id="op")
    shut_out = draft.get(SESSION, "h1")
    assert shut_out is not None
    assert (shut_out.state, shut_out.epoch, shut_out.reason) == (SessionState.QUARANTINED, 8, "lied")
    assert not fence.holds(shut_out, 7)
    assert not fence.holds(shut_out, 8)


def test_a_deletion_is_buried_only_where_nobody_could_confirm_it() -> None:
    deleting = replace(BUILDING, task=TaskState.DELETING, want=Want.ABSENT, task_deadline_ms=NOW_MS)
    live, gone = _with(deleting, INSTANCE.at(ONE)), _with(deleting, INSTANCE.at(ONE))
    gone = Draft({**gone._found, SESSION.at("h1"): Found(replace(UP, state=SessionState.UNREACHABLE), 5)})

    assert repair.end_overdue(live, "h1", ONE, now_ms=NOW_MS, op_id="op")
    assert repair.end_overdue(gone, "h1", ONE, now_ms=NOW_MS, op_id="op")

    again = live.get(INSTANCE, ONE)
    assert again is not None
    assert (again.task, again.want, again.generation) == (TaskState.DELETING, Want.ABSENT, 2)
    assert again.fault is not None
    order = live.get(ASSIGNMENT, "h1", ONE)
    assert order is not None
    assert order.generation == 2
    assert gone.get(INSTANCE, ONE) is None
    assert gone.get(TOMBSTONE, "h1", ONE) == Tombstone(instance_id=ONE, placement_epoch=1)
    assert SESSION.at("h1") in gone.unchanged


def test_a_deletion_waits_for_no_host_that_is_silent() -> None:
    """It was carried out at its deadline only: for two minutes its quota and its addresses were kept for a host known to be away."""
    deleting = replace(BUILDING, task=TaskState.DELETING, want=Want.ABSENT, task_deadline_ms=NOW_MS + 60_000)
    silent = replace(UP, state=SessionState.UNREACHABLE)
    draft = Draft({**_with(deleting, INSTANCE.at(ONE))._found, SESSION.at("h1"): Found(silent, 5)})

    assert not repair.is_due(deleting, UP, now_ms=NOW_MS)
    assert repair.is_due(deleting, silent, now_ms=NOW_MS)
    assert repair.end_overdue(draft, "h1", ONE, now_ms=NOW_MS, op_id="op")

    assert draft.get(INSTANCE, ONE) is None
    assert draft.get(TOMBSTONE, "h1", ONE) == Tombstone(instance_id=ONE, placement_epoch=1)


def test_nothing_is_due_before_its_deadline_or_without_a_host() -> None:
    assert not repair.is_due(BUILDING, UP, now_ms=NOW_MS)
    assert repair.is_due(BUILDING, UP, now_ms=NOW_MS + 1)
    assert not repair.is_due(replace(BUILDING, host=""), None, now_ms=NOW_MS + 1)


def test_decisions_on_one_draft_see_each_other() -> None:
    two = replace(BUILDING, id=instance_id(2), request=Request(guest=guest(2), network_id="net"), slot=1)
    almost = Use(host="h2", claimed=Resources(vcpus=CAPACITY.vcpus - 1))
    found = _draft()._found
    draft = Draft(
        {
            **found,
            INSTANCE.at(ONE): Found(replace(BUILDING, alternates=("h2",)), 5),
            INSTANCE.at(two.id): Found(replace(two, alternates=("h2",)), 5),
            ASSIGNMENT.at("h1", two.id): Found(assignment_of(two), 5),
            USE.at("h1"): Found(Use(host="h1", claimed=GUEST + GUEST, instances=2, slots=(0, 1)), 5),
            USE.at("h2"): Found(almost, 5),
        }
    )

    _take(draft, FAILED)
    _take(draft, replace(FAILED, instance_id=two.id))

    first, second, use = draft.get(INSTANCE, ONE), draft.get(INSTANCE, two.id), draft.get(USE, "h2")
    assert first is not None
    assert second is not None
    assert use is not None
    assert (first.host, second.host) == ("h2", "h1")
    assert CAPACITY.covers(use.claimed)


def test_of_an_instance_that_is_gone_only_its_end_is_believed() -> None:
    def gone() -> Draft:
        found = _draft()._found
        return Draft({**found, INSTANCE.at(ONE): Found(None, 0), ASSIGNMENT.at("h1", ONE): Found(None, 0)})

    absent = replace(STATUS, state=HostState.ABSENT, power=PowerState.NOSTATE)

    assert _take(gone(), absent) is flow.ACCEPTED
    assert _take(gone(), STATUS).verdict is flow.Verdict.REFUSED
    assert _take(gone(), FAILED).verdict is flow.Verdict.REFUSED


def test_what_was_not_read_cannot_be_decided_on() -> None:
    with pytest.raises(Bug, match="not read"):
        Draft({}).get(SESSION, "h1")


def test_a_proof_is_good_for_five_seconds_and_never_from_the_future() -> None:
    assert permit.may_acknowledge(10.0, 14.9)
    assert not permit.may_acknowledge(10.0, 15.0)
    assert not permit.may_acknowledge(10.0, 9.0)
    assert not permit.may_acknowledge(float("-inf"), 0.0)


def test_books_are_even_only_when_every_sum_is() -> None:
    assignment = Assignment(
        instance_id=ONE,
        placement_epoch=1,
        generation=1,
        want=Want.RUN,
        action=BUILDING.action,
        guest=replace(guest(1), ports=(OWN_PORT,)),
    )
    even = Use(host="h1", claimed=GUEST, instances=1, slots=(0,))

    assert repair.is_even(None, [])
    assert repair.is_even(even, [assignment])
    assert not repair.is_even(even, [])
    assert not repair.is_even(None, [assignment])
    assert not repair.is_even(replace(even, slots=()), [assignment])
    assert repair.recounted("h1", [assignment], [BUILDING], op_id="op") == replace(even, op_id="op")


def test_a_guest_of_tenant_networks_alone_has_no_address_of_its_host() -> None:
    tenant = replace(OWN_PORT, id="tenant", vni=7)
    assignment = Assignment(
        instance_id=ONE,
        placement_epoch=1,
        generation=1,
        want=Want.RUN,
        action=BUILDING.action,
        guest=replace(guest(1), ports=(tenant,)),
    )
    placed = replace(BUILDING, slot=NO_SLOT, ports=(tenant,))
    even = Use(host="h1", claimed=GUEST, instances=1)

    assert repair.is_even(even, [assignment])
    assert not repair.is_even(replace(even, slots=(0,)), [assignment])
    assert repair.recounted("h1", [assignment], [placed], op_id="op") == replace(even, op_id="op")
