"""A record, its host, and a wire that delays, repeats, reorders and loses what the host says."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fabric.errors import WrongState
from fabric.lifecycle.core import Freed, Gone, Said, begin, ending, expired, failed, settle
from fabric.lifecycle.moves import is_waiting, overdue
from fabric.model.instance import Fault, Instance, Rescue
from fabric.model.session import HostState
from fabric.model.states import Action, TaskState, VmState, Want
from tests.unit.lifecycle.records import DONE, IMAGE, NOW_MS, POWERS, instance, said


class OneServer(RuleBasedStateMachine):
    """The host obeys whatever order it has seen last; it may be behind. The record must never follow it back."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = NOW_MS
        self.record: Instance | None = instance(
            VmState.BUILDING,
            TaskState.SPAWNING,
            generation=1,
            task_deadline_ms=NOW_MS + 600_000,
            launch_time_ms=0,
        )
        self.order: Instance = instance(VmState.BUILDING, TaskState.SPAWNING, generation=1)
        self.wire: list[Said] = []
        self.highest = (1, 0)
        self.is_deleted = False

    @rule(action=st.sampled_from(sorted(set(Action) - {Action.CREATE})))
    def ask(self, action: Action) -> None:
        record = self.record
        if record is None:
            return
        try:
            self.record = begin(record, action, now_ms=self.now_ms, op_id="op", image_id="image")
        except WrongState:
            return
        self.is_deleted |= action is Action.DELETE
        if action is Action.RESCUE:
            # As the API writes it with the action: without it a word that comes twice would tell of a server that is ACTIVE again.
            begun = self.record
            guest = replace(begun.request.guest, rescue=Rescue(image=IMAGE, user_data=b""))
            self.record = replace(begun, request=replace(begun.request, guest=guest))

    @rule()
    def the_host_gets_its_order(self) -> None:
        if self.record is not None:
            self.order = self.record

    @rule(goes_well=st.booleans())
    def the_host_speaks(self, goes_well: bool) -> None:
        state = DONE[self.order.want] if goes_well else HostState.ERROR
        self.wire.append(said(self.order, state))

    @rule()
    def the_guest_goes_off_by_itself(self) -> None:
        if self.order.want is Want.RUN:
            self.wire.append(replace(said(self.order, HostState.STOPPED), power=POWERS[HostState.STOPPED]))

    @precondition(lambda self: self.wire)
    @rule(data=st.data(), is_kept=st.booleans())
    def something_arrives(self, data: st.DataObject, is_kept: bool) -> None:
        """In any order; and what is kept arrives again."""
        place = data.draw(st.integers(0, len(self.wire) - 1))
        word = self.wire[place] if is_kept else self.wire.pop(place)
        if self.record is None:
            return
        before = self.record
        if before.action.image_id and word.action_seq == before.action.seq:
            # Its bytes were handed in before the host said so.
            before = replace(before, uploaded=replace(IMAGE, id=before.action.image_id))
        after = settle(before, word, now_ms=self.now_ms, op_id="op")
        if isinstance(after, Freed):
            assert ending(before) is Action.SHELVE_OFFLOAD
            self.record = after.after
        elif after is Gone.GONE:
            assert self.is_deleted
            assert word.generation == before.generation
            self.record = None
        elif isinstance(after, Instance):
            assert word.generation == before.generation
            assert word.action_seq == before.action.seq
            self.record = after
            again = settle(after, word, now_ms=self.now_ms, op_id="op")
            assert not isinstance(again, Instance) or again.vm_state is after.vm_state

    @precondition(lambda self: self.wire)
    @rule()
    def something_is_lost(self) -> None:
        self.wire.pop()

    @rule(seconds=st.integers(1, 400))
    def time_passes(self, seconds: int) -> None:
        self.now_ms += seconds * 1000
        if self.record is not None and expired(self.record, now_ms=self.now_ms):
            fault = Fault(code="TASK_TIMEOUT", message="late")
            self.record = overdue(self.record, fault, now_ms=self.now_ms, op_id="op") or failed(
                self.record, fault, now_ms=self.now_ms, op_id="op"
            )

    @invariant()
    def generations_never_go_back(self) -> None:
        if self.record is not None:
            now = (self.record.generation, self.record.action.seq)
            assert now >= self.highest
            self.highest = now
            assert self.record.observed_generation <= self.record.generation
            assert self.record.observed_action <= self.record.action.seq

    @invariant()
    def a_deletion_is_never_forgotten(self) -> None:
        if self.is_deleted and self.record is not None and self.record.host:
            assert ending(self.record) is Action.DELETE

    @invariant()
    def what_is_under_way_has_a_deadline_and_an_error_its_reason(self) -> None:
        if self.record is not None:
            assert (self.record.task is TaskState.NONE) == (self.record.task_deadline_ms == 0)
            if self.record.vm_state is VmState.ERROR:
                assert self.record.fault is not None

    def teardown(self) -> None:
        """Once the wire is well and the host obeys, one exchange brings the record to rest."""
        if self.record is None or is_waiting(self.record):
            return
        self.record = replace(self.record, uploaded=replace(IMAGE, id=self.record.action.image_id or "none"))
        self.order = self.record
        after = settle(self.record, said(self.record, DONE[self.record.want]), now_ms=self.now_ms, op_id="op")
        if ending(self.record) is Action.SHELVE_OFFLOAD:
            assert isinstance(after, Freed)
            assert (after.after.host, after.after.vm_state) == ("", VmState.SHELVED_OFFLOADED)
        elif self.record.want is Want.ABSENT:
            assert after is Gone.GONE
        elif isinstance(after, Instance):
            assert after.task is TaskState.NONE
            assert after.observed_generation == after.generation
        else:
            assert self.record.task is TaskState.NONE


TestOneServer = OneServer.TestCase
TestOneServer.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
