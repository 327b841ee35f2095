"""Failpoints: nothing where none is set, and exactly what is set where one is."""

from __future__ import annotations

import pytest

from fabric.errors import InvalidRequest, Unavailable
from fabric.observability.failpoints import (
    NO_FAILPOINTS,
    FailAction,
    Failure,
    SetFailpoints,
    failpoints_from,
    parse_failures,
)


def test_an_environment_without_failpoints_does_nothing() -> None:
    assert failpoints_from({}) is NO_FAILPOINTS


def test_the_grammar() -> None:
    assert parse_failures("hostd.spawn.defined:kill@2, api.after_g1:delay=0.5,x.y:stop,z:fail") == (
        Failure(name="hostd.spawn.defined", action=FailAction.KILL, visit=2),
        Failure(name="api.after_g1", action=FailAction.DELAY, delay_s=0.5),
        Failure(name="x.y", action=FailAction.STOP),
        Failure(name="z", action=FailAction.FAIL),
    )


@pytest.mark.parametrize(
    "text", ["x", "x:die", "x:kill@0", "x:delay", "x:delay=-1", "X:kill", "x:kill;y:kill"]
)
def test_what_is_not_in_the_grammar_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_failures(text)

    assert refused.value.field == "FABRIC_FAIL"


async def test_a_failpoint_acts_at_its_visit_only() -> None:
    failpoints = SetFailpoints(parse_failures("here:fail@2"))

    await failpoints.reach("here")
    await failpoints.reach("elsewhere")
    with pytest.raises(Unavailable):
        await failpoints.reach("here")
    await failpoints.reach("here")


async def test_a_failpoint_without_a_visit_acts_every_time() -> None:
    failpoints = failpoints_from({"FABRIC_FAIL": "here:fail"})

    for _ in range(3):
        with pytest.raises(Unavailable):
            await failpoints.reach("here")
