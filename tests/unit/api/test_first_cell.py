"""Which cell a create is tried in first: where there is room, counting what was just sent there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest

from fabric.api.core.accept import PLEDGE_MS, Pledged, check_room, first_cell, pledged, unpledged
from fabric.errors import NoCapacity
from fabric.model.host import CellCapacity, Resources
from tests.unit.scheduler.worlds import build

REQUEST = build("i-1").request
NEED = REQUEST.guest.resources()


def _capacity(cell: str, servers: int, *, time_ms: int = 1) -> CellCapacity:
    free = Resources(
        vcpus=servers * NEED.vcpus, ram_mib=servers * NEED.ram_mib, disk_gib=servers * NEED.disk_gib
    )
    return CellCapacity(cell=cell, hosts=1, free=free, largest=NEED, update_time_ms=time_ms)


def _sent(
    count: int, *capacities: CellCapacity, now_ms: int = 0
) -> tuple[Counter[str], Mapping[str, Pledged]]:
    pledges: Mapping[str, Pledged] = {}
    by_name = {each.cell: each for each in capacities}
    sent: Counter[str] = Counter()
    for _ in range(count):
        cell = first_cell(list(by_name), unpledged(capacities, pledges, now_ms=now_ms), REQUEST)
        pledges = pledged(pledges, by_name[cell], REQUEST, now_ms=now_ms)
        sent[cell] += 1
    return sent, pledges


def test_a_burst_goes_to_each_cell_as_far_as_it_has_room() -> None:
    sent, _ = _sent(9, _capacity("a", 3), _capacity("b", 6))

    assert sent == {"a": 3, "b": 6}


def test_a_cell_that_has_said_anew_what_it_can_take_is_believed() -> None:
    _, pledges = _sent(3, _capacity("a", 3))

    later = unpledged([_capacity("a", 2, time_ms=2)], pledges, now_ms=0)

    assert later["a"].free == _capacity("a", 2).free


def test_what_was_sent_long_ago_does_not_count_any_more() -> None:
    capacity = _capacity("a", 3)
    _, pledges = _sent(3, capacity)

    assert unpledged([capacity], pledges, now_ms=PLEDGE_MS)["a"].free == capacity.free
    assert unpledged([capacity], pledges, now_ms=PLEDGE_MS - 1)["a"].free == Resources()


def test_with_no_room_anywhere_a_create_is_accepted_all_the_same() -> None:
    assert first_cell(["a", "b"], {"a": _capacity("a", 0), "b": _capacity("b", 0)}, REQUEST) == "a"


SMALL = replace(_capacity("a", 1), largest=replace(NEED, ram_mib=NEED.ram_mib - 1))


@pytest.mark.parametrize(
    ("known", "zone"),
    [
        ((SMALL, replace(SMALL, cell="b")), ""),
        ((_capacity("a", 0), replace(_capacity("b", 0), zones=("z2",))), "z1"),
        ((replace(SMALL, hosts=0, largest=Resources()), replace(SMALL, cell="b")), ""),
    ],
)
def test_what_fits_no_host_of_any_cell_has_no_room(known: tuple[CellCapacity, ...], zone: str) -> None:
    with pytest.raises(NoCapacity, match=f"{NEED.ram_mib} MiB"):
        check_room(["a", "b"], {each.cell: each for each in known}, replace(REQUEST, zone=zone))


@pytest.mark.parametrize(
    "known",
    [
        (SMALL, _capacity("b", 1)),
        # That it has room may be what b has not said.
        (SMALL,),
        (),
    ],
)
def test_what_may_fit_is_not_said_to_have_no_room(known: tuple[CellCapacity, ...]) -> None:
    check_room(["a", "b"], {each.cell: each for each in known}, REQUEST)


def test_a_server_without_the_hosts_own_network_may_fit_where_addresses_are_out() -> None:
    """A cell says nothing of hosts without an address to give, and such a server needs none."""
    check_room(["a"], {"a": SMALL}, replace(REQUEST, network_id=""))
