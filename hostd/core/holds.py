"""What a guest can be held as, and how a host says so: the rows that pausing and suspending are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from fabric.model.session import HostState
from fabric.model.states import PowerState, Want
from hostd.core.faults import FaultCode


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One way to hold a guest: the power it then has, the host's word for it, and the fault of not getting there."""

    power: PowerState
    word: HostState
    fault: FaultCode


HOLDS: Final[Mapping[Want, Held]] = MappingProxyType(
    {
        Want.PAUSE: Held(power=PowerState.PAUSED, word=HostState.PAUSED, fault=FaultCode.DOMAIN_PAUSE_FAILED),
        Want.SUSPEND: Held(
            power=PowerState.SUSPENDED, word=HostState.SUSPENDED, fault=FaultCode.DOMAIN_SUSPEND_FAILED
        ),
    }
)

_WORDS: Final[Mapping[PowerState, HostState]] = MappingProxyType(
    {PowerState.RUNNING: HostState.ACTIVE, **{held.power: held.word for held in HOLDS.values()}}
)


def word_of(power: PowerState) -> HostState:
    """What a host says of a guest that has this power."""
    return _WORDS.get(power, HostState.STOPPED)
