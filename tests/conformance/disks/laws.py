"""What every host's disks must do."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from fabric.errors import Unavailable
from fabric.images.core.inspect import ImageLimits, Inspection
from fabric.model.image import ImageFormat
from fabric.model.instance import ImageRef, Rescue
from hostd.core.faults import FaultCode
from hostd.images.base import DiskCopy, DiskError, Disks, Fetch, Held
from tests.conformance.guests import a_guest, an_id, an_image

Law = Callable[[Disks], Awaitable[None]]

CONTENT = bytes(range(256)) * 8192
IMAGE = an_image(CONTENT)
GUEST = a_guest(image=IMAGE)


class Source:
    """Where images come from: counts how often, and can be told to fail."""

    def __init__(self, content: bytes = CONTENT, *, breaks_after: int | None = None) -> None:
        self.content = content
        self.breaks_after = breaks_after
        self.fetches = 0

    async def fetch(self, image: ImageRef) -> AsyncIterator[bytes]:
        self.fetches += 1
        for number, start in enumerate(range(0, len(self.content), 1 << 20)):
            if number == self.breaks_after:
                raise Unavailable("the conductor went away")
            await asyncio.sleep(0)
            yield self.content[start : start + (1 << 20)]


def ignore(_percent: int) -> None:
    pass


async def bring(disks: Disks, fetch: Fetch | None = None, image: ImageRef = IMAGE) -> None:
    await disks.ensure_image(image, fetch or Source().fetch, ignore)


async def an_image_is_fetched_once_and_its_progress_told(disks: Disks) -> None:
    source = Source()
    told: list[int] = []
    await disks.ensure_image(IMAGE, source.fetch, told.append)
    await disks.ensure_image(IMAGE, source.fetch, told.append)

    assert source.fetches == 1
    assert told == sorted(told)
    assert told[-1] == 100


async def calls_at_once_share_one_download(disks: Disks) -> None:
    source = Source()

    await asyncio.gather(*(bring(disks, source.fetch) for _ in range(5)))

    assert source.fetches == 1


async def bytes_that_do_not_match_are_refused_and_forgotten(disks: Disks) -> None:
    for content in (CONTENT[:-1] + b"!", CONTENT[:-1], CONTENT + b"!"):
        with pytest.raises(DiskError) as refused:
            await bring(disks, Source(content).fetch)
        assert refused.value.code == FaultCode.IMAGE_CORRUPT

    source = Source()
    await bring(disks, source.fetch)
    assert source.fetches == 1


async def a_broken_download_says_so_and_is_begun_again(disks: Disks) -> None:
    with pytest.raises(Unavailable):
        await bring(disks, Source(breaks_after=1).fetch)

    await bring(disks)


async def no_guest_without_its_image(disks: Disks) -> None:
    with pytest.raises(DiskError) as refused:
        await disks.ensure_guest(GUEST, 1)

    assert refused.value.code == FaultCode.IMAGE_UNAVAILABLE
    assert await disks.console_log(GUEST.id, 1, 100) == b""


async def an_image_larger_than_the_flavor_is_refused(disks: Disks) -> None:
    image = replace(IMAGE, virtual_size_bytes=2 << 30)
    await bring(disks)

    with pytest.raises(DiskError) as refused:
        await disks.ensure_guest(replace(GUEST, image=image), 1)

    assert refused.value.code == FaultCode.IMAGE_TOO_LARGE


async def a_guests_disks_are_the_same_every_time(disks: Disks) -> None:
    await bring(disks)

    first = await disks.ensure_guest(GUEST, 1)
    again = await disks.ensure_guest(GUEST, 1)

    assert first == again
    root, config = first.disks
    assert (root.format, root.readonly, root.serial) == ("qcow2", False, "root")
    assert root.backing is not None
    assert (root.backing.format, root.backing.readonly, root.backing.backing) == ("raw", True, None)
    assert (config.format, config.readonly, config.serial) == ("raw", True, "config-2")
    assert first.console_log_path
    assert await disks.held() == {Held(GUEST.id, 1)}


async def disks_that_were_made_and_are_gone_are_not_made_anew(disks: Disks) -> None:
    """An empty disk in their place would be a server that has lost its data and looks well."""
    await bring(disks)

    with pytest.raises(DiskError) as refused:
        await disks.ensure_guest(GUEST, 1, made=True)
    held = await disks.held()
    made = await disks.ensure_guest(GUEST, 1)

    assert (refused.value.code, held) == (FaultCode.DISK_LOST, frozenset())
    assert await disks.ensure_guest(GUEST, 1, made=True) == made


async def a_guest_without_a_config_drive_has_none(disks: Disks) -> None:
    await bring(disks)

    made = await disks.ensure_guest(replace(GUEST, config_drive=False), 1)

    assert [disk.serial for disk in made.disks] == ["root"]


async def a_guest_with_a_kernel_boots_by_it(disks: Disks) -> None:
    kernel = an_image(b"kernel" * 100, id=an_id("kernel"), format=ImageFormat.KERNEL, virtual_size_bytes=0)
    ramdisk = an_image(
        b"ramdisk" * 100, id=an_id("ramdisk"), format=ImageFormat.RAMDISK, virtual_size_bytes=0
    )
    await bring(disks)
    await bring(disks, Source(b"kernel" * 100).fetch, kernel)
    await bring(disks, Source(b"ramdisk" * 100).fetch, ramdisk)

    made = await disks.ensure_guest(replace(GUEST, kernel=kernel, ramdisk=ramdisk), 1)

    assert kernel.sha256 in made.kernel_path
    assert ramdisk.sha256 in made.ramdisk_path


async def two_placements_share_no_path(disks: Disks) -> None:
    await bring(disks)
    made = [await disks.ensure_guest(GUEST, epoch) for epoch in (1, 2)]
    made.append(await disks.ensure_guest(replace(GUEST, id=an_id("another")), 1))

    paths = [disk.path for each in made for disk in each.disks]
    paths += [each.console_log_path for each in made]
    assert len(set(paths)) == len(paths)


async def removing_takes_placements_up_to_that_epoch_and_twice_is_success(disks: Disks) -> None:
    await bring(disks)
    for epoch in (1, 2, 3):
        await disks.ensure_guest(GUEST, epoch)
    another = await disks.ensure_guest(replace(GUEST, id=an_id("another")), 1)
    await disks.remove(GUEST.id, 2)
    await disks.remove(GUEST.id, 2)

    assert await disks.held() == {Held(GUEST.id, 3), Held(an_id("another"), 1)}
    assert await disks.ensure_guest(replace(GUEST, id=an_id("another")), 1) == another


async def pruning_keeps_what_is_in_use(disks: Disks) -> None:
    """The conformance rigs set the cache's age limit to nothing."""
    await bring(disks)
    source = Source()
    await disks.prune(frozenset({IMAGE.sha256}))
    await bring(disks, source.fetch)
    assert source.fetches == 0

    await disks.prune(frozenset())
    await bring(disks, source.fetch)
    assert source.fetches == 1


async def pruning_takes_nothing_from_beneath_a_guest(disks: Disks) -> None:
    """Whatever the list says: a base that is gone is a guest's disk gone."""
    await bring(disks)
    await disks.ensure_guest(GUEST, 1)
    source = Source()

    await disks.prune(frozenset())
    await bring(disks, source.fetch)
    assert source.fetches == 0

    await disks.remove(GUEST.id, 1)
    await disks.prune(frozenset())
    await bring(disks, source.fetch)
    assert source.fetches == 1


async def there_is_space_and_it_is_counted(disks: Disks) -> None:
    assert await disks.free_gib() > 0


async def a_rescued_guest_boots_from_another_disk_and_has_its_own_as_the_second(disks: Disks) -> None:
    await bring(disks)
    before = await disks.ensure_guest(GUEST, 1)
    rescued = replace(GUEST, rescue=Rescue(image=IMAGE, user_data=b"#!/bin/sh"))

    during = await disks.ensure_guest(rescued, 1, made=True)
    again = await disks.ensure_guest(rescued, 1, made=True)
    after = await disks.ensure_guest(GUEST, 1, made=True)

    assert [disk.serial for disk in during.disks[:2]] == ["rescue", "root"]
    assert during.disks[1] == before.disks[0]
    assert during == again
    assert after == before


async def copied(disks: Disks, action_seq: int = 1) -> tuple[DiskCopy, bytes]:
    """The root disk of a guest that is off, copied, and the copy's bytes."""
    await disks.begin_copy(GUEST.id, 1, action_seq)
    await disks.copy_root(GUEST.id, 1, action_seq)
    copy = await disks.seal_copy(GUEST.id, 1, action_seq)
    return copy, b"".join([piece async for piece in disks.read_copy(GUEST.id, 1, action_seq)])


async def a_copy_is_an_image_by_itself_of_what_the_disk_is(disks: Disks) -> None:
    await bring(disks)
    await disks.ensure_guest(GUEST, 1)

    copy, data = await copied(disks)

    assert (len(data), hashlib.sha256(data).hexdigest()) == (copy.size_bytes, copy.sha256)
    assert copy.virtual_size_bytes == GUEST.disk_gib << 30
    inspection = Inspection(ImageFormat.QCOW2, ImageLimits())
    inspection.feed(data)
    assert inspection.finish().virtual_size_bytes == copy.virtual_size_bytes


async def a_sealed_copy_is_found_again_and_a_dropped_one_is_not(disks: Disks) -> None:
    await bring(disks)
    await disks.ensure_guest(GUEST, 1)
    begun_only = await disks.begin_copy(GUEST.id, 1, 1)
    assert begun_only.format == "qcow2"
    assert await disks.find_copy(GUEST.id, 1, 1) is None

    copy, _ = await copied(disks)
    assert await disks.find_copy(GUEST.id, 1, 1) == copy
    assert await disks.find_copy(GUEST.id, 1, 2) is None

    await disks.drop_copies(GUEST.id, 1)
    await disks.drop_copies(GUEST.id, 1)
    assert await disks.find_copy(GUEST.id, 1, 1) is None


async def a_copy_drops_what_was_copied_before(disks: Disks) -> None:
    await bring(disks)
    await disks.ensure_guest(GUEST, 1)
    await copied(disks, 1)
    await copied(disks, 2)

    assert await disks.find_copy(GUEST.id, 1, 1) is None


async def without_a_root_disk_there_is_nothing_to_copy(disks: Disks) -> None:
    with pytest.raises(DiskError) as refused:
        await disks.begin_copy(GUEST.id, 1, 1)
    assert refused.value.code == FaultCode.DISK_LOST

    await disks.drop_copies(GUEST.id, 1)


async def copies_go_with_their_placement(disks: Disks) -> None:
    await bring(disks)
    await disks.ensure_guest(GUEST, 1)
    await copied(disks)

    await disks.remove(GUEST.id, 1)

    assert await disks.find_copy(GUEST.id, 1, 1) is None
    assert await disks.held() == frozenset()


async def a_standalone_guest_needs_its_image_no_more_once_it_is_made(disks: Disks) -> None:
    alone = replace(GUEST, standalone=True)
    await bring(disks)
    made = await disks.ensure_guest(alone, 1)
    source = Source()

    await disks.prune(frozenset())

    assert made.disks[0].backing is None
    assert await disks.ensure_guest(alone, 1, made=True) == made
    await bring(disks, source.fetch)
    assert source.fetches == 1


async def a_root_disk_stays_on_what_it_was_made_on_whatever_its_guests_image_becomes(disks: Disks) -> None:
    content = CONTENT[::-1]
    other = an_image(content, id=an_id("other"))
    await bring(disks)
    await bring(disks, Source(content).fetch, other)
    made = await disks.ensure_guest(GUEST, 1)

    again = await disks.ensure_guest(replace(GUEST, image=other), 1, made=True)
    alone = await disks.ensure_guest(replace(GUEST, image=other, standalone=True), 1, made=True)

    assert again.disks[0] == alone.disks[0] == made.disks[0]


async def a_guest_that_boots_from_a_volume_has_no_root_disk_here_and_a_user_all_the_same(
    disks: Disks,
) -> None:
    guest = replace(GUEST, image=None, disk_gib=0)
    made = await disks.ensure_guest(guest, 1)

    assert [disk.serial for disk in made.disks] == ["config-2"]
    assert await disks.ensure_guest(guest, 1, made=True) == made
    first = await disks.owner(guest.id, 1)
    assert await disks.owner(guest.id, 1) == first
    await disks.remove(guest.id, 1)
    assert await disks.held() == frozenset()
    with pytest.raises(DiskError) as refused:
        await disks.ensure_guest(guest, 1, made=True)
    assert refused.value.code == FaultCode.DISK_LOST


async def a_rescued_guest_that_boots_from_a_volume_has_the_other_disk_alone(disks: Disks) -> None:
    await bring(disks)
    guest = replace(GUEST, image=None, disk_gib=0)
    await disks.ensure_guest(guest, 1)

    rescued = await disks.ensure_guest(replace(guest, rescue=Rescue(image=IMAGE)), 1, made=True)

    assert [disk.serial for disk in rescued.disks] == ["rescue", "config-2"]


async def an_image_in_the_cache_can_be_read_by_others(disks: Disks) -> None:
    await bring(disks)
    file = disks.image_file(IMAGE)

    assert (file.format, file.readonly, file.backing) == ("raw", True, None)


LAWS: tuple[Law, ...] = (
    an_image_is_fetched_once_and_its_progress_told,
    calls_at_once_share_one_download,
    bytes_that_do_not_match_are_refused_and_forgotten,
    a_broken_download_says_so_and_is_begun_again,
    no_guest_without_its_image,
    an_image_larger_than_the_flavor_is_refused,
    a_guests_disks_are_the_same_every_time,
    disks_that_were_made_and_are_gone_are_not_made_anew,
    a_guest_without_a_config_drive_has_none,
    a_guest_with_a_kernel_boots_by_it,
    two_placements_share_no_path,
    removing_takes_placements_up_to_that_epoch_and_twice_is_success,
    pruning_keeps_what_is_in_use,
    pruning_takes_nothing_from_beneath_a_guest,
    there_is_space_and_it_is_counted,
    a_rescued_guest_boots_from_another_disk_and_has_its_own_as_the_second,
    a_copy_is_an_image_by_itself_of_what_the_disk_is,
    a_sealed_copy_is_found_again_and_a_dropped_one_is_not,
    a_copy_drops_what_was_copied_before,
    without_a_root_disk_there_is_nothing_to_copy,
    copies_go_with_their_placement,
    a_standalone_guest_needs_its_image_no_more_once_it_is_made,
    a_root_disk_stays_on_what_it_was_made_on_whatever_its_guests_image_becomes,
    a_guest_that_boots_from_a_volume_has_no_root_disk_here_and_a_user_all_the_same,
    a_rescued_guest_that_boots_from_a_volume_has_the_other_disk_alone,
    an_image_in_the_cache_can_be_read_by_others,
)
