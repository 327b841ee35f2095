"""When a beat may be acknowledged: only on proof that the store still knows the session (R5).

An acknowledged beat permits its host to start guests for another while, so acknowledging without proof would let a conductor that
has lost the store keep a host going that others have declared dead. The proof is a linearizable read that found the session, dated by
when it was *sent*: that is the latest moment at which it can have become untrue.

Sum of the times, for whoever declares a host dead: a session seen lost at u was last proved at or before u, so its last acknowledgement
was sent by u + PROOF_S, and what that permits ends by u + PROOF_S + the permit's length.
"""

from __future__ import annotations

from typing import Final

PROOF_S: Final = 5.0
"""How old a proof may be, in seconds of the boot clock."""

REFRESH_S: Final = 2.0
"""A proof older than this is renewed when a beat comes, so that the next beat need not wait."""


def may_acknowledge(proof_boot_s: float, now_boot_s: float) -> bool:
    """Whether a beat that is here now may be acknowledged on a proof sent then."""
    return 0.0 <= now_boot_s - proof_boot_s < PROOF_S


def wants_proof(proof_boot_s: float, now_boot_s: float) -> bool:
    """Whether it is time to prove the session anew."""
    return not 0.0 <= now_boot_s - proof_boot_s < REFRESH_S
