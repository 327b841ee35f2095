"""Filters and weighers: that their two forms are one rule, and what each rule says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from fabric.model.host import Host, Resources, SessionState, Use
from fabric.scheduler.core.ask import Ask, ask_of
from fabric.scheduler.core.explain import why_not
from fabric.scheduler.core.filters import FILTERS
from fabric.scheduler.core.filters.base import name_of
from fabric.scheduler.core.weighers import WEIGHERS, weigh, weigh_all
from fabric.scheduler.settings import SPREAD
from tests.unit.scheduler.worlds import BIG, SMALL, Facts, asks, fleets, host, picture, request

DOCS = Path(__file__).resolve().parents[3] / "docs" / "concepts" / "placement.md"


@given(fleet=fleets(), ask=asks())
def test_both_forms_of_every_filter_agree(fleet: Sequence[Facts], ask: Ask) -> None:
    hosts = picture(fleet, enabled=["east"], reachable=["west"])

    for rule in FILTERS:
        vector = rule.passing(hosts, ask)

        assert vector.dtype == np.bool_
        assert vector.tolist() == [rule.passes(row, ask) for row in hosts.rows()], name_of(rule)


@given(fleet=fleets())
def test_both_forms_of_the_weighers_agree_to_the_last_bit(fleet: Sequence[Facts]) -> None:
    """A batch weighs a touched host as a value and an untouched one as a row: a different rounding would be a different choice."""
    hosts = picture(fleet)

    weights = weigh_all(hosts, np.arange(len(hosts)), SPREAD)

    assert weights.tolist() == [weigh(row, SPREAD) for row in hosts.rows()]


@given(fleet=fleets())
def test_no_filter_changes_the_picture(fleet: Sequence[Facts]) -> None:
    hosts = picture(fleet)
    before = list(hosts.rows())

    for rule in FILTERS:
        rule.passing(hosts, Ask(resources=SMALL, zone="z1"))

    assert list(hosts.rows()) == before


FULL = Use(host="h", claimed=BIG, instances=1, slots=(0,))

CASES: list[tuple[str, Facts | Host, Ask]] = [
    ("down or disabled", host("h", enabled=False), Ask(resources=SMALL)),
    ("down or disabled", Facts(host=host("h"), state=SessionState.JOIN), Ask(resources=SMALL)),
    ("down or disabled", Facts(host=host("h"), state=SessionState.DRAIN), Ask(resources=SMALL)),
    ("down or disabled", Facts(host=host("h"), is_alive=False), Ask(resources=SMALL)),
    ("not the host asked for", host("h"), Ask(resources=SMALL, host="h1")),
    ("the one it is to leave", host("h"), Ask(resources=SMALL, other_than=frozenset({"h", "h1"}))),
    ("in another zone", host("h", zone="z2"), Ask(resources=SMALL, zone="z1")),
    (
        "without the architecture, firmware or traits",
        host("h"),
        Ask(resources=SMALL, required_traits=frozenset({"GPU"})),
    ),
    (
        "without the architecture, firmware or traits",
        host("h", traits=("GPU",)),
        Ask(resources=SMALL, forbidden_traits=frozenset({"GPU"})),
    ),
    ("without a tunnel address", host("h"), Ask(resources=SMALL, needs_tunnel=True)),
    ("", host("h", tunnel_address="192.0.2.1"), Ask(resources=SMALL, needs_tunnel=True)),
    (
        "short of memory",
        host("h", capacity=Resources(vcpus=4, ram_mib=511, disk_gib=10)),
        Ask(resources=SMALL),
    ),
    (
        "short of vCPUs",
        host("h", capacity=Resources(vcpus=0, ram_mib=512, disk_gib=10)),
        Ask(resources=SMALL),
    ),
    (
        "short of disk",
        host("h", capacity=Resources(vcpus=4, ram_mib=512, disk_gib=0)),
        Ask(resources=SMALL),
    ),
    ("out of addresses", host("h", slots=0), Ask(resources=SMALL)),
    ("out of addresses", host("h", guest_cidr="10.0.0.0/29"), Ask(resources=SMALL)),
    ("out of addresses", host("h", guest_cidr="not a subnet"), Ask(resources=SMALL)),
    ("", host("h", slots=0), Ask(resources=SMALL, needs_slot=False)),
    ("in another cell", host("h"), Ask(resources=SMALL, cell="west")),
    ("in another cell", host("h"), Ask(resources=SMALL, tried_cells=frozenset({"east"}))),
    ("short of memory, short of vCPUs, short of disk", Facts(host=host("h"), use=FULL), Ask(resources=SMALL)),
    ("", host("h"), Ask(resources=SMALL, host="h", other_than=frozenset({"h1"}))),
    ("", host("h"), Ask(resources=SMALL, zone="z1", cell="east", tried_cells=frozenset({"west"}))),
]


@pytest.mark.parametrize(("reason", "known", "ask"), CASES)
def test_a_host_says_why_it_does_not_take_a_server(reason: str, known: Facts | Host, ask: Ask) -> None:
    (row,) = picture([known]).rows()

    assert why_not(row, ask) == reason


def test_every_filter_refuses_something_here() -> None:
    """A filter that no case trips may as well not exist."""
    said = {reason for reasons, _, _ in CASES for reason in re.split(r", (?=short|out|in )", reasons)}
    cells = {"in a cell that cannot be reached", "in a cell that is disabled"}

    assert {rule.reason for rule in FILTERS} == (said - {""}) | cells


def test_a_cell_that_is_cut_off_or_closed_takes_nothing() -> None:
    (cut_off,) = picture([host("h")], reachable=["west"]).rows()
    (closed,) = picture([host("h")], enabled=["west"]).rows()

    assert why_not(cut_off, Ask(resources=SMALL)) == "in a cell that cannot be reached"
    assert why_not(closed, Ask(resources=SMALL)) == "in a cell that is disabled"


def test_architecture_and_firmware_are_traits() -> None:
    plain = request()
    picky = type(plain)(
        guest=type(plain.guest)(
            **{
                name: getattr(plain.guest, name)
                for name in plain.guest.__dataclass_fields__
                if name != "firmware"
            },
            firmware="uefi",
        ),
        architecture="x86_64",
        required_traits=("GPU",),
    )

    assert ask_of(plain).required_traits == frozenset()
    assert ask_of(picky).required_traits == {"HW_ARCH_X86_64", "FIRMWARE_UEFI", "GPU"}


def test_every_filter_and_weigher_is_documented() -> None:
    text = DOCS.read_text()

    assert [name_of(rule) for rule in FILTERS if name_of(rule) not in text] == []
    assert [type(weigher).__name__ for weigher in WEIGHERS if type(weigher).__name__ not in text] == []


def test_every_weigher_has_its_place_in_the_settings() -> None:
    assert {weigher.name for weigher in WEIGHERS} == SPREAD.keys()
