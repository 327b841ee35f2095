"""Seeds that have failed once. They are run for ever, because what they found is what this code is inclined to.

A seed is a history only together with the simulation it was found in: faults that were added since have given it another. So each has a
test on values too, named here, which holds whatever the simulation becomes; the seed is kept as the cheapest guard against its like.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.sim.run import run


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What a seed found. `held_by` is the test on values that holds it."""

    seed: int
    found: str
    held_by: str


STORIES = (
    Story(
        seed=0,
        found="a server that no host fitted could be stopped, and was powering off for ever: nobody was there to do it",
        held_by="tests/unit/lifecycle/test_core.py: test_a_server_that_no_host_took_can_only_be_deleted",
    ),
    Story(
        seed=29,
        found="a start that failed left the server recorded as stopped and wanted running, until its host's next session started it "
        "without anybody asking",
        held_by="tests/unit/lifecycle/test_core.py: test_what_failed_ends_where_its_row_says_with_its_fault",
    ),
    Story(seed=45, found="as 29", held_by="as 29"),
    Story(seed=1016, found="as 29", held_by="as 29"),
    Story(
        seed=2256,
        found="of the harness: a host that lost power four times within a minute was quarantined, as it should be, and the healed world "
        "had nobody to approve it again",
        held_by="World.approve_quarantined",
    ),
    Story(
        seed=2209,
        found="of the checker: a start that a dead daemon had begun came about a moment later, and was held to have no permit",
        held_by="tests/sim/permits.py: Permits.ended",
    ),
)


@pytest.mark.parametrize("story", STORIES, ids=lambda story: str(story.seed))
def test_a_seed_that_failed_once_fails_no_more(story: Story) -> None:
    outcome = run(story.seed)

    assert not outcome.violation, f"{story.found}\n{outcome.story}"
