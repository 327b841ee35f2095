"""Claims of moves: what the records that a claim compares must still allow."""

from __future__ import annotations

from dataclasses import replace

from fabric.model.host import Host, Resources, Session, SessionState, Use
from fabric.model.instance import Assignment, Instance, MoveWanted
from fabric.model.placement import Decision
from fabric.model.quota import Charge
from fabric.model.states import TaskState, VmState, Want
from fabric.scheduler.core.moving import Claimed, Found, Waiting, claim, most
from fabric.scheduler.core.picture import Seen
from tests.unit.scheduler.worlds import host, request

LARGE = Resources(vcpus=2, ram_mib=1024, disk_gib=4)
CHOSEN = host("e2", capacity=Resources(vcpus=4, ram_mib=4096, disk_gib=8))


def _claimed(chosen: Host, use: Use) -> Claimed | None:
    asked = Instance(
        id="i-1",
        request=request(instance_id="i-1"),
        vm_state=VmState.ACTIVE,
        task=TaskState.RESIZE_PREP,
        want=Want.RUN,
        host="e1",
        placement_epoch=1,
        slot=0,
        generation=2,
    )
    work = MoveWanted(instance_id="i-1", request=request(LARGE, instance_id="i-1"), image_id="carrier")
    order = Assignment(
        instance_id="i-1",
        placement_epoch=1,
        generation=2,
        want=Want.RUN,
        action=asked.action,
        guest=asked.request.guest,
    )
    return claim(
        Waiting(work=Seen(work, 1), instance=Seen(asked, 2), order=Seen(order, 3)),
        Found(
            host=Seen(chosen, 4),
            session=Seen(Session(host="e2", epoch=1, state=SessionState.UP), 5),
            use=Seen(use, 6),
        ),
        Decision(considered=1, host="e2", cell="east"),
        now_ms=7,
        op_id="op-1",
    )


def test_a_move_takes_no_room_that_a_volume_took_since_it_was_decided() -> None:
    """The claim compared what servers had claimed of the disk and left out what volumes had: the use record that it compares said that
    the disk was full, and the move was claimed on it all the same.
    """
    assert _claimed(CHOSEN, Use(host="e2", volumes_gib=4)) is not None
    assert _claimed(CHOSEN, Use(host="e2", volumes_gib=5)) is None


def test_a_move_goes_to_no_host_that_was_closed_since_it_was_decided() -> None:
    assert _claimed(replace(CHOSEN, enabled=False), Use(host="e2")) is None


def test_the_most_of_two_charges_is_enough_for_either_of_everything() -> None:
    """What volumes are charged came later, and was left out: one that is charged with its server would have been given back by a move."""
    one = Charge(instances=1, vcpus=4, ram_mib=512, volumes=1, volume_gib=5)
    other = Charge(instances=1, vcpus=2, ram_mib=1024, volumes=0, volume_gib=9)

    assert most(one, other) == Charge(instances=1, vcpus=4, ram_mib=1024, volumes=1, volume_gib=9)
