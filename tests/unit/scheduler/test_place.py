"""Decisions: what they choose, what they refuse, and that a batch decides as one by one would."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.model.host import Resources, Use
from fabric.model.network import NO_SLOT
from fabric.model.placement import Decision
from fabric.scheduler.core.ask import Ask
from fabric.scheduler.core.picture import HostPicture, Seen
from fabric.scheduler.core.place import Wanted, decide
from fabric.scheduler.settings import SPREAD, STACK, PlacementSettings
from tests.unit.scheduler.worlds import BIG, SMALL, Facts, asks, fleets, host, picture

SETTINGS = PlacementSettings()
HALF = Resources(vcpus=32, ram_mib=32768, disk_gib=500)


def wanted(ask: Ask, count: int, *, first: int = 0) -> list[Wanted]:
    return [Wanted(instance_id=f"i-{number}", ask=ask) for number in range(first, first + count)]


def one_by_one(
    fleet: Sequence[Facts], every: Sequence[Wanted], settings: PlacementSettings
) -> list[Decision]:
    """The plain meaning of `decide`: each decision on a picture in which all before it were carried out."""
    decisions = []
    uses = {(each.host.cell, each.host.name): each.use or Use(host=each.host.name) for each in fleet}
    hosts = picture(fleet)
    for revision, each in enumerate(every, start=2):
        (decision,) = decide(hosts, [each], settings, now_ms=0)
        decisions.append(decision)
        if decision.host:
            key = (decision.cell, decision.host)
            limit = hosts.host(*key).value
            assert limit is not None
            slot = uses[key].free_slot(limit.slots) if each.ask.needs_slot else NO_SLOT
            assert slot is not None
            uses[key] = uses[key].plus(each.ask.resources, slot, op_id="")
            hosts.set_use(*key, Seen(uses[key], revision, revision))
    return decisions


@given(
    fleet=fleets(),
    runs=st.lists(st.tuples(asks(), st.integers(1, 8)), min_size=1, max_size=3),
    weights=st.sampled_from([SPREAD, STACK, {}]),
)
def test_a_batch_decides_as_one_by_one_would(
    fleet: Sequence[Facts], runs: list[tuple[Ask, int]], weights: dict[str, float]
) -> None:
    settings = PlacementSettings(weights=weights)
    every = [
        Wanted(instance_id=f"i-{run}-{number}", ask=ask)
        for run, (ask, count) in enumerate(runs)
        for number in range(count)
    ]

    assert list(decide(picture(fleet), every, settings, now_ms=0)) == one_by_one(fleet, every, settings)


@given(fleet=fleets(), ask=asks(), seed=st.integers())
def test_the_order_of_hosts_does_not_matter(fleet: Sequence[Facts], ask: Ask, seed: int) -> None:
    shuffled = list(fleet)
    random.Random(seed).shuffle(shuffled)
    every = wanted(ask, 5)

    assert decide(picture(fleet), every, SETTINGS, now_ms=0) == decide(
        picture(shuffled), every, SETTINGS, now_ms=0
    )


@given(fleet=fleets(), ask=asks())
def test_every_host_is_a_candidate_or_refused_once(fleet: Sequence[Facts], ask: Ask) -> None:
    hosts = picture(fleet)
    before = list(hosts.rows())

    (decision,) = decide(hosts, wanted(ask, 1), PlacementSettings(alternates=len(fleet)), now_ms=7)

    refused = sum(refusal.hosts for refusal in decision.refusals)
    assert decision.considered == len(fleet)
    assert decision.decide_time_ms == 7
    assert decision.host or refused == len(fleet)
    assert len(decision.weights) == (1 + len(decision.alternates) if decision.host else 0)
    assert list(hosts.rows()) == before


@given(fleet=fleets(), ask=asks(), count=st.integers(1, 20))
def test_nothing_is_placed_where_it_does_not_fit(fleet: Sequence[Facts], ask: Ask, count: int) -> None:
    by_key = {(each.host.cell, each.host.name): each for each in fleet}
    free = {
        key: each.host.capacity - (each.use.taken if each.use else Resources())
        for key, each in by_key.items()
    }

    for decision in decide(picture(fleet), wanted(ask, count), SETTINGS, now_ms=0):
        if decision.host:
            key = (decision.cell, decision.host)
            assert free[key].covers(ask.resources)
            free[key] -= ask.resources
            assert by_key[key].host.enabled
            assert not ask.zone or by_key[key].host.zone == ask.zone


def test_spread_takes_the_emptiest_host_and_stack_the_fullest() -> None:
    hosts = picture(
        [host("empty"), Facts(host=host("half"), use=Use(host="half", claimed=HALF, instances=1, slots=(0,)))]
    )
    ask = Ask(resources=SMALL)

    (spread,) = decide(hosts, wanted(ask, 1), PlacementSettings(weights=SPREAD), now_ms=0)
    (stacked,) = decide(hosts, wanted(ask, 1), PlacementSettings(weights=STACK), now_ms=0)

    assert (spread.host, spread.alternates) == ("empty", ("half",))
    assert (stacked.host, stacked.alternates) == ("half", ("empty",))


def test_a_batch_spreads_over_equal_hosts() -> None:
    hosts = picture([host(f"h{number}") for number in range(10)])

    decisions = decide(hosts, wanted(Ask(resources=SMALL), 30), SETTINGS, now_ms=0)

    chosen = [decision.host for decision in decisions]
    assert {chosen.count(f"h{number}") for number in range(10)} == {3}


def test_different_servers_break_ties_differently() -> None:
    """Schedulers that race over different servers must not all want the same host."""
    hosts = picture([host(f"h{number}") for number in range(50)])

    first = [
        decide(hosts, wanted(Ask(resources=SMALL), 1, first=number), SETTINGS, now_ms=0)[0].host
        for number in range(100)
    ]

    assert len(set(first)) > 20


def test_alternates_are_of_the_same_cell() -> None:
    hosts = picture([host("e1"), host("w1", cell="west"), host("w2", cell="west")])

    for number in range(20):
        (decision,) = decide(hosts, wanted(Ask(resources=SMALL), 1, first=number), SETTINGS, now_ms=0)
        assert all(name[0] == decision.host[0] for name in decision.alternates)


def test_a_refusal_tells_how_many_hosts_and_names_a_few() -> None:
    small = Resources(vcpus=1, ram_mib=1024, disk_gib=10)
    hosts = picture(
        [
            *(host(f"small{number}", capacity=small) for number in range(32)),
            *(host(f"far{number}", zone="z2") for number in range(8)),
        ]
    )

    (decision,) = decide(hosts, wanted(Ask(resources=HALF, zone="z1"), 1), SETTINGS, now_ms=0)

    assert decision.explain() == "0 of 40 hosts fit: 8 in another zone, 32 short of memory"
    assert [(refusal.filter, len(refusal.examples)) for refusal in decision.refusals] == [
        ("AvailabilityZoneFilter", 3),
        ("RamFilter", 3),
    ]
    assert decision.suggestion == "it would fit in zone z2"


SUGGESTIONS = [
    ([], Ask(resources=BIG), ""),
    (
        [host("h", capacity=Resources(vcpus=8, ram_mib=3000, disk_gib=99))],
        Ask(resources=Resources(vcpus=2, ram_mib=4096, disk_gib=9)),
        "a flavor with at most 3000 MiB of memory would fit",
    ),
    (
        [host("h", capacity=Resources(vcpus=1, ram_mib=3000, disk_gib=99))],
        Ask(resources=Resources(vcpus=2, ram_mib=4096, disk_gib=9)),
        "a flavor with at most 1 vCPU and 3000 MiB of memory would fit",
    ),
    (
        # The second is nearer to what was asked for, though it lacks in two dimensions.
        [
            host("a", capacity=Resources(vcpus=8, ram_mib=1000, disk_gib=99)),
            host("b", capacity=Resources(vcpus=3, ram_mib=3900, disk_gib=99)),
        ],
        Ask(resources=Resources(vcpus=4, ram_mib=4096, disk_gib=9)),
        "a flavor with at most 3 vCPUs and 3900 MiB of memory would fit",
    ),
    (
        [host("h", capacity=Resources(vcpus=8, ram_mib=4096, disk_gib=0))],
        Ask(resources=Resources(vcpus=2, ram_mib=4096, disk_gib=9)),
        "",
    ),
    (
        [host("h")],
        Ask(resources=SMALL, required_traits=frozenset({"GPU"})),
        "it would fit without what image and flavor require of the host",
    ),
    ([host("h", enabled=False)], Ask(resources=SMALL), "it would fit when 1 host is back"),
    ([host("h", enabled=False, zone="z2")], Ask(resources=SMALL, zone="z1"), ""),
]


@pytest.mark.parametrize(("fleet", "ask", "suggestion"), SUGGESTIONS)
def test_the_smallest_change_that_would_fit_is_told(fleet: list[Facts], ask: Ask, suggestion: str) -> None:
    (decision,) = decide(picture(fleet), wanted(ask, 1), SETTINGS, now_ms=0)

    assert decision.host == ""
    assert decision.suggestion == suggestion


@given(fleet=fleets(), ask=asks())
def test_a_smaller_flavor_that_is_suggested_does_fit(fleet: Sequence[Facts], ask: Ask) -> None:
    hosts = picture(fleet)
    (decision,) = decide(hosts, wanted(ask, 1), SETTINGS, now_ms=0)
    if not decision.suggestion.startswith("a flavor with at most "):
        return
    words = (
        decision.suggestion.removeprefix("a flavor with at most ").removesuffix(" would fit").split(" and ")
    )
    amounts = {clause.split()[1]: int(clause.split()[0]) for clause in words}
    smaller = Resources(
        vcpus=amounts.get("vCPUs", amounts.get("vCPU", ask.resources.vcpus)),
        ram_mib=amounts.get("MiB", ask.resources.ram_mib),
        disk_gib=amounts.get("GiB", ask.resources.disk_gib),
    )

    (second,) = decide(
        hosts,
        wanted(
            Ask(
                resources=smaller,
                zone=ask.zone,
                required_traits=ask.required_traits,
                forbidden_traits=ask.forbidden_traits,
                cell=ask.cell,
                tried_cells=ask.tried_cells,
            ),
            1,
        ),
        SETTINGS,
        now_ms=0,
    )

    assert second.host


def test_without_hosts_the_answer_says_so() -> None:
    (decision,) = decide(HostPicture(), wanted(Ask(resources=SMALL), 1), SETTINGS, now_ms=0)

    assert decision.explain() == "there are no hosts"
