"""A server between hosts, whatever happens in whatever order: its data is where it is, it runs once, and nothing is left behind."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fabric.conductor.core import repair
from fabric.errors import FabricError
from fabric.model.host import Host, SessionState, Use
from fabric.model.instance import Assignment
from fabric.model.network import Port
from fabric.model.states import Action, TaskState, VmState, Want
from fabric.store.keys import ASSIGNMENT, DISCARD, HOST, MOVE, RECHARGE, TOMBSTONE, USE
from tests.unit.conductor.moving_world import DATA, HOSTS, ONE, Cell

ASKED = (
    Action.SHELVE,
    Action.SHELVE_OFFLOAD,
    Action.UNSHELVE,
    Action.RESIZE,
    Action.MIGRATE,
    Action.CONFIRM_RESIZE,
    Action.REVERT_RESIZE,
    Action.STOP,
    Action.START,
    Action.REBOOT_HARD,
)


TENANT = Port(
    id="port",
    network_id="tenant",
    network_name="tenant",
    mac="fa:16:3e:00:00:07",
    address="10.0.0.7",
    prefix_length=24,
    gateway="10.0.0.1",
    vni=7,
)


def heal(cell: Cell) -> None:
    """Everybody is well, and does what there is to do; people finish what waits for them."""
    for _ in range(12):
        for host in HOSTS:
            cell.join(host)
            cell.release(host)
            cell.come_up(host)
        cell.schedule(has_room=True)
        for host in HOSTS:
            cell.work(host, goes_well=True)
            cell.release(host)
        cell.now_ms += 20_000
        cell.sweep()
        cell.check()


class TwoHosts(RuleBasedStateMachine):
    """Every rule is one write, or none: so whoever makes it may die after it, which is that nothing more of its kind comes for a while."""

    tenant: tuple[Port, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.cell = Cell(self.tenant)
        self.is_deleted = False

    @rule(action=st.sampled_from(ASKED))
    def ask(self, action: Action) -> None:
        with contextlib.suppress(FabricError):
            self.cell.ask(action)

    @rule(luck=st.integers(0, 9))
    def delete(self, luck: int) -> None:
        if luck == 0:
            self.cell.ask(Action.DELETE)
            self.is_deleted = True

    @rule(has_room=st.sampled_from([True, True, True, False]))
    def schedule(self, has_room: bool) -> None:
        self.cell.schedule(has_room=has_room)

    @rule(host=st.sampled_from(HOSTS), goes_well=st.sampled_from([True, True, True, True, False]))
    def work(self, host: str, goes_well: bool) -> None:
        self.cell.work(host, goes_well=goes_well)

    @rule(host=st.sampled_from(HOSTS))
    def silence(self, host: str) -> None:
        self.cell.silence(host)

    @rule(host=st.sampled_from(HOSTS))
    def join(self, host: str) -> None:
        self.cell.join(host)

    @rule(host=st.sampled_from(HOSTS))
    def release(self, host: str) -> None:
        self.cell.release(host)

    @rule(host=st.sampled_from(HOSTS))
    def come_up(self, host: str) -> None:
        self.cell.come_up(host)

    @rule(seconds=st.sampled_from([1, 20, 700, 4000]))
    def time_passes(self, seconds: int) -> None:
        self.cell.now_ms += seconds * 1000
        self.cell.sweep()

    @invariant()
    def it_holds(self) -> None:
        self.cell.check()
        now = self.cell.record
        if now is not None:
            assert now.request.guest.ports == self.tenant
            assert (now.task is TaskState.NONE) == (now.task_deadline_ms == 0)
            if now.vm_state is VmState.ERROR:
                assert now.fault is not None

    def teardown(self) -> None:
        heal(self.cell)
        must_be_at_rest(self.cell, is_deleted=self.is_deleted)


def must_be_at_rest(cell: Cell, *, is_deleted: bool) -> None:
    """Nothing in flight, nothing left behind, and the data where the server is."""
    now = cell.record
    assert MOVE.at(ONE) not in cell.values
    assert not any(TOMBSTONE.at(host, ONE) in cell.values for host in HOSTS)
    if now is None:
        assert is_deleted
        assert all(not model.disks for model in cell.hosts.values())
        return
    assert not is_deleted
    assert now.task is TaskState.NONE, now.task
    assert now.want is not Want.ABSENT
    assert now.observed_generation == now.generation or not now.host
    assert cell.data() == DATA, now
    assert cell.running() == ([now.host] if now.want is Want.RUN else [])
    kept = {(place_host, epoch) for place_host, model in cell.hosts.items() for epoch in model.disks}
    named = {(now.host, now.placement_epoch)} if now.host else set()
    if now.move is not None:
        assert now.move.has_switched
        assert now.vm_state in {VmState.RESIZED, VmState.ERROR}
        named.add((now.move.other.host, now.move.other.placement_epoch))
    assert kept == named
    has_image = bool(now.carrier_id)
    assert has_image == (now.vm_state in {VmState.SHELVED, VmState.SHELVED_OFFLOADED}) or (
        now.vm_state is VmState.ERROR
    )


TestTwoHosts = TwoHosts.TestCase
TestTwoHosts.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


class TwoHostsOnATenantNetwork(TwoHosts):
    """The same for a server that has no address of a host's own: its ports go with it, and no slot is ever taken."""

    tenant = (TENANT,)


TestTwoHostsOnATenantNetwork = TwoHostsOnATenantNetwork.TestCase
TestTwoHostsOnATenantNetwork.settings = TestTwoHosts.settings


def _moved(action: Action = Action.RESIZE, tenant: tuple[Port, ...] = ()) -> Cell:
    cell = Cell(tenant)
    cell.ask(action)
    cell.schedule(has_room=True)
    cell.work("h1", goes_well=True)
    cell.work("h2", goes_well=True)
    return cell


@pytest.mark.parametrize("action", [Action.RESIZE, Action.MIGRATE])
def test_a_moved_server_waits_on_its_new_host_with_its_old_copy_kept(action: Action) -> None:
    cell = _moved(action)
    now = cell.record

    assert now is not None
    assert (now.host, now.vm_state, now.task) == ("h2", VmState.RESIZED, TaskState.NONE)
    assert (cell.running(), cell.data()) == (["h2"], DATA)
    assert cell.hosts["h1"].disks == {1: DATA}
    assert (now.request.flavor_id == "large") == (action is Action.RESIZE)


def test_a_moved_server_keeps_its_addresses_on_tenant_networks() -> None:
    cell = _moved(tenant=(TENANT,))

    now = cell.record
    assert now is not None
    assert (now.host, now.vm_state, now.ports) == ("h2", VmState.RESIZED, (TENANT,))
    order = cell.get(ASSIGNMENT.at("h2", ONE))
    assert isinstance(order, Assignment)
    assert order.guest.ports == (TENANT,)


def test_a_host_without_a_tunnel_address_is_not_claimed_for_a_server_on_tenant_networks() -> None:
    cell = Cell((TENANT,))
    host = cell.get(HOST.at("h2"))
    assert isinstance(host, Host)
    cell.values[HOST.at("h2")] = (replace(host, tunnel_address=""), 1)

    cell.ask(Action.RESIZE)
    cell.schedule(has_room=True)

    assert cell.record is not None
    assert cell.record.move is None


def test_a_confirmed_move_lets_go_of_the_old_copy_in_the_transaction_that_confirms() -> None:
    cell = _moved()
    cell.ask(Action.CONFIRM_RESIZE)
    now = cell.record

    assert now is not None
    assert (now.vm_state, now.move) == (VmState.ACTIVE, None)
    assert ASSIGNMENT.at("h1", ONE) not in cell.values
    assert TOMBSTONE.at("h1", ONE) in cell.values
    assert RECHARGE.at(ONE) in cell.values
    use = cell.get(USE.at("h1"))
    assert isinstance(use, Use)
    assert use.instances == 0


def test_a_host_that_is_just_joining_does_not_come_up_past_a_tombstone_of_a_confirmation() -> None:
    """The barrier compares the session: whoever puts a tombstone while a host joins moves it, and the barrier is looked at anew (R8)."""
    cell = _moved()
    cell.silence("h1")
    cell.join("h1")
    before = cell._session("h1")
    cell.ask(Action.CONFIRM_RESIZE)

    assert cell._session("h1") != before
    assert cell._session("h1").state is SessionState.JOIN
    cell.come_up("h1")
    assert cell._session("h1").state is SessionState.JOIN


def test_a_reverted_move_brings_back_the_disk_the_place_and_the_flavor_of_before() -> None:
    cell = _moved()
    cell.hosts["h2"].disks[2] = "something worse"
    cell.ask(Action.REVERT_RESIZE)
    cell.work("h2", goes_well=True)
    cell.work("h1", goes_well=True)
    now = cell.record

    assert now is not None
    assert (now.host, now.placement_epoch, now.vm_state, now.move) == ("h1", 1, VmState.ACTIVE, None)
    assert (now.request.flavor_id, now.request.guest.vcpus) == ("small", 1)
    assert (cell.running(), cell.data(), cell.hosts["h2"].disks) == (["h1"], DATA, {})


def test_a_revert_of_a_server_in_error_that_overruns_its_deadline_is_no_deletion() -> None:
    """Found by the machine above: to be gone from its host, in ERROR, is what a deletion that failed looks like."""
    cell = _moved()
    cell.work("h2", goes_well=False)
    cell.ask(Action.REVERT_RESIZE)
    cell.now_ms += 700_000
    cell.sweep()
    cell.work("h2", goes_well=False)
    heal(cell)
    must_be_at_rest(cell, is_deleted=False)
    now = cell.record

    assert now is not None
    assert (now.host, now.vm_state) == ("h1", VmState.ACTIVE)


def test_no_placement_epoch_is_ever_used_twice() -> None:
    cell = _moved()
    cell.ask(Action.REVERT_RESIZE)
    cell.work("h2", goes_well=True)
    cell.work("h1", goes_well=True)
    cell.ask(Action.RESIZE)
    cell.schedule(has_room=True)
    now = cell.record

    assert now is not None
    assert now.move is not None
    assert (now.placement_epoch, now.move.other.placement_epoch) == (1, 3)


@pytest.mark.parametrize("host", HOSTS)
def test_a_move_that_fails_leaves_the_server_as_it_was_with_the_fault(host: str) -> None:
    cell = Cell()
    cell.ask(Action.RESIZE)
    cell.schedule(has_room=True)
    cell.work("h1", goes_well=host != "h1")
    cell.work("h2", goes_well=False)
    cell.work("h1", goes_well=True)
    now = cell.record

    assert now is not None
    assert (now.host, now.vm_state, now.task, now.request.flavor_id) == (
        "h1",
        VmState.ACTIVE,
        TaskState.NONE,
        "small",
    )
    assert now.fault is not None
    assert now.fault.code == "DISK_FULL"
    assert (cell.running(), cell.data()) == (["h1"], DATA)


def test_a_move_without_room_changes_nothing_and_says_why() -> None:
    cell = Cell()
    cell.ask(Action.RESIZE)
    cell.schedule(has_room=False)
    now = cell.record

    assert now is not None
    assert (now.host, now.vm_state, now.task, now.move) == ("h1", VmState.ACTIVE, TaskState.NONE, None)
    assert now.fault is not None
    assert now.fault.code == "NO_VALID_HOST"
    assert MOVE.at(ONE) not in cell.values
    assert any(key.startswith(DISCARD.under()) for key in cell.values)


def test_a_silent_new_host_is_never_moved_away_from() -> None:
    """It may be running the server: only its word takes the server back to where it came from (I1)."""
    cell = Cell()
    cell.ask(Action.RESIZE)
    cell.schedule(has_room=True)
    cell.work("h1", goes_well=True)
    cell.hosts["h2"].disks[2], cell.hosts["h2"].running, cell.hosts["h2"].known_epoch = DATA, 2, 2
    cell.silence("h2")
    for _ in range(20):
        cell.now_ms += 4_000_000
        cell.sweep()
        cell.work("h1", goes_well=True)
        cell.check()
    now = cell.record

    assert now is not None
    assert (now.host, now.task) == ("h2", TaskState.NONE)
    assert now.fault is not None
    assert now.fault.code == repair.TASK_TIMEOUT
    heal(cell)
    must_be_at_rest(cell, is_deleted=False)
    after = cell.record
    assert after is not None
    assert (after.host, after.vm_state) == ("h1", VmState.ACTIVE)


def test_a_shelved_server_is_on_no_host_and_comes_back_with_its_data_on_another() -> None:
    cell = Cell()
    cell.ask(Action.SHELVE)
    cell.work("h1", goes_well=True)
    cell.ask(Action.SHELVE_OFFLOAD)
    cell.work("h1", goes_well=True)
    shelved = cell.record
    assert shelved is not None
    assert (shelved.vm_state, shelved.host, shelved.ports) == (VmState.SHELVED_OFFLOADED, "", ())
    assert all(not model.disks for model in cell.hosts.values())

    cell.silence("h1")
    cell.ask(Action.UNSHELVE)
    cell.schedule(has_room=True)
    cell.work("h2", goes_well=True)
    now = cell.record

    assert now is not None
    assert (now.host, now.vm_state, now.carrier_id) == ("h2", VmState.ACTIVE, "")
    assert (cell.data(), now.id, now.request.guest.metadata) == (DATA, ONE, shelved.request.guest.metadata)
    assert DISCARD.at(shelved.carrier_id) in cell.values


def test_a_host_that_cannot_raise_a_shelved_server_is_not_asked_again_at_once() -> None:
    cell = Cell()
    cell.ask(Action.SHELVE)
    cell.work("h1", goes_well=True)
    cell.ask(Action.SHELVE_OFFLOAD)
    cell.work("h1", goes_well=True)
    cell.ask(Action.UNSHELVE)
    cell.schedule(has_room=True)
    cell.work("h1", goes_well=False)
    cell.schedule(has_room=True)
    now = cell.record

    assert now is not None
    assert (now.host, now.task, now.attempt) == ("h2", TaskState.UNSHELVING, 2)
    assert TOMBSTONE.at("h1", ONE) in cell.values
