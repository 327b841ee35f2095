"""A domain's definition as libvirt XML, and our mark read back from it. Pure: no libvirt, no files.

Built by a library, never from strings, so that no name, argument or path can change the document's shape. Nothing is left for
libvirt to find out by looking into a file: every format and the whole backing chain are said (CVE-2026-24708), and no disk is
given another owner than the one `hostd/images` made it with.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from hostd.driver.base import DiskFile, DomainSpec, Interface

NAMESPACE: Final = "urn:cellfabric:domain:1"
_MARK: Final = f"{{{NAMESPACE}}}instance"

ET.register_namespace("cellfabric", NAMESPACE)

_MACHINES: Final = {"x86_64": "q35", "aarch64": "virt"}
_X86: Final = "x86_64"

_SECURE_FIRMWARE: Final = ("secure-boot", "enrolled-keys")
"""What firmware must have to boot only what is signed, by keys that it comes with."""

_PCIE_PORTS: Final = 20
"""PCI Express ports of a guest, each for one device. Without one free nothing can be plugged in later: this is room for eight volumes
and four more interfaces beside what every guest has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What the definition depends on besides the guest.

    `accelerator` is `kvm` or `qemu`; `host` the name that marks carry. `owner` is the user and group id that the guest's QEMU
    runs as: one of its own for each guest, so that an escaped one can open no other's disk. None leaves it to libvirt's
    configuration, for hypervisors without that driver (libvirt's own test driver).
    """

    accelerator: str
    architecture: str
    host: str
    owner: tuple[int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Our metadata in a domain: whose copy it is (R3)."""

    instance_id: str
    placement_epoch: int
    generation: int
    host: str


def domain_name(instance_id: str) -> str:
    """The domain's name; from the id, because people's names may clash and may hold anything."""
    return f"cellfabric-{instance_id}"


def domain_xml(spec: DomainSpec, platform: Platform) -> str:
    """The whole definition."""
    guest = spec.guest
    kvm = platform.accelerator == "kvm"
    domain = ET.Element("domain", {"type": platform.accelerator})
    _text(domain, "name", domain_name(guest.id))
    _text(domain, "uuid", guest.id)
    _text(domain, "title", _printable(guest.name)[:255])
    ET.SubElement(
        ET.SubElement(domain, "metadata"),
        _MARK,
        {
            "id": guest.id,
            "placement-epoch": str(spec.placement_epoch),
            "generation": str(spec.generation),
            "host": platform.host,
        },
    )
    _text(domain, "memory", str(guest.ram_mib), unit="MiB")
    _text(domain, "currentMemory", str(guest.ram_mib), unit="MiB")
    _text(domain, "vcpu", str(guest.vcpus), placement="static")
    _system_information(domain, spec, platform)
    _boot(domain, spec, platform)
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    if platform.architecture == _X86:
        ET.SubElement(features, "apic")
    if guest.secure_boot:
        # Without it a guest's kernel could write the variables that hold the keys.
        ET.SubElement(features, "smm", {"state": "on"})
    # The emulated CPU with everything QEMU can do: current distributions refuse to run on less than x86-64-v2.
    ET.SubElement(domain, "cpu", {"mode": "host-model" if kvm else "maximum"})
    _clock(domain, platform, kvm=kvm)
    _text(domain, "on_poweroff", "destroy")
    _text(domain, "on_reboot", "restart")
    _text(domain, "on_crash", "destroy")
    _devices(domain, spec, platform)
    if platform.owner is not None:
        label = ET.SubElement(domain, "seclabel", {"type": "static", "model": "dac", "relabel": "yes"})
        _text(label, "label", f"+{platform.owner[0]}:+{platform.owner[1]}")
    return ET.tostring(domain, encoding="unicode")


def parse_mark(document: str) -> Mark | None:
    """Our mark in a domain's XML, or in its metadata element alone. None where there is none that is whole.

    Alone, libvirt hands the element out without its namespace: it was asked for by that.
    """
    try:
        root = ET.fromstring(document)  # noqa: S314 - from libvirt, which parsed it before us
        element = root if root.tag in {_MARK, "instance"} else root.find(f"metadata/{_MARK}")
        if element is None:
            return None
        return Mark(
            instance_id=element.attrib["id"],
            placement_epoch=int(element.attrib["placement-epoch"]),
            generation=int(element.attrib["generation"]),
            host=element.attrib["host"],
        )
    except (ET.ParseError, KeyError, ValueError):
        return None


def parse_architecture(capabilities: str) -> str:
    """The host's architecture, from libvirt's capabilities document. Raises ValueError where it does not say."""
    architecture = ET.fromstring(capabilities).findtext("host/cpu/arch")  # noqa: S314 - from libvirt
    if not architecture:
        raise ValueError("libvirt's capabilities name no architecture")
    return architecture


def offers_kvm(capabilities: str, architecture: str) -> bool:
    """Whether libvirt found a KVM at all; that it works is another question (probe.py)."""
    root = ET.fromstring(capabilities)  # noqa: S314 - from libvirt
    return any(
        kind.get("type") == "kvm"
        for arch in root.iterfind("guest/arch")
        if arch.get("name") == architecture
        for kind in arch.iterfind("domain")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """What a domain has: serial numbers to target names of its disks, and each device's own XML by its serial number or MAC."""

    targets: tuple[str, ...]
    serials: tuple[str, ...]
    macs: tuple[str, ...]
    documents: Mapping[str, str]


def parse_devices(document: str) -> Devices:
    """The disks and interfaces in a domain's XML. Raises ValueError for what is no XML."""
    try:
        root = ET.fromstring(document)  # noqa: S314 - from libvirt, which made it
    except ET.ParseError as broken:
        raise ValueError("libvirt's document of a domain does not parse") from broken
    disks = {each.findtext("serial", ""): each for each in root.iterfind("devices/disk")}
    interfaces = {
        mac.get("address", ""): each
        for each in root.iterfind("devices/interface")
        if (mac := each.find("mac")) is not None
    }
    return Devices(
        targets=tuple(each.get("dev", "") for each in root.iterfind("devices/disk/target")),
        serials=tuple(serial for serial in disks if serial),
        macs=tuple(interfaces),
        documents={
            name: ET.tostring(element, encoding="unicode")
            for name, element in {**disks, **interfaces}.items()
            if name
        },
    )


def disk_xml(disk: DiskFile, taken: Collection[str]) -> str:
    """A disk to plug in, at the first target name that is not taken. Raises ValueError where none is left."""
    names = (f"vd{chr(letter)}" for letter in range(ord("a"), ord("z") + 1))
    name = next((each for each in names if each not in taken), None)
    if name is None:
        raise ValueError("no target name is left for another disk")
    return ET.tostring(_disk(disk, name), encoding="unicode")


def interface_xml(interface: Interface) -> str:
    """An interface to plug in."""
    return ET.tostring(_interface(interface), encoding="unicode")


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _printable(text: str) -> str:
    """XML 1.0 cannot carry most control characters, however they are escaped."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _system_information(domain: ET.Element, spec: DomainSpec, platform: Platform) -> None:
    """SMBIOS strings: cloud-init asks the metadata service only where the product says OpenStack (its ds-identify)."""
    if platform.architecture != _X86:
        return
    system = ET.SubElement(ET.SubElement(domain, "sysinfo", {"type": "smbios"}), "system")
    for name, value in (
        ("manufacturer", "Cellfabric"),
        ("product", "OpenStack Compute"),
        ("serial", spec.guest.id),
        ("uuid", spec.guest.id),
        ("family", "Virtual Machine"),
    ):
        _text(system, "entry", value, name=name)


def _boot(domain: ET.Element, spec: DomainSpec, platform: Platform) -> None:
    uefi = spec.guest.firmware == "uefi"
    system = ET.SubElement(domain, "os", {"firmware": "efi"} if uefi else {})
    _text(system, "type", "hvm", arch=platform.architecture, machine=_MACHINES[platform.architecture])
    if uefi:
        # Said either way: left to itself libvirt takes what the distribution prefers, which boots nothing that is not signed.
        wanted = ET.SubElement(system, "firmware")
        for feature in _SECURE_FIRMWARE if spec.guest.secure_boot else _SECURE_FIRMWARE[:1]:
            ET.SubElement(wanted, "feature", {"enabled": _yes(spec.guest.secure_boot), "name": feature})
    if spec.kernel_path:
        _text(system, "kernel", spec.kernel_path)
        if spec.ramdisk_path:
            _text(system, "initrd", spec.ramdisk_path)
        if spec.guest.kernel_args:
            _text(system, "cmdline", _printable(spec.guest.kernel_args))
    else:
        ET.SubElement(system, "boot", {"dev": "hd"})
    if platform.architecture == _X86:
        ET.SubElement(system, "smbios", {"mode": "sysinfo"})


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "no"


def _clock(domain: ET.Element, platform: Platform, *, kvm: bool) -> None:
    clock = ET.SubElement(domain, "clock", {"offset": "utc"})
    if platform.architecture == _X86:
        ET.SubElement(clock, "timer", {"name": "rtc", "tickpolicy": "catchup"})
        ET.SubElement(clock, "timer", {"name": "pit", "tickpolicy": "delay"})
        ET.SubElement(clock, "timer", {"name": "hpet", "present": "no"})
        if kvm:
            ET.SubElement(clock, "timer", {"name": "kvmclock", "present": "yes"})


def _devices(domain: ET.Element, spec: DomainSpec, platform: Platform) -> None:
    devices = ET.SubElement(domain, "devices")
    if platform.architecture in _MACHINES:
        ET.SubElement(devices, "controller", {"type": "pci", "index": "0", "model": "pcie-root"})
        for _ in range(_PCIE_PORTS):
            ET.SubElement(devices, "controller", {"type": "pci", "model": "pcie-root-port"})
    for number, disk in enumerate(spec.disks):
        devices.append(_disk(disk, f"vd{chr(ord('a') + number)}"))
    for interface in spec.interfaces:
        devices.append(_interface(interface))
    serial = ET.SubElement(devices, "serial", {"type": "pty"})
    if spec.console_log_path:
        ET.SubElement(serial, "log", {"file": spec.console_log_path, "append": "on"})
    ET.SubElement(serial, "target", {"port": "0"})
    _agent(devices)
    rng = ET.SubElement(devices, "rng", {"model": "virtio"})
    # A guest may not drain the host: 1 KiB each second is plenty to seed with.
    ET.SubElement(rng, "rate", {"bytes": "1024", "period": "1000"})
    _text(rng, "backend", "/dev/urandom", model="random")
    ET.SubElement(ET.SubElement(devices, "memballoon", {"model": "virtio"}), "stats", {"period": "10"})
    if platform.architecture == _X86:
        ET.SubElement(devices, "panic", {"model": "isa"})
        # PS/2 is there anyhow and q35's default USB controller serves nobody.
        ET.SubElement(devices, "controller", {"type": "usb", "model": "none"})
    _screen(devices, platform)


def _agent(devices: ET.Element) -> None:
    """The port that a guest's agent answers on. libvirt makes its socket, where the guest's QEMU alone may be."""
    channel = ET.SubElement(devices, "channel", {"type": "unix"})
    ET.SubElement(channel, "target", {"type": "virtio", "name": "org.qemu.guest_agent.0"})


def _screen(devices: ET.Element, platform: Platform) -> None:
    """A screen that nobody can connect to: each viewer's connection is handed to QEMU by libvirt, as an open descriptor.

    The pointer says where it is, not how far it has moved, or a viewer's would stray from the guest's.
    """
    graphics = ET.SubElement(devices, "graphics", {"type": "vnc"})
    ET.SubElement(graphics, "listen", {"type": "none"})
    ET.SubElement(devices, "input", {"type": "tablet", "bus": "virtio"})
    if platform.architecture != _X86:
        ET.SubElement(devices, "input", {"type": "keyboard", "bus": "virtio"})
    model = "vga" if platform.architecture == _X86 else "virtio"
    ET.SubElement(ET.SubElement(devices, "video"), "model", {"type": model})


def _disk(disk: DiskFile, target: str) -> ET.Element:
    """A virtio disk. The guest finds disks by serial or label: names follow the PCI order, not `dev`."""
    element = ET.Element("disk", {"type": "file", "device": "disk"})
    # writeback is as safe as the guest's own flushes, lets guests of one image share its pages, and works on any filesystem.
    driver = {"name": "qemu", "type": disk.format, "cache": "writeback"}
    ET.SubElement(element, "driver", driver if disk.readonly else driver | {"discard": "unmap"})
    _source(element, disk)
    _backing(element, disk.backing)
    ET.SubElement(element, "target", {"dev": target, "bus": "virtio"})
    if disk.readonly:
        ET.SubElement(element, "readonly")
    if disk.serial:
        _text(element, "serial", disk.serial)
    return element


def _source(parent: ET.Element, disk: DiskFile) -> None:
    source = ET.SubElement(parent, "source", {"file": disk.path})
    ET.SubElement(source, "seclabel", {"model": "dac", "relabel": "no"})


def _backing(parent: ET.Element, backing: DiskFile | None) -> None:
    """The chain to its end. An empty element says that nothing is underneath, and forbids to look."""
    if backing is None:
        ET.SubElement(parent, "backingStore")
        return
    element = ET.SubElement(parent, "backingStore", {"type": "file"})
    ET.SubElement(element, "format", {"type": backing.format})
    _source(element, backing)
    _backing(element, backing.backing)


def _interface(interface: Interface) -> ET.Element:
    """A tap that is there already, filtered and in its bridge: libvirt only opens it."""
    element = ET.Element("interface", {"type": "ethernet"})
    ET.SubElement(element, "mac", {"address": interface.mac})
    ET.SubElement(element, "target", {"dev": interface.tap, "managed": "no"})
    ET.SubElement(element, "model", {"type": "virtio"})
    ET.SubElement(element, "mtu", {"size": str(interface.mtu)})
    return element
