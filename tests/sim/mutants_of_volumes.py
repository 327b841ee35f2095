"""Mutants of volumes and interfaces that come to servers and go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, cast

import fabric.api.instances as api_instances
from fabric.api.core import devices as api_devices
from fabric.conductor.core import devices, flow
from fabric.lifecycle import core as lifecycle
from fabric.model.volume import Volume, VolumeState
from fabric.scheduler import cell
from fabric.scheduler.core import boot_volumes
from fabric.store import keys
from hostd.volumes.fake import FakeVolumes
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


def _taken_from_others() -> tuple[Swap, ...]:
    """A server boots from a volume whoever has it."""
    right = boot_volumes.claimed

    def careless(root: Any, build: Any, host: str, **facts: Any) -> Any:
        volume = root.volume.value
        free = None if volume is None else replace(volume, state=VolumeState.AVAILABLE)
        return right(replace(root, volume=replace(root.volume, value=free)), build, host, **facts)

    return ((boot_volumes, "claimed", careless), (cell, "unavailable", lambda _root, _cell: ""))


def _booted_anywhere() -> tuple[Swap, ...]:
    """A server boots from a volume on whatever host has room."""
    right = boot_volumes.claimed

    def careless(root: Any, build: Any, host: str, **facts: Any) -> Any:
        volume = root.volume.value
        moved = None if volume is None else replace(volume, host=host)
        return right(replace(root, volume=replace(root.volume, value=moved)), build, host, **facts)

    return ((boot_volumes, "claimed", careless), (cell, "asked", lambda ask, _root: ask))


def _made_again() -> tuple[Swap, ...]:
    """A volume is made of its image at every start, whatever has been written to it."""
    right = FakeVolumes.ensure

    async def careless(self: Any, volume: Any, owner: Any, source: Any = None) -> Any:
        if source is not None:
            self._sizes.pop(volume.id, None)
        return await right(self, volume, owner, source)

    return ((FakeVolumes, "ensure", careless),)


def _kept_by_the_dead() -> tuple[Swap, ...]:
    """A server that ends while it is on no host keeps its volumes."""
    return ((api_instances, "volumes_of", lambda _: ()),)


VOLUME_MUTANTS: Final = (
    Mutant(
        name="shelved_volumes_never_freed",
        without="a server that ends while it is on no host lets go of its volumes",
        within=400,
        swaps=_kept_by_the_dead,
    ),
    Mutant(
        name="root_volume_taken_from_others",
        without="a claim compares the volume that its server boots from",
        within=100,
        swaps=_taken_from_others,
    ),
    Mutant(
        name="root_volume_on_any_host",
        without="a server that boots from a volume runs where its data is",
        within=1000,
        swaps=_booted_anywhere,
    ),
    Mutant(
        name="volume_made_of_its_image_again",
        without="a volume that was made is what it is, whatever its image",
        within=60,
        swaps=_made_again,
    ),
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
