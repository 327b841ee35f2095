"""Which conductor to dial, and when: any will do, so hosts spread themselves, and nobody has to coordinate it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from types import MappingProxyType

SHORTEST_WAIT_S = 0.2
LONGEST_WAIT_S = 5.0


def preference(host: str, endpoints: Sequence[str]) -> tuple[str, ...]:
    """The endpoints in the order this host should try them: rendezvous hashing (Thaler and Ravishankar, 1998).

    Each host has an order of its own, and losing one conductor spreads its hosts over all the others.
    """

    def weight(endpoint: str) -> tuple[bytes, str]:
        return blake2b(f"{host}\x1f{endpoint}".encode(), digest_size=8).digest(), endpoint

    return tuple(sorted(set(endpoints), key=weight, reverse=True))


@dataclass(frozen=True, slots=True)
class Dialling:
    """What came of dialling so far. `not_before_s` holds what conductors asked for, in seconds of the boot clock."""

    preferred: tuple[str, ...]
    failures: int = 0
    not_before_s: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    def next(self, now_s: float) -> str:
        """Whom to dial: the next in order after each failure, passing over those who asked to be left alone."""
        count = len(self.preferred)
        turn = [self.preferred[(self.failures + step) % count] for step in range(count)]
        free = [endpoint for endpoint in turn if self.not_before_s.get(endpoint, 0.0) <= now_s]
        return free[0] if free else min(turn, key=lambda endpoint: self.not_before_s.get(endpoint, 0.0))

    def failed(self) -> Dialling:
        """A dial failed, or a session ended before it was worth its name."""
        return replace(self, failures=self.failures + 1)

    def held(self) -> Dialling:
        """A session lasted: the next dial begins with the preferred one again."""
        return replace(self, failures=0)

    def asked(self, endpoint: str, *, until_s: float) -> Dialling:
        """A conductor asked not to be dialled before an instant."""
        return replace(self, not_before_s=MappingProxyType({**self.not_before_s, endpoint: until_s}))

    def wait_s(self, chance: float) -> float:
        """How long to wait before the next dial: doubling, with full jitter, between 0.2 and 5 s. `chance` is in [0, 1)."""
        ceiling = min(LONGEST_WAIT_S, SHORTEST_WAIT_S * 2.0 ** min(self.failures, 10))
        return SHORTEST_WAIT_S + chance * (ceiling - SHORTEST_WAIT_S)
