"""Every step of every action broken in every way: done, or taken back with its reason, and nothing left behind."""

from __future__ import annotations

import pytest

from fabric.lifecycle.table import RULES
from fabric.model.states import Action, TaskState
from tests.sim.exhaustive import LEFT_TO_HOSTS, actions, breaks, everything, is_well, run, way_to

QUICK = (Action.CREATE, Action.DELETE, Action.PAUSE, Action.REBOOT_HARD)
"""One that makes, one that unmakes, one that holds and one that is done once: the others in `make test-all`."""


def test_every_action_that_takes_time_is_broken() -> None:
    takes_time = {rule.action for rule in RULES if rule.task is not TaskState.NONE}

    assert set(actions()) == takes_time | set(LEFT_TO_HOSTS)
    assert all(way_to(action) is not None for action in takes_time - {Action.CREATE, Action.DELETE})


def test_an_action_reaches_places_of_every_kind() -> None:
    whole = run(Action.CREATE)

    assert whole.ended == "done"
    assert {place.kind for place in whole.places} == {"reach", "step", "write"}
    assert len({(place, how) for place in whole.places for how in breaks(place)}) > len(whole.places)


def test_a_break_happens_where_it_was_noted() -> None:
    first = run(Action.PAUSE).places[0]
    broken = run(Action.PAUSE, first, breaks(first)[0])

    assert broken.is_broken


@pytest.mark.parametrize("action", QUICK)
def test_whatever_breaks_it_comes_to_rest(action: Action) -> None:
    _check(action)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("action", sorted(set(actions()) - set(QUICK)))
def test_whatever_breaks_every_other_action_comes_to_rest(action: Action) -> None:
    _check(action)


def _check(action: Action) -> None:
    found = list(everything([action]))

    assert found
    assert not [
        f"{each.place} of {each.place.whose}, {each.how}: {each.run.violation or each.run.ended}"
        for each in found
        if not is_well(each)
    ]
