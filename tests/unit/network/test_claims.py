"""Whether a host takes a guest: one rule for creates, moves and alternates."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fabric.model.host import Host, Resources, Session, SessionState, Use
from fabric.network.claims import slot_on
from tests.unit.scheduler.worlds import request

WANTED = request(Resources(vcpus=1, ram_mib=512, disk_gib=4))
HOST = Host(
    name="h1",
    cell="c1",
    zone="z1",
    capacity=Resources(vcpus=2, ram_mib=1024, disk_gib=8),
    guest_cidr="10.1.0.0/24",
    slots=2,
)
UP = Session(host="h1", epoch=1, state=SessionState.UP)
EMPTY = Use(host="h1")


def test_an_empty_host_gives_its_first_address() -> None:
    assert slot_on(HOST, UP, EMPTY, WANTED) == 0


def test_a_host_gives_the_lowest_address_that_is_free() -> None:
    assert slot_on(HOST, UP, replace(EMPTY, slots=(0,)), WANTED) == 1


def test_room_that_volumes_have_is_taken() -> None:
    """A move counted only what servers had claimed, so one that raced with a volume filled a disk twice."""
    assert slot_on(HOST, UP, replace(EMPTY, volumes_gib=4), WANTED) == 0
    assert slot_on(HOST, UP, replace(EMPTY, volumes_gib=5), WANTED) is None


def test_what_is_wanted_besides_the_guest_needs_room_too() -> None:
    assert slot_on(HOST, UP, EMPTY, WANTED, more=Resources(disk_gib=4)) == 0
    assert slot_on(HOST, UP, EMPTY, WANTED, more=Resources(disk_gib=5)) is None


@pytest.mark.parametrize(
    ("host", "session", "use"),
    [
        (None, UP, EMPTY),
        (replace(HOST, enabled=False), UP, EMPTY),
        (HOST, None, EMPTY),
        *((HOST, replace(UP, state=state), EMPTY) for state in SessionState if state is not SessionState.UP),
        (HOST, UP, replace(EMPTY, slots=(0, 1))),
        (HOST, UP, replace(EMPTY, claimed=Resources(vcpus=2))),
        (HOST, UP, replace(EMPTY, claimed=Resources(ram_mib=513))),
        (HOST, UP, replace(EMPTY, claimed=Resources(disk_gib=5))),
    ],
)
def test_a_host_that_is_gone_closed_not_up_or_full_gives_none(
    host: Host | None, session: Session | None, use: Use
) -> None:
    assert slot_on(host, session, use, WANTED) is None
