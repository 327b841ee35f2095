"""Images of real guests' disks, and disks of images: what a person wrote is there, or is not."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from dataclasses import replace

import pytest

from fabric.images.core.inspect import ImageLimits, Inspection
from fabric.model.image import ImageFormat
from fabric.model.instance import Guest, ImageRef, OneShot
from fabric.model.session import HostState, Order
from fabric.model.states import Want
from hostd.commands.journal_memory import JournalMemory
from hostd.driver.base import DriverError
from tests.conformance.guests import an_id
from tests.integration.hostd.test_real_guest import (  # noqa: F401 - fixtures are found by their names here
    MISSING,
    Site,
    _guest_image,
    a_daemon,
    a_server,
    libvirt_machine,
    outside,
    site,
)

pytestmark = [
    pytest.mark.owns_machine,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}"),
]

PATIENCE_S = 120.0
MADE = an_id("made")
BOOT = "cat /proc/sys/kernel/random/boot_id"


def wanted(guest: Guest, generation: int, action: OneShot = OneShot.NONE, want: Want = Want.RUN) -> Order:
    return Order(
        epoch=1,
        placement_epoch=1,
        generation=generation,
        want=want,
        action_seq=generation - 1,
        action=action,
        stop_timeout_s=60,
        guest=guest,
        action_image_id=MADE,
    )


def looked_at(image: bytes) -> ImageRef:
    """The image, if the fabric's own check accepts it."""
    inspection = Inspection(ImageFormat.QCOW2, ImageLimits())
    inspection.feed(image)
    accepted = inspection.finish()
    return ImageRef(
        id=MADE,
        name="made",
        format=ImageFormat.QCOW2,
        sha256=hashlib.sha256(image).hexdigest(),
        size_bytes=accepted.size_bytes,
        virtual_size_bytes=accepted.virtual_size_bytes,
    )


def copies(site: Site) -> list[str]:  # noqa: F811 - the fixture's own name is what it is called
    return [path.name for path in (site.libvirt.folder / "hostd" / "instances").glob("*/copy.*")]


@pytest.mark.slow
async def test_a_snapshot_of_a_running_guest_boots_as_another_with_what_was_written(
    site: Site,  # noqa: F811 - the fixture
) -> None:
    first = a_server(site, "first", 21)
    async with a_daemon(site, JournalMemory(), soft_reboot_s=60) as daemon:
        await daemon.carry_out(wanted(first, 1))
        boot = await site.logs_in(first, f"echo precious > /root/kept; sync; {BOOT}")

        taken = await daemon.carry_out(wanted(first, 2, OneShot.SNAPSHOT))

        assert (taken.state, taken.fault_code, taken.action_seq) == (HostState.ACTIVE, "", 1)
        assert await site.logs_in(first, BOOT) == boot
        assert copies(site) == []

        image = looked_at(daemon.images[MADE])
        second = replace(a_server(site, "second", 22), image=image, standalone=True)
        await daemon.carry_out(wanted(second, 1))
        assert await site.logs_in(second, "hostname; cat /root/kept") == "second\nprecious"

        rebuilt = await daemon.carry_out(wanted(first, 3, OneShot.REBUILD))
        assert (rebuilt.state, rebuilt.fault_code) == (HostState.ACTIVE, "")
        # At the same address: it is there that the login looks.
        assert await site.logs_in(first, "hostname; cat /root/kept || echo gone") == "first\ngone"
    for guest in (first, second):
        await site.remove(guest)


async def _agent_answers(site: Site, guest: Guest) -> str:  # noqa: F811 - the fixture's own name is what it is called
    """Whether its filesystems are frozen, as the agent says once it answers: it starts last."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(DriverError):
                return str(
                    await site.host.driver.agent(guest.id, "guest-fsfreeze-status", {}, timeout_s=10.0)
                )
            await asyncio.sleep(0.5)


@pytest.mark.slow
async def test_a_snapshot_has_what_a_guest_with_an_agent_had_yet_to_write_to_its_disk(
    site: Site,  # noqa: F811 - the fixture
) -> None:
    """Its filesystems are frozen for the instant, which writes out what they hold back: half a minute's worth, left to themselves."""
    guest = a_server(site, "unsynced", 24)
    async with a_daemon(site, JournalMemory(), soft_reboot_s=60) as daemon:
        await daemon.carry_out(wanted(guest, 1))
        await _agent_answers(site, guest)
        await site.logs_in(guest, "echo precious-and-not-synced > /root/kept; echo done")

        taken = await daemon.carry_out(wanted(guest, 2, OneShot.SNAPSHOT))

        assert (taken.state, taken.fault_code) == (HostState.ACTIVE, "")
        assert b"precious-and-not-synced" in daemon.images[MADE]
        assert await _agent_answers(site, guest) == "thawed"
        assert await site.logs_in(guest, "cat /root/kept") == "precious-and-not-synced"
    await site.remove(guest)


@pytest.mark.slow
@pytest.mark.parametrize("want", [Want.STOP, Want.SUSPEND, Want.PAUSE])
async def test_a_snapshot_of_a_guest_that_is_held_or_off_has_what_it_had_synced(
    site: Site,  # noqa: F811 - the fixture
    want: Want,
) -> None:
    guest = a_server(site, "held", 23)
    async with a_daemon(site, JournalMemory(), soft_reboot_s=60) as daemon:
        await daemon.carry_out(wanted(guest, 1))
        await site.logs_in(guest, "echo precious-in-the-image > /root/kept; sync; echo done")

        taken = await daemon.carry_out(wanted(guest, 2, OneShot.SNAPSHOT, want))

        assert (taken.fault_code, taken.action_seq) == ("", 1)
        looked_at(daemon.images[MADE])
        assert b"precious-in-the-image" in daemon.images[MADE]
        assert copies(site) == []
    await site.remove(guest)
