"""A seed is a whole history: the same one, wherever and whenever it is run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.run import run, topology_for

ROOT = Path(__file__).resolve().parents[2]
ONE_CELL, TWO_CELLS = 1, 10


def test_the_seeds_of_these_tests_are_of_both_topologies() -> None:
    assert (topology_for(ONE_CELL).cells, topology_for(TWO_CELLS).cells) == (1, 2)


def test_a_seed_gives_one_trace_however_often_it_is_run() -> None:
    first, again = run(ONE_CELL), run(ONE_CELL)

    assert again == first


def test_two_seeds_give_two_traces() -> None:
    assert run(ONE_CELL).digest != run(TWO_CELLS).digest


@pytest.mark.parametrize("hash_seed", ["0", "1", "4242"])
def test_a_seed_gives_one_trace_in_every_process(hash_seed: str) -> None:
    """Neither the order of sets of strings nor addresses of objects may reach the trace."""
    told = subprocess.run(
        [sys.executable, "-m", "tests.sim.run", str(TWO_CELLS), str(TWO_CELLS + 1), "--digests"],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert told.splitlines()[0] == f"seed {TWO_CELLS}: digest {run(TWO_CELLS).digest}"
