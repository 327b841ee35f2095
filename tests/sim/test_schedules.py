"""The whole fabric under hundreds of random schedules of faults: nothing that may never happen happens, and it always comes to rest.

FABRIC_SIM_SEEDS says how many (500), FABRIC_SIM_FIRST from which seed on (0).
"""

from __future__ import annotations

import os

import pytest

from tests.sim.schedules import Tally, tally

SEEDS = int(os.environ.get("FABRIC_SIM_SEEDS", "500"))
FIRST = int(os.environ.get("FABRIC_SIM_FIRST", "0"))
MANY_SEEDS = 9_500
"""With the 500 of every run, ten thousand."""


@pytest.mark.timeout(1200)
def test_no_schedule_of_faults_breaks_an_invariant(capsys: pytest.CaptureFixture[str]) -> None:
    found = tally(FIRST, SEEDS)

    _show(capsys, str(found))
    _check(found, SEEDS)


@pytest.mark.slow
@pytest.mark.timeout(14_400)
def test_no_schedule_of_thousands_breaks_an_invariant(capsys: pytest.CaptureFixture[str]) -> None:
    found = tally(FIRST + SEEDS, MANY_SEEDS)

    _show(capsys, str(found))
    _check(found, MANY_SEEDS)


def _check(found: Tally, seeds: int) -> None:
    assert not found.failed, found.failures()
    assert found.servers > seeds, "hardly a server was made: the schedules prove nothing"


def _show(capsys: pytest.CaptureFixture[str], line: str) -> None:
    """Said even where all is well: how much was tried is half of the result."""
    with capsys.disabled():
        print(f"\n{line}")
