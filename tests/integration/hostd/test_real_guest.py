"""Real guests: the image of tools/guest_image on libvirt, disks and wires together, and a login by SSH from outside the host.

Both ways in which a guest learns who it is are gone through: the config drive, and the metadata service by DHCP's route.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fabric.clock import SystemClock
from fabric.model.image import ImageFormat, ImageOffer
from fabric.model.instance import Guest, ImageRef, OneShot
from fabric.model.session import HostState, Order, Status
from fabric.model.states import PowerState, Want
from fabric.observability.failpoints import NO_FAILPOINTS
from hostd.commands.journal_memory import JournalMemory, MemoryJournal
from hostd.commands.queue import Queues
from hostd.commands.site import Mouth
from hostd.commands.site import Site as Work
from hostd.core.fencing import Fence
from hostd.core.reconcile import Patience
from hostd.driver.base import DomainSpec, DriverError
from hostd.driver.libvirt.xml import domain_name
from hostd.driver.registry import MACHINES, Machine, MachineSettings
from hostd.hypervisor import HypervisorWatch
from hostd.network.base import Wiring
from hostd.network.driver import LinuxWires
from hostd.settings import Timers
from tests.conformance.guests import a_guest, a_port, an_id
from tests.conformance.namespaces import a_namespace, ip
from tests.conformance.private_libvirt import Machine as LibvirtMachine
from tests.conformance.private_libvirt import a_machine, missing_programs

ROOT = Path(__file__).resolve().parents[3]
IMAGES = ROOT / ".cache" / "guest-image"
PATIENCE_S = 240
MISSING = missing_programs("nft", "dnsmasq", "genisoimage", "ssh", "ssh-keygen")

pytestmark = [
    pytest.mark.owns_machine,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}"),
]


@pytest.fixture(scope="module", autouse=True)
def _guest_image() -> None:
    """Build the image if it is not there: a real guest is not left out because nobody has built one yet."""
    subprocess.run((sys.executable, "-m", "tools.guest_image"), cwd=ROOT, check=True, capture_output=True)


@dataclass
class Site:
    """A host, the world beyond it, and a key to log in with."""

    libvirt: LibvirtMachine
    outside: str
    key: Path
    host: Machine

    def ssh(self, guest: Guest, command: str) -> str:
        """Run a command in the guest, from outside the host; empty where nobody answers yet."""
        options = (
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "ConnectTimeout=5",
            "BatchMode=yes",
        )
        flags = [word for option in options for word in ("-o", option)]
        where = f"root@{guest.ports[0].address}"
        words = (
            "ip",
            "netns",
            "exec",
            self.outside,
            "ssh",
            "-q",
            "-i",
            str(self.key),
            *flags,
            where,
            command,
        )
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()

    def public_key(self) -> str:
        return self.key.with_suffix(".pub").read_text().strip()

    async def logs_in(self, guest: Guest, command: str) -> str:
        """What a command says once the guest has done all that it does at a boot: it lets people in before it runs its user data."""
        ready = f"until test -e /run/cellfabric/ready; do sleep 1; done; {command}"
        async with asyncio.timeout(PATIENCE_S):
            while not (said := await asyncio.to_thread(self.ssh, guest, ready)):
                await asyncio.sleep(0.3)
        return said

    async def logged(self, guest: Guest, words: bytes) -> None:
        """Wait for words in the console's log: virtlogd writes it from a pipe, so it comes after what a viewer is shown."""
        async with asyncio.timeout(PATIENCE_S):
            while words not in await self.host.disks.console_log(guest.id, 1, 100_000):
                await asyncio.sleep(0.1)

    async def until(self, guest: Guest, power: PowerState) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while (domain := await self.host.driver.observe(guest.id)) is None or domain.power is not power:
                await asyncio.sleep(0.1)

    async def spawn(self, guest: Guest, placement_epoch: int = 1) -> None:
        """What hostd's shell does for an order to run, without the shell."""
        for image in guest.images():
            await self.host.disks.ensure_image(image, fetch, lambda _percent: None)
        interfaces = await self.host.wires.plug(Wiring(guest=guest, placement_epoch=placement_epoch))
        disks = await self.host.disks.ensure_guest(guest, placement_epoch)
        spec = DomainSpec(
            guest=guest,
            placement_epoch=placement_epoch,
            generation=1,
            disks=disks.disks,
            interfaces=interfaces,
            kernel_path=disks.kernel_path,
            ramdisk_path=disks.ramdisk_path,
            console_log_path=disks.console_log_path,
        )
        await self.host.driver.define(spec)
        await self.host.driver.start(guest.id)

    async def remove(self, guest: Guest) -> None:
        await self.host.driver.forget(guest.id)
        await self.host.wires.unplug(guest.id, 1)
        await self.host.disks.remove(guest.id, 1)


async def fetch(image: ImageRef) -> AsyncIterator[bytes]:
    with (IMAGES / image.name).open("rb") as file:
        while chunk := file.read(1 << 20):
            yield chunk


def an_image_file(name: str, image_format: ImageFormat, virtual_size_bytes: int = 0) -> ImageRef:
    path = IMAGES / name
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ImageRef(
        id=an_id(name),
        name=name,
        format=image_format,
        sha256=digest,
        size_bytes=path.stat().st_size,
        virtual_size_bytes=virtual_size_bytes,
    )


@pytest.fixture(scope="module")
def libvirt_machine() -> Iterator[LibvirtMachine]:
    with a_machine("guest") as made:
        yield made


@pytest.fixture(scope="module")
def outside(libvirt_machine: LibvirtMachine) -> Iterator[str]:
    with a_namespace("out") as made:
        host = libvirt_machine.netns
        ip("link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", made, netns=host)
        ip("address", "add", "198.51.100.2/24", "dev", "up0", netns=host)
        ip("link", "set", "up0", "up", netns=host)
        ip("address", "add", "198.51.100.1/24", "dev", "eth0", netns=made)
        ip("link", "set", "eth0", "up", netns=made)
        ip("route", "add", "10.77.0.0/24", "via", "198.51.100.2", netns=made)
        yield made


@pytest.fixture
async def site(libvirt_machine: LibvirtMachine, outside: str, tmp_path: Path) -> AsyncIterator[Site]:
    key = tmp_path / "key"
    subprocess.run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)), check=True)
    state = libvirt_machine.folder / "hostd"
    state.mkdir(mode=0o755)
    settings = MachineSettings(
        host=libvirt_machine.hostname,
        state=state,
        libvirt_uri=libvirt_machine.uri,
        netns=libvirt_machine.netns,
        guest_cidr="10.77.0.0/24",
    )
    host = MACHINES["libvirt"](settings, SystemClock(), NO_FAILPOINTS)
    await host.driver.open()
    await host.wires.prepare()
    made = Site(libvirt_machine, outside, key, host)
    yield made
    for domain in await host.driver.domains():
        await host.driver.forget(domain.instance_id)
    assert isinstance(host.wires, LinuxWires)
    await host.wires.dismantle()
    await host.wires.close()
    await host.driver.close()
    shutil.rmtree(state)


def a_server(site: Site, word: str, number: int, **changes: Any) -> Guest:
    manifest = json.loads((IMAGES / "manifest.json").read_text())
    guest = a_guest(
        word,
        hostname=word,
        ram_mib=128,
        image=an_image_file("cellfabric-guest.qcow2", ImageFormat.QCOW2, manifest["disk_bytes"]),
        ports=(a_port(number, mtu=1400),),
        public_keys={"me": site.public_key()},
        user_data=b"#!/bin/sh\necho from-user-data > /root/told\n",
    )
    return replace(guest, **changes)


async def test_a_person_logs_in_with_their_own_key(site: Site) -> None:
    guest = a_server(site, "web", 1)

    await site.spawn(guest)
    assert await site.logs_in(guest, "hostname; cat /root/told; cat /sys/class/net/eth0/mtu") == (
        "web\nfrom-user-data\n1400"
    )

    disk = await site.logs_in(guest, "df -m / | tail -1 | awk '{print $2}'")
    assert int(disk) > 900
    await site.logged(guest, b"GUEST-READY")
    assert (await site.host.driver.domains())[0].power is PowerState.RUNNING
    await site.remove(guest)
    assert await site.host.driver.domains() == ()
    assert await site.host.disks.held() == frozenset()
    assert await site.host.wires.plugged() == {}


async def test_without_a_config_drive_the_metadata_service_tells_as_much(site: Site) -> None:
    guest = a_server(site, "bare", 2, config_drive=False)

    await site.spawn(guest)

    assert await site.logs_in(guest, "hostname; cat /root/told") == "bare\nfrom-user-data"
    await site.remove(guest)


async def test_a_guest_boots_by_its_own_kernel_and_ramdisk(site: Site) -> None:
    manifest = json.loads((IMAGES / "manifest.json").read_text())
    name = "cellfabric-guest-root.ext4"
    guest = a_server(
        site,
        "direct",
        3,
        image=an_image_file(name, ImageFormat.RAW, (IMAGES / name).stat().st_size),
        kernel=an_image_file("vmlinuz", ImageFormat.KERNEL),
        ramdisk=an_image_file("initrd.img", ImageFormat.RAMDISK),
        kernel_args=manifest["kernel_command_line"],
    )

    await site.spawn(guest)

    assert await site.logs_in(guest, "hostname") == "direct"
    assert manifest["kernel_command_line"] in await site.logs_in(guest, "cat /proc/cmdline")
    await site.remove(guest)


@pytest.mark.slow
async def test_stop_start_and_reboot_keep_what_the_guest_wrote(site: Site) -> None:
    guest = a_server(site, "life", 4)
    await site.spawn(guest)
    boot = "cat /proc/sys/kernel/random/boot_id"
    first = await site.logs_in(guest, f"echo kept > /root/kept; sync; {boot}")

    await site.host.driver.press_reset_button(guest.id)
    async with asyncio.timeout(PATIENCE_S):
        while (second := await site.logs_in(guest, boot)) == first:
            await asyncio.sleep(0.5)

    await site.host.driver.press_power_button(guest.id)
    await site.until(guest, PowerState.SHUTDOWN)
    await site.host.driver.start(guest.id)
    third = await site.logs_in(guest, f"cat /root/kept; {boot}")
    assert third.startswith("kept\n")
    assert second not in third
    await site.remove(guest)


class Daemon:
    """What of hostd carries orders out: queues, and a watch that passes libvirt's events on to them. Orders come from the test."""

    def __init__(self, site: Site, memory: JournalMemory, *, soft_reboot_s: float) -> None:
        clock = SystemClock()
        fence = Fence(epoch=1, permit_s=3600, renewed_s=clock.boot_s())
        self.said: list[Status] = []
        self.images: dict[str, bytes] = {}
        self.queues = Queues(
            Work(
                driver=site.host.driver,
                disks=site.host.disks,
                wires=site.host.wires,
                volumes=site.host.volumes,
                journal=MemoryJournal(memory),
                clock=clock,
                fetch=self._fetch,
                hand_over=self._hand_over,
                fence=lambda: fence,
                mouth=Mouth(
                    say=self.said.append,
                    unsay=lambda _: None,
                    released=lambda _: None,
                    show=lambda _: None,
                ),
                slots=asyncio.Semaphore(1),
                makings=asyncio.Semaphore(1),
                copies=asyncio.Semaphore(1),
                reaches={},
                patience=Patience(soft_reboot_s=soft_reboot_s),
                failpoints=NO_FAILPOINTS,
            )
        )
        self.watch = HypervisorWatch(
            site.host.driver,
            Timers(poll_s=1.0),
            noticed=self.queues.noticed,
            compared=self.queues.compare,
            changed=self.queues.wake,
        )

    async def _fetch(self, image: ImageRef) -> AsyncIterator[bytes]:
        made = self.images.get(image.id)
        if made is None:
            async for chunk in fetch(image):
                yield chunk
        else:
            yield made

    async def _hand_over(
        self, offer: ImageOffer, read: Callable[[], AsyncIterator[bytes]], _told: Callable[[int], None]
    ) -> None:
        self.images[offer.image_id] = b"".join([chunk async for chunk in read()])

    async def carry_out(self, order: Order) -> Status:
        """Give the order, and wait for the answer to it."""
        self.queues.take((), [order])
        async with asyncio.timeout(PATIENCE_S):
            while not (answers := [said for said in self.said if said.generation == order.generation]):
                await asyncio.sleep(0.1)
        return answers[-1]


@contextlib.asynccontextmanager
async def a_daemon(site: Site, memory: JournalMemory, *, soft_reboot_s: float) -> AsyncIterator[Daemon]:
    made = Daemon(site, memory, soft_reboot_s=soft_reboot_s)
    async with asyncio.TaskGroup() as tasks:
        made.queues.begin(memory.rows, tasks)
        watching = tasks.create_task(made.watch.run())
        yield made
        watching.cancel()
        for worker in made.queues._running.values():
            worker.cancel()


@pytest.mark.slow
async def test_a_soft_reboot_is_the_guests_own_and_a_deaf_guests_power_is_cut(site: Site) -> None:
    guest = a_server(site, "again", 8)
    boot = "cat /proc/sys/kernel/random/boot_id"
    memory = JournalMemory()

    def wanted(generation: int, action: OneShot = OneShot.NONE) -> Order:
        return Order(
            epoch=1,
            placement_epoch=1,
            generation=generation,
            want=Want.RUN,
            action_seq=generation - 1,
            action=action,
            stop_timeout_s=60,
            guest=guest,
        )

    async with a_daemon(site, memory, soft_reboot_s=PATIENCE_S) as daemon:
        assert (await daemon.carry_out(wanted(1))).state is HostState.ACTIVE
        first = await site.logs_in(guest, boot)
        pid = site.libvirt.pid_of(domain_name(guest.id))
        assert (await daemon.carry_out(wanted(2, OneShot.REBOOT_SOFT))).state is HostState.ACTIVE
        second = await site.logs_in(guest, boot)
        assert site.libvirt.pid_of(domain_name(guest.id)) == pid

    async with a_daemon(site, memory, soft_reboot_s=3.0) as daemon:
        await site.logs_in(guest, "killall acpid; echo deaf")
        assert (await daemon.carry_out(wanted(3, OneShot.REBOOT_SOFT))).state is HostState.ACTIVE
        third = await site.logs_in(guest, boot)
        assert site.libvirt.pid_of(domain_name(guest.id)) != pid

    assert len({first, second, third}) == 3
    await site.remove(guest)


async def test_guests_neither_notice_a_new_hostd_nor_a_dead_libvirtd(site: Site) -> None:
    guest = a_server(site, "steady", 5)
    await site.spawn(guest)
    boot = "cat /proc/sys/kernel/random/boot_id"
    before = await site.logs_in(guest, boot)
    pid = site.libvirt.pid_of(domain_name(guest.id))

    site.libvirt.kill("libvirtd", signal.SIGKILL)
    await site.host.wires.close()

    assert await site.logs_in(guest, boot) == before
    await site.host.wires.prepare()
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(DriverError):
                await site.host.driver.open()
                break
            await asyncio.sleep(0.1)
    domain = await site.host.driver.observe(guest.id)
    assert domain is not None
    assert (domain.power, domain.placement_epoch) == (PowerState.RUNNING, 1)
    assert site.libvirt.pid_of(domain_name(guest.id)) == pid
    await site.host.driver.press_power_button(guest.id)
    await site.until(guest, PowerState.SHUTDOWN)
    await site.remove(guest)


async def test_two_guests_of_one_image_share_it_and_nothing_else(site: Site) -> None:
    one, two = a_server(site, "one", 6), a_server(site, "two", 7)
    await asyncio.gather(site.spawn(one), site.spawn(two))

    names = await asyncio.gather(*(site.logs_in(guest, "hostname; rm /root/told") for guest in (one, two)))

    assert names == ["one", "two"]
    users = {
        Path(f"/proc/{site.libvirt.pid_of(domain_name(guest.id))}/status").stat().st_uid
        for guest in (one, two)
    }
    assert len(users) == 2
    assert f"{two.ports[0].address} is alive" in await site.logs_in(
        one,
        f"ping -c 1 -W 5 {two.ports[0].address} >/dev/null && echo {two.ports[0].address} is alive || echo silent",
    )
    for guest in (one, two):
        await site.remove(guest)
