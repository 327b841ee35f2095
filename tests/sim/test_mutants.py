"""A rule taken away is found out: what a simulation that finds nothing is worth."""

from __future__ import annotations

import pytest

from tests.sim.mutants import BY_NAME, MUTANTS, hunt, put_in
from tests.sim.run import run
from tests.sim.schedules import spread

QUICK = ("no_request_record", "claim_without_instance_absent", "refund_before_confirmed")
"""Found within a few schedules: every `make test` sees that the checker still sees."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", QUICK)
def test_a_rule_taken_away_is_found_out(name: str) -> None:
    assert hunt(BY_NAME[name]) is not None


def test_a_mutant_is_taken_out_again() -> None:
    before = run(1)
    with put_in(BY_NAME["no_request_record"]):
        pass

    assert run(1) == before


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_rule_taken_away_is_found_out_in_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    hunted = [place for place, mutant in enumerate(MUTANTS) if mutant.within]
    found = dict(zip(hunted, spread(_hunted, hunted), strict=True))

    with capsys.disabled():
        for place, outcome in found.items():
            print(f"\n{MUTANTS[place].name}: {outcome or 'NOT FOUND'}", end="")
    assert not [MUTANTS[place].name for place, outcome in found.items() if not outcome]


def _hunted(place: int) -> str:
    """How a mutant was found; empty where it was not."""
    outcome = hunt(MUTANTS[place])
    return "" if outcome is None else f"{outcome[0]} schedules, {outcome[1]}"
