"""What every driver of volumes must do, as seen from hostd's shell. A rig adds the hands of somebody who stands beside the disks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import pytest

from fabric.model.volume import GuestVolume
from hostd.core.faults import FaultCode
from hostd.volumes.base import VolumeError, Volumes
from tests.conformance.guests import an_id

ONE = GuestVolume(id=an_id("volume one"), size_gib=1)
TWO = GuestVolume(id=an_id("volume two"), size_gib=2)


class Rig(Protocol):
    """One host's volumes."""

    volumes: Volumes

    def another(self) -> Volumes:
        """What a second daemon on the same host sees."""
        ...

    def size_gib(self, volume_id: str) -> int:
        """How large the disk is."""
        ...

    def lose(self, volume_id: str) -> None:
        """Take the disk away behind everybody's back."""
        ...


Law = Callable[[Rig], Awaitable[None]]


async def a_volume_is_made_as_large_as_it_says_and_found_again(rig: Rig) -> None:
    disk = await rig.volumes.ensure(TWO, None)

    assert (disk.format, disk.serial, disk.readonly, disk.backing) == ("raw", TWO.serial, False, None)
    assert disk.path == rig.volumes.path(TWO.id)
    assert rig.size_gib(TWO.id) == 2
    assert await rig.another().ensure(TWO, None) == disk


async def volumes_are_held_until_they_are_removed_and_twice_is_success(rig: Rig) -> None:
    await rig.volumes.ensure(ONE, None)
    await rig.volumes.ensure(TWO, None)

    assert await rig.volumes.held() == {ONE.id, TWO.id}
    await rig.volumes.remove(ONE.id)
    await rig.volumes.remove(ONE.id)
    assert await rig.another().held() == {TWO.id}


async def a_volume_grows_and_never_shrinks(rig: Rig) -> None:
    await rig.volumes.ensure(ONE, None)
    await rig.volumes.grow(ONE.id, 3)
    await rig.volumes.grow(ONE.id, 2)
    await rig.volumes.ensure(ONE, None)

    assert rig.size_gib(ONE.id) == 3


async def having_a_volume_grows_it_to_what_it_says(rig: Rig) -> None:
    await rig.volumes.ensure(ONE, None)
    await rig.volumes.ensure(GuestVolume(id=ONE.id, size_gib=5), None)

    assert rig.size_gib(ONE.id) == 5


async def a_volume_whose_data_is_gone_is_lost_and_nothing_is_made_in_its_stead(rig: Rig) -> None:
    await rig.volumes.ensure(ONE, None)
    rig.lose(ONE.id)

    for act in (rig.volumes.ensure(ONE, None), rig.another().ensure(ONE, None), rig.volumes.grow(ONE.id, 2)):
        with pytest.raises(VolumeError) as refused:
            await act
        assert refused.value.code == FaultCode.VOLUME_LOST
    assert await rig.volumes.held() == {ONE.id}


async def a_lost_volume_can_be_removed_and_made_anew(rig: Rig) -> None:
    await rig.volumes.ensure(ONE, None)
    rig.lose(ONE.id)
    await rig.volumes.remove(ONE.id)

    assert await rig.volumes.held() == frozenset()
    await rig.volumes.ensure(ONE, None)
    assert rig.size_gib(ONE.id) == 1


async def what_never_was_cannot_grow(rig: Rig) -> None:
    with pytest.raises(VolumeError) as refused:
        await rig.volumes.grow(ONE.id, 1)

    assert refused.value.code == FaultCode.VOLUME_LOST


async def what_is_no_id_names_no_file(rig: Rig) -> None:
    for word in ("", "..", "../../etc/passwd", "a" * 36):
        with pytest.raises(VolumeError):
            rig.volumes.path(word)


LAWS: tuple[Law, ...] = (
    a_volume_is_made_as_large_as_it_says_and_found_again,
    volumes_are_held_until_they_are_removed_and_twice_is_success,
    a_volume_grows_and_never_shrinks,
    having_a_volume_grows_it_to_what_it_says,
    a_volume_whose_data_is_gone_is_lost_and_nothing_is_made_in_its_stead,
    a_lost_volume_can_be_removed_and_made_anew,
    what_never_was_cannot_grow,
    what_is_no_id_names_no_file,
)
