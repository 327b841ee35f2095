"""Which number to take of those that are free: addresses, MACs, VNIs, places in a quota. All are taken the same way.

Each number is a key of its own that is compared as absent when it is taken, so no two ever have the same, and whoever takes another
number is in nobody's way. What is chosen here is only which key to try: a few at random-looking places first, which costs one small
read however full the range is not; only when all of those are taken the whole range is looked at, and then the answer is exact.
Everybody tries other places, because the seed is of the one who asks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Final

from fabric.network.core.ranges import Interval, size

PROBES: Final = 12
"""How many places are looked at first. Where nine of ten are taken, seven of ten who ask find one among them."""

VNIS: Final = Interval(1, (1 << 24) - 1)
"""VXLAN network identifiers (RFC 7348): 24 bits, of which 0 is nobody's."""

MACS: Final = Interval(0xFA163E000000, 0xFA163EFFFFFF)
"""The MACs that are made here: with the prefix that OpenStack gives its ports, as `fabric.network.addresses` has it."""


def probes(among: Sequence[Interval], *, seed: str, count: int = PROBES) -> tuple[int, ...]:
    """Places to look at first, each once, in the order to prefer them; fewer where there are not so many."""
    total = size(among)
    if total <= count:
        return tuple(sorted((n for each in among for n in range(each.first, each.last + 1)), key=_by(seed)))
    found: dict[int, None] = {}
    turn = 0
    while len(found) < count:
        found[_at(among, _hash(f"{seed}/{turn}") % total)] = None
        turn += 1
    return tuple(found)


def pick(among: Sequence[Interval], taken: Iterable[int], *, seed: str) -> int | None:
    """One that is not taken, the same for the same seed; None where there is none. The intervals are disjoint and in order.

    Takes time for what is taken, not for what there is: an IPv6 subnet has more addresses than anybody can go through.
    """
    gone = sorted({number for number in taken if any(number in each for each in among)})
    free = size(among) - len(gone)
    if free <= 0:
        return None
    place = _hash(seed) % free
    # As many taken ones as lie at or before the place push it on, and each push may pass more of them.
    places = [_place(among, number) for number in gone]
    pushed = 0
    while (passed := bisect_right(places, place + pushed)) != pushed:
        pushed = passed
    return _at(among, place + pushed)


def mac_text(number: int) -> str:
    """A MAC as people write it."""
    digits = f"{number:012x}"
    return ":".join(digits[at : at + 2] for at in range(0, 12, 2))


def mac_number(mac: str) -> int:
    """The number of a MAC. Raises ValueError for what is none."""
    return int(mac.replace(":", ""), 16)


def _at(among: Sequence[Interval], place: int) -> int:
    for each in among:
        if place < each.size:
            return each.first + place
        place -= each.size
    raise IndexError(place)


def _place(among: Sequence[Interval], number: int) -> int:
    before = 0
    for each in among:
        if number in each:
            return before + number - each.first
        before += each.size
    raise IndexError(number)


def _hash(seed: str) -> int:
    return int.from_bytes(blake2b(seed.encode(), digest_size=16, person=b"choice").digest())


def _by(seed: str) -> Callable[[int], int]:
    return lambda number: _hash(f"{seed}/{number}")
