"""The checker is as good as what it catches: each invariant broken on purpose, and what is no breach let through."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from fabric.model.host import Host, Session, SessionState, Use
from fabric.model.instance import (
    ActionMark,
    Assignment,
    Fault,
    Instance,
    Move,
    OneShot,
    Place,
    Request,
    Tombstone,
)
from fabric.model.states import TaskState, VmState, Want
from fabric.store import keys
from tests.history.events import Called, Destroyed, Event, Made, PowerLost, Returned, Started, Stopped
from tests.history.invariants import Checker, Violation
from tests.history.settled import HostHoldings, Leftovers, unsettled
from tests.sim.checker_history import (
    OTHER,
    PROJECT,
    SERVER,
    History,
    a_host,
    active,
    claims,
    guest,
    located,
    quota,
    record,
)


@pytest.fixture
def history() -> History:
    """A cell with one host, and one server that runs on it, made by an acknowledged create."""
    told = History()
    told.write("global", {keys.QUOTA.at(PROJECT): quota(0)})
    told.write("cell1", a_host())
    told.tell(Called(1, "create", PROJECT, "rid-1"))
    told.write("global", {keys.QUOTA.at(PROJECT): quota(1), keys.LOCATION.at(SERVER): located()})
    told.tell(Returned(1, SERVER))
    told.write("cell1", {**claims("h1", [SERVER]), keys.INSTANCE.at(SERVER): record()})
    told.tell(Started("h1", SERVER, 1))
    told.write("cell1", {keys.INSTANCE.at(SERVER): active()})
    return told


def holdings(host: str = "h1") -> HostHoldings:
    return HostHoldings(host=host, running=frozenset({SERVER}), domains=frozenset({(SERVER, 1)}))


def at_the_end(history: History, *held: HostHoldings, keys_left: Iterable[str] = ()) -> str | None:
    return unsettled(history.checker, held or (holdings(),), Leftovers(keys={"cell1": list(keys_left)}))


# ---------------------------------------------------------------------- no breach


def test_a_life_as_it_should_be_is_no_breach(history: History) -> None:
    assert at_the_end(history) is None


def test_a_server_may_run_elsewhere_once_it_has_stopped_here(history: History) -> None:
    history.tell(Stopped("h1", SERVER, "moved"), Started("h2", SERVER, 2))


def test_a_server_may_run_elsewhere_once_its_host_has_lost_power(history: History) -> None:
    history.tell(PowerLost("h1"), Started("h2", SERVER, 2))


def test_what_the_record_wants_gone_may_be_destroyed(history: History) -> None:
    history.write("cell1", {keys.INSTANCE.at(SERVER): replace(active(), want=Want.ABSENT, generation=2)})

    history.tell(Destroyed("h1", SERVER, 1))


def test_an_old_copy_may_be_destroyed(history: History) -> None:
    history.tell(Destroyed("h1", SERVER, 0))


def test_an_answer_that_never_came_is_either(history: History) -> None:
    """I16: a delete that nobody acknowledged may have happened or not, and so may a create."""
    history.tell(Called(2, "delete", PROJECT, "rid-2", SERVER), Called(3, "create", PROJECT, "rid-3"))

    not_happened = at_the_end(history)
    history.write("cell1", {**dict.fromkeys(claims("h1", [SERVER])), keys.INSTANCE.at(SERVER): None})
    history.write("global", {keys.QUOTA.at(PROJECT): quota(0), keys.LOCATION.at(SERVER): None})
    happened = at_the_end(history, HostHoldings(host="h1"))

    assert (not_happened, happened) == (None, None)


def test_a_refused_create_promises_nothing(history: History) -> None:
    history.tell(Called(2, "create", PROJECT, "rid-2"), Returned(2, error="QUOTA_EXCEEDED"))

    assert at_the_end(history) is None


# ---------------------------------------------------------------------- one breach each


def test_i1_one_server_on_two_hosts(history: History) -> None:
    with pytest.raises(Violation, match=r"I1 .* runs on h1 and on h2"):
        history.tell(Started("h2", SERVER, 2))


def test_i1_a_host_changed_without_a_new_placement(history: History) -> None:
    with pytest.raises(Violation, match=r"I15 .* was placed on h2 at epoch 1"):
        history.write("cell1", {keys.INSTANCE.at(SERVER): replace(active(), host="h2")})


def test_i2_claims_that_are_not_the_sum_of_the_assignments(history: History) -> None:
    with pytest.raises(Violation, match="I2 the claims of h1 differ"):
        history.write("cell1", {keys.ASSIGNMENT.at("h1", SERVER): None})


def test_i2_two_servers_at_one_address(history: History) -> None:
    twice = claims("h1", [SERVER, OTHER])
    use = twice[keys.USE.at("h1")]
    assert isinstance(use, Use)

    with pytest.raises(Violation, match="I2 the claims of h1 differ"):
        history.write("cell1", {**twice, keys.USE.at("h1"): replace(use, slots=(0, 0))})


def test_i2_more_claimed_than_there_is(history: History) -> None:
    history.write("cell1", a_host(vcpus=1))

    with pytest.raises(Violation, match="I2 h1 is over its capacity"):
        history.write("cell1", claims("h1", [SERVER, OTHER]))


def test_i2_more_running_than_there_is(history: History) -> None:
    history.write("cell1", {**claims("h1", [SERVER, OTHER]), keys.INSTANCE.at(OTHER): record(OTHER)})
    history.write("cell1", {keys.HOST.at("h1"): a_host(vcpus=1)[keys.HOST.at("h1")]})

    with pytest.raises(Violation, match="I2 h1 runs more than it has"):
        history.tell(Started("h1", OTHER, 1))


def test_i3_a_charge_for_nothing(history: History) -> None:
    with pytest.raises(Violation, match="I3 nebula is charged"):
        history.write("global", {keys.QUOTA.at(PROJECT): quota(2)})


def test_i3_a_server_for_free(history: History) -> None:
    with pytest.raises(Violation, match="I3 nebula is charged"):
        history.write("global", {keys.LOCATION.at(OTHER): located(OTHER)})


def test_i3_more_than_the_limit(history: History) -> None:
    with pytest.raises(Violation, match="I3 nebula is over its quota"):
        history.write(
            "global", {keys.QUOTA.at(PROJECT): quota(2, limit=1), keys.LOCATION.at(OTHER): located(OTHER)}
        )


def test_i3_a_quota_that_vanished(history: History) -> None:
    with pytest.raises(Violation, match="I3 the quota of nebula was removed"):
        history.write("global", {keys.QUOTA.at(PROJECT): None})


def test_i4_two_servers_of_one_request(history: History) -> None:
    history.write("global", {keys.QUOTA.at(PROJECT): quota(2), keys.LOCATION.at(OTHER): located(OTHER)})

    with pytest.raises(Violation, match=r"I4 request .* made both"):
        history.tell(Called(2, "create", PROJECT, "rid-1"), Returned(2, OTHER))


def test_i5_a_transition_nobody_knows(history: History) -> None:
    with pytest.raises(Violation, match=r"I5 .* went from"):
        history.write("cell1", {keys.INSTANCE.at(SERVER): replace(active(), vm_state=VmState.BUILDING)})


def test_i5_a_deletion_taken_back(history: History) -> None:
    gone = replace(active(), want=Want.ABSENT, task=TaskState.DELETING, generation=2)
    history.write("cell1", {keys.INSTANCE.at(SERVER): gone})

    with pytest.raises(Violation, match=r"I5 .* is wanted again"):
        history.write("cell1", {keys.INSTANCE.at(SERVER): replace(gone, want=Want.RUN, generation=3)})


def test_i6_another_guest_than_was_asked_for(history: History) -> None:
    fatter = replace(active(), request=Request(guest=replace(guest(), ram_mib=4096)), power_seen_ms=77)

    with pytest.raises(Violation, match="I6 what was asked"):
        history.write("cell1", {keys.INSTANCE.at(SERVER): fatter})


def test_i8_a_copy_destroyed_that_is_wanted(history: History) -> None:
    with pytest.raises(Violation, match="I8 h1 destroyed"):
        history.tell(Destroyed("h1", SERVER, 1))


def test_a_rebuild_that_failed_may_be_tried_again(history: History) -> None:
    """Seed 1894: a daemon that could not clear the disks said so, and its successor did what was asked."""
    rebuilt = ActionMark(seq=1, kind=OneShot.REBUILD)
    failed = replace(active(), vm_state=VmState.ERROR, generation=2, action=rebuilt, observed_action=1)
    history.tell(Stopped("h1", SERVER, "asked to"))
    history.write("cell1", {keys.INSTANCE.at(SERVER): replace(failed, observed_action=0)})
    history.write("cell1", {keys.INSTANCE.at(SERVER): failed})

    history.tell(Destroyed("h1", SERVER, 1), Made("h1", SERVER, 1), Started("h1", SERVER, 1))
    with pytest.raises(Violation, match="I8 h1 destroyed"):
        history.tell(Destroyed("h1", SERVER, 1))


def test_i8_an_empty_disk_for_what_has_run(history: History) -> None:
    history.tell(Stopped("h1", SERVER, "power lost"))

    with pytest.raises(Violation, match=r"I8 h1 gave .* an empty disk"):
        history.tell(Made("h1", SERVER, 1))


def test_a_new_placement_has_a_new_disk(history: History) -> None:
    history.tell(Made("h2", SERVER, 2))


def test_r5_a_start_on_an_old_permit() -> None:
    checker = Checker(permit_s=8)

    checker.take(Started("h1", SERVER, 1, permit_age_s=7.9))
    checker.take(Started("h1", OTHER, 1))
    with pytest.raises(Violation, match="R5 h1 started"):
        checker.take(Started("h1", SERVER, 1, permit_age_s=8.1))


def test_i1_a_start_of_what_was_given_up() -> None:
    with pytest.raises(Violation, match=r"I1 h1 started .* given up on"):
        Checker().take(Started("h1", SERVER, 1, has_given_up=True))


def test_i3_a_refund_of_what_is_still_there() -> None:
    history = History(Checker(is_one_clock=True))
    history.write("global", {keys.LOCATION.at(SERVER): located(), keys.QUOTA.at(PROJECT): quota(1)})
    history.write("cell1", {keys.INSTANCE.at(SERVER): record(), **claims("h1", [SERVER])})

    with pytest.raises(Violation, match=r"I3 .* is charged no more, and still there in cell1"):
        history.write("global", {keys.LOCATION.at(SERVER): None, keys.QUOTA.at(PROJECT): quota(0)})


def test_i1_one_server_in_two_cells() -> None:
    history = History(Checker(is_one_clock=True))
    history.write("cell1", {**claims("h1", [SERVER]), keys.INSTANCE.at(SERVER): record()})

    with pytest.raises(Violation, match=r"I1 .* has a record in cell1 and in cell2"):
        history.write("cell2", {keys.INSTANCE.at(SERVER): record()})


def moving(*, has_switched: bool) -> Instance:
    """The server with a claim on h2 besides."""
    now = active()
    other = Place(host="h2", placement_epoch=2, slot=0, request=now.request)
    move = Move(other=other, want=Want.RUN, vm_state=VmState.ACTIVE, has_switched=has_switched)
    return replace(now, move=move, highest_epoch=2, want=Want.STOP)


def switched() -> Instance:
    """The server on h2, with its copy on h1 kept."""
    before = moving(has_switched=True)
    assert before.move is not None
    back = replace(before.move.other, host="h1", placement_epoch=1)
    return replace(before, host="h2", placement_epoch=2, move=replace(before.move, other=back))


def begin_moving(history: History) -> None:
    orders = claims("h2", [SERVER])
    order = orders[keys.ASSIGNMENT.at("h2", SERVER)]
    assert isinstance(order, Assignment)
    orders[keys.ASSIGNMENT.at("h2", SERVER)] = replace(order, placement_epoch=2)
    history.write("cell1", {**orders, keys.INSTANCE.at(SERVER): moving(has_switched=False)})


def test_a_server_that_is_off_may_go_where_it_has_a_claim_and_back(history: History) -> None:
    begin_moving(history)
    history.tell(Stopped("h1", SERVER, "asked to"))
    history.write("cell1", {keys.INSTANCE.at(SERVER): switched()})
    history.tell(Started("h2", SERVER, 2))
    history.tell(Stopped("h2", SERVER, "asked to"))
    back = {keys.INSTANCE.at(SERVER): replace(active(), highest_epoch=2)}
    gone = {keys.USE.at("h2"): None, keys.ASSIGNMENT.at("h2", SERVER): None}
    history.write("cell1", {**back, **gone})


def test_i1_a_server_that_leaves_a_host_it_runs_on(history: History) -> None:
    begin_moving(history)

    with pytest.raises(Violation, match=r"I1 .* left h1 for h2, and runs there"):
        history.write("cell1", {keys.INSTANCE.at(SERVER): switched()})


def test_i15_a_placement_epoch_that_is_given_out_twice(history: History) -> None:
    before = replace(active(), highest_epoch=5)
    history.write("cell1", {keys.INSTANCE.at(SERVER): before})

    with pytest.raises(Violation, match=r"I15 .* was placed on h2 at epoch 2"):
        history.write(
            "cell1", {keys.INSTANCE.at(SERVER): replace(moving(has_switched=False), highest_epoch=5)}
        )


def test_i2_an_order_to_a_host_that_the_record_does_not_name(history: History) -> None:
    with pytest.raises(Violation, match="I2 hosts are ordered"):
        history.write("cell1", claims("h2", [SERVER]))


def test_i2_a_tombstone_of_the_copy_that_the_record_names(history: History) -> None:
    with pytest.raises(Violation, match="I2 h1 is to forget placement 1"):
        history.write(
            "cell1",
            {keys.TOMBSTONE.at("h1", SERVER): Tombstone(instance_id=SERVER, placement_epoch=1)},
        )


def test_i3_a_server_that_is_larger_than_what_is_charged_for_it() -> None:
    history = History(Checker(is_one_clock=True))
    history.write("global", {keys.QUOTA.at(PROJECT): quota(1), keys.LOCATION.at(SERVER): located()})
    large = replace(record(), request=Request(guest=replace(guest(), vcpus=2)))
    orders = claims("h1", [SERVER])

    with pytest.raises(Violation, match=r"I3 .* has 2 vCPUs and 512 MiB, and is charged"):
        history.write("cell1", {**orders, keys.INSTANCE.at(SERVER): large})


def test_i8_the_copy_that_a_server_can_go_back_to_is_destroyed(history: History) -> None:
    begin_moving(history)
    history.tell(Stopped("h1", SERVER, "asked to"))
    history.write("cell1", {keys.INSTANCE.at(SERVER): replace(switched(), want=Want.RUN)})

    with pytest.raises(Violation, match="I8 h1 destroyed"):
        history.tell(Destroyed("h1", SERVER, 1))


UP = Session(host="h1", epoch=1, state=SessionState.UP, conductor="c1")


@pytest.mark.parametrize("state", [SessionState.JOIN, SessionState.DRAIN, SessionState.UNREACHABLE])
def test_r8_a_placement_on_a_host_that_is_not_up(history: History, state: SessionState) -> None:
    history.write("cell1", {keys.SESSION.at("h1"): replace(UP, state=state)})

    with pytest.raises(Violation, match=rf"R8 .* was placed on h1, which is {state.name}"):
        history.write("cell1", claims("h1", [SERVER, OTHER]))


def test_r8_a_placement_on_a_disabled_host(history: History) -> None:
    (host,) = a_host().values()
    assert isinstance(host, Host)
    history.write("cell1", {keys.HOST.at("h1"): replace(host, enabled=False)})

    with pytest.raises(Violation, match=r"R8 .* was placed on h1, which is disabled"):
        history.write("cell1", claims("h1", [SERVER, OTHER]))


def test_r8_up_before_it_has_let_go(history: History) -> None:
    history.write("cell1", {keys.TOMBSTONE.at("h1", OTHER): Tombstone(instance_id=OTHER, placement_epoch=1)})

    history.write("cell1", {keys.SESSION.at("h1"): replace(UP, state=SessionState.JOIN)})

    with pytest.raises(Violation, match="R8 h1 is UP, and is yet to let go"):
        history.write("cell1", {keys.SESSION.at("h1"): UP})


def test_a_host_may_be_up_while_it_lets_go_of_what_it_gave_up_in_this_session(history: History) -> None:
    history.write("cell1", {keys.SESSION.at("h1"): replace(UP, state=SessionState.JOIN)})
    history.write("cell1", {keys.TOMBSTONE.at("h1", OTHER): Tombstone(instance_id=OTHER, placement_epoch=1)})

    history.write("cell1", {keys.SESSION.at("h1"): UP})


@pytest.mark.parametrize(
    ("session", "by"),
    [(UP, "c2"), (replace(UP, state=SessionState.UNREACHABLE), "c1")],
)
def test_r1_a_word_written_by_who_has_lost_the_session(history: History, session: Session, by: str) -> None:
    history.write("cell1", {keys.SESSION.at("h1"): UP})
    history.write("cell1", {keys.INSTANCE.at(SERVER): replace(active(), power_seen_ms=1)}, by="c1")
    history.write("cell1", {keys.SESSION.at("h1"): session})

    with pytest.raises(Violation, match=r"R1 .* wrote what h1 said"):
        history.write("cell1", {keys.INSTANCE.at(SERVER): replace(active(), power_seen_ms=2)}, by=by)


def test_i5_a_task_ended_by_an_old_word(history: History) -> None:
    stopping = replace(active(), task=TaskState.POWERING_OFF, generation=2)
    history.write("cell1", {keys.INSTANCE.at(SERVER): stopping})

    with pytest.raises(Violation, match=r"I5 POWERING_OFF .* generation 1 of 2"):
        history.write("cell1", {keys.INSTANCE.at(SERVER): replace(active(), generation=2)})


def test_i11_an_acknowledged_create_that_was_never_written(history: History) -> None:
    with pytest.raises(Violation, match=r"I11 .* is not there"):
        history.tell(Called(2, "create", PROJECT, "rid-2"), Returned(2, OTHER))


def test_i12_a_read_that_does_not_see_what_was_acknowledged(history: History) -> None:
    with pytest.raises(Violation, match=r"I12 .* a read does not see it"):
        history.tell(Called(2, "get", PROJECT, "", SERVER), Returned(2, ""))


def test_i15_a_generation_that_went_back(history: History) -> None:
    history.write("cell1", {keys.INSTANCE.at(SERVER): replace(active(), generation=4)})

    with pytest.raises(Violation, match=r"I15 .* went back"):
        history.write("cell1", {keys.INSTANCE.at(SERVER): replace(active(), generation=3)})


def test_i15_an_observation_of_the_future(history: History) -> None:
    with pytest.raises(Violation, match=r"I15 .* ahead of what was asked"):
        history.write("cell1", {keys.INSTANCE.at(SERVER): replace(active(), observed_generation=2)})


# ---------------------------------------------------------------------- the end of a run


def test_i7_a_task_for_ever(history: History) -> None:
    stuck = replace(active(), task=TaskState.POWERING_OFF, generation=2)
    history.write("cell1", {keys.INSTANCE.at(SERVER): stuck})

    assert at_the_end(history) == f"I7 {SERVER} is stuck: ACTIVE POWERING_OFF 1/2"


def test_i7_an_intent_nobody_has_confirmed(history: History) -> None:
    history.write("cell1", {keys.INSTANCE.at(SERVER): replace(active(), generation=2)})

    assert at_the_end(history) == f"I7 {SERVER} is stuck: ACTIVE NONE 1/2"


def test_i7_an_error_without_a_reason(history: History) -> None:
    failed = replace(active(), vm_state=VmState.ERROR, want=Want.STOP)
    history.write("cell1", {keys.INSTANCE.at(SERVER): failed})
    mute = at_the_end(history)
    history.write(
        "cell1", {keys.INSTANCE.at(SERVER): replace(failed, fault=Fault(code="DISK_FULL", message="full"))}
    )

    assert (mute, at_the_end(history)) == (f"I7 {SERVER} is stuck: ERROR NONE 1/1", None)


def test_i7_a_record_that_says_running_of_what_is_not(history: History) -> None:
    assert at_the_end(history, replace(holdings(), running=frozenset())) == (
        f"I7 {SERVER} runs on [], and should on ['h1']"
    )


def test_i7_an_accepted_create_without_a_record(history: History) -> None:
    history.write("global", {keys.QUOTA.at(PROJECT): quota(2), keys.LOCATION.at(OTHER): located(OTHER)})
    history.tell(Called(2, "create", PROJECT, "rid-2"), Returned(2, OTHER))

    assert at_the_end(history) == f"I7 {OTHER} was accepted, and has no record"


def test_i7_a_deletion_without_an_end(history: History) -> None:
    gone = replace(active(), want=Want.ABSENT, generation=2)
    history.write("cell1", {keys.INSTANCE.at(SERVER): gone})

    assert at_the_end(history) == f"I7 {SERVER} is still being deleted"


def test_i9_an_acknowledged_delete_that_did_nothing(history: History) -> None:
    history.tell(Called(2, "delete", PROJECT, "rid-2", SERVER), Returned(2, SERVER))

    assert at_the_end(history) == f"I9 {SERVER} was deleted, and its record is there: ACTIVE NONE"


def test_i9_a_deleted_server_that_is_charged(history: History) -> None:
    history.tell(Called(2, "delete", PROJECT, "rid-2", SERVER), Returned(2, SERVER))
    history.write("cell1", {**dict.fromkeys(claims("h1", [SERVER])), keys.INSTANCE.at(SERVER): None})

    assert at_the_end(history, HostHoldings(host="h1")) == f"I9 {SERVER} was deleted, and is still charged"


@pytest.mark.parametrize("key", ["build/cell1/u", "refund/u", "tombstone/h1/u"])
def test_i9_a_key_that_should_have_passed(history: History, key: str) -> None:
    assert at_the_end(history, keys_left=[key]) == f"I9 {key} is left in cell1"


@pytest.mark.parametrize(
    "left",
    [
        replace(holdings(), files=frozenset({(OTHER, 1)})),
        replace(holdings(), wires=frozenset({(OTHER, 1)})),
        replace(holdings(), domains=frozenset({(SERVER, 1), (OTHER, 1)})),
    ],
)
def test_i10_something_no_record_explains(history: History, left: HostHoldings) -> None:
    assert at_the_end(history, left) == f"I10 h1 still holds {OTHER} of placement 1"


def test_i10_an_old_copy_beside_the_new(history: History) -> None:
    left = holdings("h2")

    assert at_the_end(history, replace(left, running=frozenset()), holdings()) == (
        f"I10 h2 still holds {SERVER} of placement 1"
    )


def _deleted_softly(history: History, vm_state: VmState, *asked: Event) -> str | None:
    """What is found at the end, where deleted servers are kept for a while and this one's record is there."""
    history.checker.keeps = True
    is_off = vm_state is not VmState.ACTIVE
    fault = Fault(code="HOST_FAILED", message="the host failed") if vm_state is VmState.ERROR else None
    want = Want.STOP if is_off else Want.RUN
    history.write(
        "cell1", {keys.INSTANCE.at(SERVER): replace(active(), vm_state=vm_state, want=want, fault=fault)}
    )
    if is_off:
        history.tell(Stopped("h1", SERVER, "power cut"))
    history.tell(Called(2, "delete", PROJECT, "rid-2", SERVER), Returned(2, SERVER), *asked)
    return at_the_end(history, replace(holdings(), running=frozenset() if is_off else frozenset({SERVER})))


def test_i9_a_server_that_is_kept_beyond_its_time(history: History) -> None:
    assert (
        _deleted_softly(history, VmState.SOFT_DELETED) == f"I7 {SERVER} is kept, and its time is yet to come"
    )


def test_a_soft_delete_that_failed_may_be_followed_by_something_else(history: History) -> None:
    """Seed 6040: it could not be powered off, and was in ERROR; its owner rebooted it."""
    leaving = replace(active(), task=TaskState.SOFT_DELETING, want=Want.STOP, generation=2)
    fault = Fault(code="HOST_FAILED", message="the host failed")
    failed = replace(leaving, vm_state=VmState.ERROR, task=TaskState.NONE, observed_generation=2, fault=fault)
    history.checker.keeps = True
    history.tell(Called(2, "delete", PROJECT, "rid-2", SERVER), Returned(2, SERVER))

    for each in (leaving, failed, replace(active(), generation=3, observed_generation=3)):
        history.write("cell1", {keys.INSTANCE.at(SERVER): each})

    assert at_the_end(history) is None


def test_i9_a_soft_delete_that_did_nothing(history: History) -> None:
    assert _deleted_softly(history, VmState.ACTIVE) == (
        f"I9 {SERVER} was deleted, and its record is there: ACTIVE NONE"
    )


def test_a_server_that_could_not_be_powered_off_is_no_breach(history: History) -> None:
    assert _deleted_softly(history, VmState.ERROR) is None


def test_a_server_that_was_restored_is_no_breach(history: History) -> None:
    assert _deleted_softly(history, VmState.ACTIVE, Called(3, "restore", PROJECT, "rid-3", SERVER)) is None
