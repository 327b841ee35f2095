"""Volumes and interfaces of real guests, by hostd's own steps: what is written through one guest is read through another."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from fabric.model.instance import Guest, OneShot, Rescue, VolumeImage
from fabric.model.session import HostState, Order, Status
from fabric.model.states import Want
from fabric.model.volume import GuestVolume
from hostd.commands.journal_memory import JournalMemory
from hostd.core.faults import FaultCode
from tests.conformance.guests import a_port, an_id
from tests.integration.hostd.test_real_guest import (
    MISSING,
    PATIENCE_S,
    Daemon,
    Site,
    _guest_image,
    a_daemon,
    a_server,
    libvirt_machine,
    outside,
    site,
)

__all__ = ["_guest_image", "libvirt_machine", "outside", "site"]

pytestmark = [
    pytest.mark.owns_machine,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}"),
]

VOLUME = GuestVolume(id=an_id("volume"), size_gib=1)
BY_SERIAL = f"grep -l {VOLUME.serial} /sys/block/*/serial | cut -d/ -f4"
"""The kernel's name of the volume's disk, empty where the guest has none."""


class Server:
    """A guest, and the orders for it."""

    def __init__(self, daemon: Daemon, guest: Guest) -> None:
        self.daemon = daemon
        self.guest = guest
        self.generation = 0

    async def carry_out(self, guest: Guest, want: Want = Want.RUN) -> Status:
        self.guest, self.generation = guest, self.generation + 1
        order = Order(
            epoch=1,
            placement_epoch=1,
            generation=self.generation,
            want=want,
            action_seq=0,
            action=OneShot.NONE,
            stop_timeout_s=60,
            guest=guest,
        )
        self.daemon.said[:] = [said for said in self.daemon.said if said.instance_id != guest.id]
        self.daemon.queues.take((), [order])
        async with asyncio.timeout(PATIENCE_S):
            while not (
                answers := [
                    said
                    for said in self.daemon.said
                    if (said.instance_id, said.generation) == (guest.id, self.generation)
                ]
            ):
                await asyncio.sleep(0.1)
        return answers[-1]


@pytest.mark.slow
async def test_what_is_written_to_a_volume_goes_with_it_to_another_server(site: Site) -> None:
    async with a_daemon(site, JournalMemory(), soft_reboot_s=PATIENCE_S) as daemon:
        one, two = (
            Server(daemon, a_server(site, word, number)) for number, word in ((11, "one"), (12, "two"))
        )
        for server in (one, two):
            assert (await server.carry_out(server.guest)).state is HostState.ACTIVE
        assert await site.logs_in(one.guest, f"echo found:$({BY_SERIAL})") == "found:"

        told = await one.carry_out(replace(one.guest, volumes=(VOLUME,)))
        assert (told.state, told.fault_code) == (HostState.ACTIVE, "")
        write = "echo kept by the volume | dd of=/dev/$disk conv=fsync 2>/dev/null; cat /sys/block/$disk/size"
        assert await site.logs_in(one.guest, f"disk=$({BY_SERIAL}); {write}") == str((1 << 30) // 512)
        told = await one.carry_out(replace(one.guest, volumes=()))
        assert (told.state, told.fault_code) == (HostState.ACTIVE, "")
        assert await site.logs_in(one.guest, f"echo found:$({BY_SERIAL})") == "found:"

        told = await two.carry_out(replace(two.guest, volumes=(VOLUME,)))
        assert (told.state, told.fault_code) == (HostState.ACTIVE, "")
        read = await site.logs_in(two.guest, f"head -c 19 /dev/$({BY_SERIAL})")
        assert read == "kept by the volume"
        await two.carry_out(two.guest, Want.ABSENT)
        assert await site.host.volumes.held() == {VOLUME.id}
        await one.carry_out(one.guest, Want.ABSENT)
        await site.host.volumes.remove(VOLUME.id)


@pytest.mark.slow
async def test_a_disk_that_another_guest_has_open_is_refused_by_the_hypervisor(site: Site) -> None:
    """The last of the guards, should all others fail: QEMU locks what it writes to."""
    async with a_daemon(site, JournalMemory(), soft_reboot_s=PATIENCE_S) as daemon:
        one, two = (
            Server(daemon, a_server(site, word, number)) for number, word in ((13, "one"), (14, "two"))
        )
        for server in (one, two):
            await server.carry_out(server.guest)
        await one.carry_out(replace(one.guest, volumes=(VOLUME,)))

        told = await two.carry_out(replace(two.guest, volumes=(VOLUME,)))

        assert (told.state, told.fault_code) == (HostState.ACTIVE, FaultCode.VOLUME_ATTACH_FAILED)
        for server in (one, two):
            await server.carry_out(server.guest, Want.ABSENT)
        await site.host.volumes.remove(VOLUME.id)


@pytest.mark.slow
async def test_another_interface_comes_to_a_running_guest_and_goes(site: Site) -> None:
    count = "ls /sys/class/net | grep -c eth"
    async with a_daemon(site, JournalMemory(), soft_reboot_s=PATIENCE_S) as daemon:
        server = Server(daemon, a_server(site, "wide", 15))
        await server.carry_out(server.guest)
        assert await site.logs_in(server.guest, count) == "1"

        added = a_port(16, mtu=1400)
        told = await server.carry_out(replace(server.guest, ports=(*server.guest.ports, added)))
        assert (told.state, told.fault_code) == (HostState.ACTIVE, "")
        mac = "cat /sys/class/net/eth1/address"
        assert await site.logs_in(server.guest, f"{count}; {mac}") == f"2\n{added.mac}"
        assert await site.host.wires.wired(server.guest.id) == {port.mac for port in server.guest.ports}

        told = await server.carry_out(replace(server.guest, ports=server.guest.ports[:1]))
        assert (told.state, told.fault_code) == (HostState.ACTIVE, "")
        assert await site.logs_in(server.guest, count) == "1"
        await server.carry_out(server.guest, Want.ABSENT)


@pytest.mark.slow
async def test_a_server_boots_from_a_volume_and_the_next_one_finds_what_it_wrote(site: Site) -> None:
    root = GuestVolume(id=an_id("root volume"), size_gib=2, is_root=True)
    async with a_daemon(site, JournalMemory(), soft_reboot_s=PATIENCE_S) as daemon:
        one, two = (
            Server(daemon, booting_from(root, a_server(site, word, number)))
            for number, word in ((17, "first"), (18, "second"))
        )
        told = await one.carry_out(one.guest)
        assert (told.state, told.fault_code) == (HostState.ACTIVE, "")
        write = "echo kept by the root > /root/note; sync; cat /sys/block/vda/size /sys/block/vda/serial"
        assert await site.logs_in(one.guest, write) == f"{(2 << 30) // 512}\n{root.serial}"
        await one.carry_out(one.guest, Want.STOP)
        rescued = replace(one.guest, rescue=Rescue(image=one.guest.volume_images[0].image))
        assert (await one.carry_out(rescued)).state is HostState.ACTIVE
        serials = "for disk in vda vdb; do echo $(cat /sys/block/$disk/serial); done"
        assert await site.logs_in(one.guest, serials) == f"rescue\n{root.serial}"
        await one.carry_out(replace(one.guest, rescue=None), Want.ABSENT)
        assert await site.host.volumes.held() == {root.id}

        told = await two.carry_out(two.guest)
        assert (told.state, told.fault_code) == (HostState.ACTIVE, "")
        assert await site.logs_in(two.guest, "hostname; cat /root/note") == "second\nkept by the root"
        await two.carry_out(two.guest, Want.ABSENT)
        await site.host.volumes.remove(root.id)


def booting_from(root: GuestVolume, guest: Guest) -> Guest:
    """The guest with a volume of its image as its root disk."""
    assert guest.image is not None
    source = VolumeImage(volume_id=root.id, image=guest.image)
    return replace(guest, image=None, disk_gib=0, volumes=(root,), volume_images=(source,))
