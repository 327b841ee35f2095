"""What must reach a conductor does, and nothing is told twice without need."""

from __future__ import annotations

from fabric.model.host import Resources
from fabric.model.session import HostState, Progress, ReleaseAck, Released, Report, Status, StatusAck
from fabric.model.states import PowerState
from hostd.core.outbox import Outbox


def status(generation: int = 1, power: PowerState = PowerState.RUNNING, instance_id: str = "i") -> Status:
    return Status(
        epoch=0,
        instance_id=instance_id,
        placement_epoch=1,
        generation=generation,
        action_seq=0,
        state=HostState.ACTIVE,
        power=power,
    )


def ack(said: Status) -> StatusAck:
    return StatusAck(
        instance_id=said.instance_id,
        placement_epoch=said.placement_epoch,
        generation=said.generation,
        action_seq=said.action_seq,
        state=said.state,
        accepted=True,
    )


def progress(step: str, percent: int) -> Progress:
    return Progress(epoch=0, instance_id="i", placement_epoch=1, step=step, percent=percent)


def report(running: int) -> Report:
    return Report(
        epoch=0,
        total=Resources(),
        used=Resources(),
        running=running,
        hypervisor="",
        hypervisor_version="",
        agent_version="",
    )


def test_a_status_is_told_until_it_is_acknowledged_ever_more_slowly() -> None:
    outbox = Outbox()
    outbox.say(status())

    told = [second for second in range(60) if outbox.due(float(second))]
    assert told == [0, 2, 6, 14, 29, 44, 59]

    assert outbox.acked(ack(status()))
    assert outbox.next_due_s() is None


def test_a_newer_status_replaces_the_older() -> None:
    outbox = Outbox()
    outbox.say(status(1))
    outbox.say(status(2))

    assert outbox.due(0.0) == [status(2)]
    assert not outbox.acked(ack(status(1)))
    assert outbox.unacknowledged() == {"i": status(2)}


def test_an_acknowledgement_of_an_older_power_does_not_silence_the_newer() -> None:
    outbox = Outbox()
    outbox.say(status(power=PowerState.PAUSED))
    outbox.due(0.0)
    outbox.say(status(power=PowerState.RUNNING))
    outbox.due(0.0)

    assert not outbox.acked(ack(status()))
    assert outbox.acked(ack(status()))


def test_a_new_session_is_told_everything_again_at_once() -> None:
    outbox = Outbox()
    outbox.say(status())
    outbox.released(Released(epoch=0, instance_id="r", placement_epoch=3))
    outbox.report(report(1))
    first = outbox.due(0.0)
    assert outbox.due(0.1) == []

    outbox.begin_session()

    assert outbox.due(0.2) == first


def test_releases_are_told_first() -> None:
    outbox = Outbox()
    outbox.say(status())
    outbox.released(Released(epoch=0, instance_id="r", placement_epoch=3))

    assert [type(message) for message in outbox.due(0.0)] == [Released, Status]


def test_a_release_is_dealt_with_only_by_its_own_placement() -> None:
    outbox = Outbox()
    outbox.released(Released(epoch=0, instance_id="r", placement_epoch=3))

    assert not outbox.release_acked(ReleaseAck(instance_id="r", placement_epoch=2))
    assert outbox.release_acked(ReleaseAck(instance_id="r", placement_epoch=3))
    assert outbox.due(100.0) == []


def test_percents_are_told_at_most_once_a_second_and_steps_at_once() -> None:
    outbox = Outbox()
    outbox.show(progress("image", 1), now_s=0.0)
    assert outbox.due(0.0) == [progress("image", 1)]

    outbox.show(progress("image", 2), now_s=0.1)
    outbox.show(progress("image", 3), now_s=0.2)
    assert outbox.due(0.3) == []
    assert outbox.due(1.0) == [progress("image", 3)]

    outbox.show(progress("networking", 0), now_s=1.1)
    assert outbox.due(1.1) == [progress("networking", 0)]


def test_a_status_ends_the_progress_of_its_instance() -> None:
    outbox = Outbox()
    outbox.show(progress("image", 1), now_s=0.0)
    outbox.say(status())

    assert outbox.due(0.0) == [status()]


def test_a_measurement_that_is_the_same_is_told_once_a_session() -> None:
    outbox = Outbox()
    outbox.report(report(1))
    assert outbox.due(0.0) == [report(1)]
    outbox.report(report(1))
    assert outbox.due(1.0) == []
    outbox.report(report(2))

    assert outbox.due(2.0) == [report(2)]


def test_the_progress_of_what_is_not_wanted_any_more_is_not_told_to_the_next_conductor() -> None:
    """Of a guest that was let go of while it was being made, the percent was kept for ever, and told at the beginning of each session."""
    outbox = Outbox()
    outbox.show(progress("image", 40), now_s=0.0)
    outbox.due(0.0)

    outbox.unsay("i")
    outbox.begin_session()

    assert outbox.due(1.0) == []
    assert outbox.next_due_s() is None
