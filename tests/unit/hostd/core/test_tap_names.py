from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st

from hostd.core.tap_names import TapMark, parse_alias, tap_name

IDS = st.uuids().map(str)
COMMON = {
    "instance_id": IDS,
    "placement_epoch": st.integers(0, 10**17),
    "port_id": IDS,
    "mac": st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":")),
}
MARKS = st.one_of(
    st.builds(TapMark, **COMMON, address=st.ip_addresses(v=4).map(str)),
    st.builds(TapMark, **COMMON, network_id=IDS),
)


@given(MARKS)
def test_a_mark_is_read_back_from_its_alias(mark: TapMark) -> None:
    assert parse_alias(mark.alias()) == mark


@given(MARKS)
def test_an_alias_fits_the_kernel(mark: TapMark) -> None:
    assert len(mark.alias()) < 256


@given(st.text())
def test_what_others_write_is_no_mark(alias: str) -> None:
    assert parse_alias(alias) is None


@given(MARKS, st.text(min_size=1))
def test_a_mark_with_more_behind_it_is_none(mark: TapMark, more: str) -> None:
    assert parse_alias(mark.alias() + " " + more) is None


def test_tap_names_fit_the_kernel_and_differ() -> None:
    names = {tap_name(str(uuid.UUID(int=number))) for number in range(1000)}

    assert len(names) == 1000
    assert {len(name) for name in names} == {15}
