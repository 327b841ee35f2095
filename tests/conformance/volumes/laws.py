"""What every driver of volumes must do, as seen from hostd's shell. A rig adds the hands of somebody who stands beside the disks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

import pytest

from fabric.model.volume import GuestVolume
from hostd.core.faults import FaultCode
from hostd.driver.base import DiskFile
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

    def image(self, content: bytes, size_gib: int = 0) -> DiskFile:
        """A raw image in the host's cache, that begins with this and is so large."""
        ...

    def begins_with(self, volume_id: str, content: bytes) -> bool:
        """Whether the disk does."""
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


async def a_volume_of_an_image_begins_as_that_and_is_as_large_as_it_says(rig: Rig) -> None:
    source = rig.image(b"a system")
    assert await rig.volumes.is_unmade(TWO.id)
    disk = await rig.volumes.ensure(TWO, None, source)

    assert (disk.format, disk.serial, disk.backing) == ("raw", TWO.serial, None)
    assert rig.begins_with(TWO.id, b"a system")
    assert rig.size_gib(TWO.id) == 2
    assert not await rig.another().is_unmade(TWO.id)


async def a_volume_that_is_made_is_what_it_is_whatever_the_image(rig: Rig) -> None:
    await rig.volumes.ensure(ONE, None, rig.image(b"a system"))
    gone = replace(rig.image(b"another"), path=rig.volumes.path(TWO.id))
    await rig.volumes.ensure(ONE, None, rig.image(b"another"))
    await rig.another().ensure(ONE, None, gone)

    assert rig.begins_with(ONE.id, b"a system")


async def without_its_image_a_volume_is_not_made_at_all(rig: Rig) -> None:
    gone = replace(rig.image(b"a system"), path=rig.volumes.path(TWO.id))
    with pytest.raises(VolumeError) as refused:
        await rig.volumes.ensure(ONE, None, gone)

    assert refused.value.code == FaultCode.IMAGE_UNAVAILABLE
    assert await rig.volumes.is_unmade(ONE.id)


async def an_image_that_is_larger_than_the_volume_is_refused(rig: Rig) -> None:
    with pytest.raises(VolumeError) as refused:
        await rig.volumes.ensure(ONE, None, rig.image(b"large", size_gib=2))

    assert refused.value.code == FaultCode.IMAGE_TOO_LARGE
    assert await rig.volumes.is_unmade(ONE.id)


async def a_lost_volume_is_not_made_of_its_image_again(rig: Rig) -> None:
    source = rig.image(b"a system")
    await rig.volumes.ensure(ONE, None, source)
    rig.lose(ONE.id)

    assert not await rig.volumes.is_unmade(ONE.id)
    with pytest.raises(VolumeError) as refused:
        await rig.volumes.ensure(ONE, None, source)
    assert refused.value.code == FaultCode.VOLUME_LOST


LAWS: tuple[Law, ...] = (
    a_volume_is_made_as_large_as_it_says_and_found_again,
    volumes_are_held_until_they_are_removed_and_twice_is_success,
    a_volume_grows_and_never_shrinks,
    having_a_volume_grows_it_to_what_it_says,
    a_volume_whose_data_is_gone_is_lost_and_nothing_is_made_in_its_stead,
    a_lost_volume_can_be_removed_and_made_anew,
    what_never_was_cannot_grow,
    what_is_no_id_names_no_file,
    a_volume_of_an_image_begins_as_that_and_is_as_large_as_it_says,
    a_volume_that_is_made_is_what_it_is_whatever_the_image,
    without_its_image_a_volume_is_not_made_at_all,
    an_image_that_is_larger_than_the_volume_is_refused,
    a_lost_volume_is_not_made_of_its_image_again,
)
