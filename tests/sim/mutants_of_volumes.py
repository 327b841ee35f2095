"""Mutants of volumes and interfaces that come to servers and go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, cast

from fabric.api.core import devices as api_devices
from fabric.conductor.core import devices, flow
from fabric.lifecycle import core as lifecycle
from fabric.model.volume import Volume, VolumeState
from fabric.store import keys
from tests.sim.mutant import Mutant, Swap


def _free_when_asked() -> tuple[Swap, ...]:
    """A volume is others' as soon as somebody has asked to detach it."""
    right = api_devices.detaching

    def careless(entry: Any) -> Any:
        beside = right(entry)

        def write(seen: Any, now: Any, now_ms: int, op_id: str) -> Any:
            wrote = beside.write(seen, now, now_ms, op_id)
            key = keys.VOLUME.at(entry.id)
            leaving = cast("Volume", wrote.put[key])
            free = replace(leaving, state=VolumeState.AVAILABLE, instance_id="")
            return replace(wrote, put={**wrote.put, key: free})

        return replace(beside, write=write)

    return ((api_devices, "detaching", careless),)


def _never_freed() -> tuple[Swap, ...]:
    """Who lets go of a volume, or ends, keeps it in the books."""
    return ((devices, "free_volumes", lambda *_, **__: None), (flow, "free_volumes", lambda *_, **__: None))


def _never_confirmed() -> tuple[Swap, ...]:
    """What the host says of devices is not heard."""
    return ((lifecycle, "plugged", lambda _now, after, _state, _fault: after),)


VOLUME_MUTANTS: Final = (
    Mutant(
        name="volume_free_when_asked",
        without="a volume is free when its guest has let go of it",
        within=60,
        swaps=_free_when_asked,
    ),
    Mutant(
        name="volumes_never_freed",
        without="a volume that a server has let go of is free",
        within=60,
        swaps=_never_freed,
    ),
    Mutant(
        name="devices_never_confirmed",
        without="what its host says of a server's devices is written down",
        within=60,
        swaps=_never_confirmed,
    ),
)
