"""The kinds of machine that hostd can run on, by the name that a setting gives them.

To add a hypervisor: one package, one line here; the conformance suites say what it must do. A kind brings its disks and wires
with it, because they belong to the machine as much as its hypervisor does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from fabric.clock import Clock
from fabric.observability.failpoints import Failpoints
from hostd.core.tap_names import BRIDGE
from hostd.driver.base import Driver
from hostd.images.base import Disks
from hostd.network.base import Wires
from hostd.volumes.base import Volumes


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSettings:
    """What any kind of machine may need to know.

    `state` is the folder of everything that outlives the daemon; with libvirt every folder above it must be searchable by others
    (`chmod o+x`), because guests run as users of their own. `netns` empty is the daemon's own network namespace. `accelerator` is
    `auto`, `kvm` or `qemu`. `guest_cidr` is the host's guest subnet; left empty, ports say it. `physical` leads from a physical
    network to the host's interface in it. `shared_volumes` are directories for volumes that other hosts have too, by name.
    """

    host: str
    state: Path
    libvirt_uri: str = "qemu:///system"
    accelerator: str = "auto"
    netns: str = ""
    bridge: str = BRIDGE
    guest_cidr: str = ""
    blocked_cidrs: tuple[str, ...] = field(default=())
    image_cache_max_age_s: float = 24 * 3600.0
    physical: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    shared_volumes: Mapping[str, Path] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A host's hardware as hostd's shell sees it."""

    driver: Driver
    disks: Disks
    volumes: Volumes
    wires: Wires
    shared: Mapping[str, Volumes] = field(default_factory=dict)


def _libvirt(settings: MachineSettings, clock: Clock, failpoints: Failpoints) -> Machine:
    # libvirt is imported where it is chosen: a simulated host's machine may not have it.
    from hostd.driver.libvirt.driver import LibvirtDriver, LibvirtSettings
    from hostd.images.disks import DiskSettings, LocalDisks
    from hostd.network.driver import LinuxWires, NetworkSettings
    from hostd.network.netns import Namespace
    from hostd.network.routers import Routers
    from hostd.volumes.files import FileVolumes
    from hostd.volumes.shared import SharedVolumes

    return Machine(
        driver=LibvirtDriver(
            LibvirtSettings(
                uri=settings.libvirt_uri,
                host=settings.host,
                storage=settings.state,
                accelerator=settings.accelerator,
            )
        ),
        disks=LocalDisks(
            DiskSettings(
                state=settings.state,
                cache_max_age_s=settings.image_cache_max_age_s,
                volumes=settings.state / "volumes",
            ),
            clock,
        ),
        volumes=FileVolumes(settings.state / "volumes"),
        shared={name: SharedVolumes(path) for name, path in settings.shared_volumes.items()},
        wires=LinuxWires(
            NetworkSettings(
                state=settings.state,
                netns=settings.netns,
                bridge=settings.bridge,
                guest_cidr=settings.guest_cidr,
                blocked=settings.blocked_cidrs,
            ),
            clock,
            routing=Routers(Namespace(settings.netns), settings.physical, failpoints=failpoints),
            failpoints=failpoints,
        ),
    )


def _fake(settings: MachineSettings, _clock: Clock, _failpoints: Failpoints) -> Machine:
    from hostd.driver.fake import FakeDriver, FakeMachine
    from hostd.images.fake import FakeDisks
    from hostd.network.fake import FakeWires
    from hostd.volumes.fake import FakeVolumes

    machine = FakeMachine(settings.host)
    return Machine(
        driver=FakeDriver(machine),
        disks=FakeDisks(machine),
        volumes=FakeVolumes(machine),
        wires=FakeWires(machine),
    )


MACHINES: Final[Mapping[str, Callable[[MachineSettings, Clock, Failpoints], Machine]]] = MappingProxyType(
    {
        "libvirt": _libvirt,
        "fake": _fake,
    }
)
