"""What people do to a guest, by hand: the bare script that actions through the fabric are compared with.

python -m tests.bench.by_hand URI DOMAIN ACTION
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import libvirt


@dataclass(frozen=True, slots=True)
class Step:
    """One action: where it leads, and what a script does instead."""

    action: str
    state: str
    by_hand: Callable[[libvirt.virDomain], object]


def _shut_down(domain: libvirt.virDomain) -> None:
    domain.shutdown()
    while domain.isActive():
        time.sleep(0.005)


STEPS: Final = (
    Step("pause", "PAUSED", lambda domain: domain.suspend()),
    Step("unpause", "ACTIVE", lambda domain: domain.resume()),
    Step("suspend", "SUSPENDED", lambda domain: domain.managedSave(0)),
    Step("resume", "ACTIVE", lambda domain: domain.create()),
    Step("stop", "SHUTOFF", _shut_down),
    Step("start", "ACTIVE", lambda domain: domain.create()),
)

if __name__ == "__main__":
    uri, domain_id, action = sys.argv[1:]
    (chosen,) = (step for step in STEPS if step.action == action)
    chosen.by_hand(libvirt.open(uri).lookupByUUIDString(domain_id))
