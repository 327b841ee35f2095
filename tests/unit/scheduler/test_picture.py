"""The columnar picture: news in any order, and what it adds up to."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from fabric.model.host import CellCapacity, Resources, Session, SessionState, Use
from fabric.scheduler.core.capacity import publishable
from fabric.scheduler.core.picture import HostPicture, Seen
from fabric.scheduler.settings import SchedulerSettings
from tests.unit.scheduler.worlds import BIG, SMALL, Facts, host, picture


def use(instances: int) -> Use:
    return Use(
        host="h",
        claimed=Resources(vcpus=instances, ram_mib=instances, disk_gib=instances),
        instances=instances,
        slots=tuple(range(instances)),
    )


@given(count=st.integers(1, 8), seed=st.integers())
def test_news_may_arrive_in_any_order_and_any_number_of_times(count: int, seed: int) -> None:
    """Watches, re-reads, refusals and our own commits all tell of the same records."""
    hosts = picture([host("h")])
    news = [Seen(use(revision), revision, revision) for revision in range(1, count + 1)] * 2
    random.Random(seed).shuffle(news)

    for each in news:
        hosts.set_use("east", "h", each)

    (row,) = hosts.rows()
    assert hosts.use("east", "h") == Seen(use(count), count, count)
    assert row.instances == count
    assert row.free == BIG - use(count).claimed


def test_old_news_is_no_news() -> None:
    hosts = picture([host("h")])

    assert hosts.set_use("east", "h", Seen(use(2), 5, 5))
    assert not hosts.set_use("east", "h", Seen(use(1), 4, 4))
    assert not hosts.set_use("east", "h", Seen(use(2), 5, 5))


def test_a_record_known_to_be_gone_is_compared_as_absent() -> None:
    hosts = picture([Facts(host=host("h"), use=use(1))])

    hosts.set_use("east", "h", Seen(None, 0, 9))

    assert hosts.use("east", "h").revision == 0
    assert next(hosts.rows()).free == BIG


def test_records_of_a_host_nobody_approved_make_no_host() -> None:
    hosts = HostPicture()
    hosts.set_cell("east", is_enabled=True, is_reachable=True)

    hosts.set_session("east", "h", Seen(Session(host="h", epoch=1, state=SessionState.UP), 1, 1))
    hosts.set_alive("east", "h", is_alive=True)
    hosts.set_use("east", "h", Seen(use(1), 1, 1))

    assert list(hosts.rows()) == []
    assert hosts.capacity("east", now_ms=0).hosts == 0


def test_a_host_whose_record_is_gone_is_no_host_any_more() -> None:
    hosts = picture([host("h", traits=("GPU",))])

    hosts.set_host("east", "h", Seen(None, 0, 2))

    assert list(hosts.rows()) == []
    assert not hosts.trait("GPU").any()


def test_hosts_of_one_name_in_two_cells_are_two() -> None:
    hosts = picture([host("h", zone="z1"), host("h", cell="west", zone="z2")])

    assert {(row.cell, row.zone) for row in hosts.rows()} == {("east", "z1"), ("west", "z2")}


@given(st.integers(0, 200))
def test_columns_grow_with_the_fleet(count: int) -> None:
    hosts = picture([host(f"h{number}", traits=("GPU",)) for number in range(count)])

    assert [row.name for row in hosts.rows()] == [f"h{number}" for number in range(count)]
    assert int(hosts.trait("GPU").sum()) == count
    assert hosts.is_cell_reachable.all()


def test_slots_taken_beyond_a_lowered_limit_block_none_below_it() -> None:
    many = Use(host="h", claimed=SMALL, instances=3, slots=(0, 7, 9))
    hosts = picture([Facts(host=host("h", slots=4), use=many)])

    assert next(hosts.rows()).free_slots == 3


def test_capacity_is_what_hosts_that_are_up_can_take() -> None:
    half = Use(host="b", claimed=Resources(vcpus=60, ram_mib=1, disk_gib=1), instances=1, slots=(0,))
    hosts = picture(
        [
            host("a"),
            Facts(host=host("b", zone="z2"), use=half),
            host("off", enabled=False),
            Facts(host=host("joining"), state=SessionState.JOIN),
            host("full", slots=0),
            host("elsewhere", cell="west"),
        ]
    )

    capacity = hosts.capacity("east", now_ms=7)

    assert capacity == CellCapacity(
        cell="east",
        hosts=2,
        free=BIG + BIG - half.claimed,
        largest=BIG,
        zones=("z1", "z2"),
        update_time_ms=7,
    )


def test_an_overcommitted_host_takes_nothing_away_from_the_others() -> None:
    over = Use(host="b", claimed=BIG + BIG, instances=1, slots=(0,))
    hosts = picture([host("a"), Facts(host=host("b"), use=over)])

    assert hosts.capacity("east", now_ms=0).free == BIG


def test_capacity_is_published_when_it_changed_and_not_too_often() -> None:
    settings = SchedulerSettings(capacity_s=3)
    before = CellCapacity(cell="east", hosts=1, free=BIG, largest=BIG, update_time_ms=10_000)
    same = CellCapacity(cell="east", hosts=1, free=BIG, largest=BIG, update_time_ms=99_000)
    early = CellCapacity(cell="east", hosts=2, free=BIG, largest=BIG, update_time_ms=12_999)
    late = CellCapacity(cell="east", hosts=2, free=BIG, largest=BIG, update_time_ms=13_000)
    known = Seen(before, 4, 4)

    assert publishable(same, known, settings=settings) is None
    assert publishable(early, known, settings=settings) is None
    change = publishable(late, known, settings=settings)
    assert change is not None
    assert (change.unchanged, change.put) == ({"capacity/east": 4}, {"capacity/east": late})
    assert publishable(before, Seen(), settings=settings) is not None
