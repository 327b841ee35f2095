"""Definitions, without libvirt."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostd.driver.base import DiskFile, DomainSpec, Interface
from hostd.driver.libvirt.xml import (
    Mark,
    Platform,
    domain_name,
    domain_xml,
    offers_kvm,
    parse_architecture,
    parse_mark,
)
from tests.conformance.guests import a_guest

BASE = DiskFile(path="/state/images/abc.raw", format="raw", serial="", readonly=True)
ROOT = DiskFile(path="/state/root.qcow2", format="qcow2", serial="root", backing=BASE)
CONFIG = DiskFile(path="/state/config.iso", format="raw", serial="config-2", readonly=True)
SPEC = DomainSpec(
    guest=a_guest(vcpus=2, ram_mib=512),
    placement_epoch=3,
    generation=7,
    disks=(ROOT, CONFIG),
    interfaces=(Interface(tap="cft0123456789ab", mac="fa:16:3e:00:00:01", mtu=1450),),
    console_log_path="/state/console.log",
)
QEMU = Platform(accelerator="qemu", architecture="x86_64", host="h1", owner=(1000, 1001))
KVM = replace(QEMU, accelerator="kvm")


def built(spec: DomainSpec = SPEC, platform: Platform = QEMU) -> ET.Element:
    return ET.fromstring(domain_xml(spec, platform))  # noqa: S314 - our own


def one(root: ET.Element, path: str) -> ET.Element:
    (found,) = root.findall(path)
    return found


def test_our_mark_is_read_back() -> None:
    mark = Mark(instance_id=SPEC.guest.id, placement_epoch=3, generation=7, host="h1")

    assert parse_mark(domain_xml(SPEC, QEMU)) == mark


@pytest.mark.parametrize(
    "document",
    [
        "",
        "<domain/>",
        "not xml",
        "<instance id='x'/>",
        "<instance id='x' placement-epoch='one' generation='1' host='h'/>",
        "<domain><metadata><other xmlns='urn:other'/></metadata></domain>",
    ],
)
def test_what_is_not_our_mark_is_none(document: str) -> None:
    assert parse_mark(document) is None


@given(
    name=st.text(),
    arguments=st.text(),
    path=st.text(st.characters(blacklist_categories=("Cc", "Cs")), min_size=1),
)
def test_no_text_changes_the_documents_shape(name: str, arguments: str, path: str) -> None:
    guest = a_guest(vcpus=2, ram_mib=512, name=name, kernel_args=arguments)
    kernel = replace(SPEC, kernel_path="/k", guest=replace(SPEC.guest, kernel_args="x"))
    tricky = replace(kernel, guest=guest, console_log_path=f"/{path}")

    def shape(root: ET.Element) -> list[str]:
        return [element.tag for element in root.iter() if element.tag != "cmdline"]

    assert shape(built(tricky)) == shape(built(kernel))
    assert one(built(tricky), "devices/serial/log").get("file") == f"/{path}"


def test_every_format_is_said_down_to_the_end_of_every_chain() -> None:
    """CVE-2026-24708: what is not said is probed, and a guest writes what is probed."""
    for disk in built().iterfind("devices/disk"):
        level: ET.Element | None = disk
        assert one(disk, "driver").get("type") in {"raw", "qcow2"}
        while level is not None and level.find("source") is not None:
            below = one(level, "backingStore")
            assert below.find("source") is None or one(below, "format").get("type") == "raw"
            level = below
        assert level is not None
        assert len(level) == 0


def test_libvirt_gives_no_disk_another_owner() -> None:
    sources = built().findall(".//devices/disk//source")

    assert len(sources) == 3
    assert all(one(source, "seclabel").attrib == {"model": "dac", "relabel": "no"} for source in sources)


def test_a_guest_runs_as_the_owner_of_its_disk() -> None:
    assert built().findtext("seclabel/label") == "+1000:+1001"
    assert built(platform=replace(QEMU, owner=None)).find("seclabel") is None


def test_the_config_drive_is_a_disk_that_cannot_be_written() -> None:
    root, config = built().findall("devices/disk")

    assert root.find("readonly") is None
    assert config.find("readonly") is not None
    assert [disk.findtext("serial") for disk in (root, config)] == ["root", "config-2"]
    assert [one(disk, "target").get("dev") for disk in (root, config)] == ["vda", "vdb"]


def test_a_tap_is_only_opened() -> None:
    interface = one(built(), "devices/interface")

    assert interface.get("type") == "ethernet"
    assert one(interface, "target").attrib == {"dev": "cft0123456789ab", "managed": "no"}
    assert one(interface, "mac").get("address") == "fa:16:3e:00:00:01"
    assert one(interface, "mtu").get("size") == "1450"


def test_nobody_can_connect_to_a_screen() -> None:
    """Neither over a network nor by a file: connections are handed to QEMU by libvirt, one by one."""
    graphics = one(built(), "devices/graphics")

    assert [each.attrib for each in graphics] == [{"type": "none"}]
    assert graphics.attrib == {"type": "vnc"}


def test_the_agent_has_a_port_whose_socket_libvirt_makes() -> None:
    channel = one(built(), "devices/channel")

    assert channel.find("source") is None
    assert one(channel, "target").attrib == {"type": "virtio", "name": "org.qemu.guest_agent.0"}


@pytest.mark.parametrize(("platform", "kind", "cpu"), [(QEMU, "qemu", "maximum"), (KVM, "kvm", "host-model")])
def test_the_cpu_fits_the_accelerator(platform: Platform, kind: str, cpu: str) -> None:
    root = built(platform=platform)

    assert root.get("type") == kind
    assert one(root, "cpu").get("mode") == cpu


def test_a_kernel_is_booted_with_its_arguments_and_else_the_disk() -> None:
    guest = replace(SPEC.guest, kernel_args="root=/dev/vda console=ttyS0")
    direct = built(replace(SPEC, guest=guest, kernel_path="/k", ramdisk_path="/r"))

    assert [direct.findtext(f"os/{tag}") for tag in ("kernel", "initrd", "cmdline")] == [
        "/k",
        "/r",
        "root=/dev/vda console=ttyS0",
    ]
    assert built().find("os/kernel") is None
    assert one(built(), "os/boot").get("dev") == "hd"


@pytest.mark.parametrize(
    ("is_secure", "features"),
    [(False, {"secure-boot": "no"}), (True, {"secure-boot": "yes", "enrolled-keys": "yes"})],
)
def test_which_uefi_is_said_and_not_left_to_the_distribution(
    is_secure: bool, features: dict[str, str]
) -> None:
    """Debian's first choice boots nothing that is not signed: an image for UEFI whose loader is not ended in the firmware's menu, and one
    that insisted on Secure Boot had it by luck.
    """
    domain = built(replace(SPEC, guest=replace(SPEC.guest, firmware="uefi", secure_boot=is_secure)))

    asked = {each.get("name"): each.get("enabled") for each in one(domain, "os/firmware").findall("feature")}
    assert asked == features
    assert (domain.find("features/smm") is not None) is is_secure


def test_uefi_is_asked_for_by_firmware() -> None:
    assert (
        one(built(replace(SPEC, guest=replace(SPEC.guest, firmware="uefi"))), "os").get("firmware") == "efi"
    )


def test_another_architecture_has_nothing_of_a_pc() -> None:
    root = built(platform=replace(QEMU, architecture="aarch64"))

    assert one(root, "os/type").get("machine") == "virt"
    for path in ("sysinfo", "os/smbios", "features/apic", "devices/panic", "clock/timer"):
        assert root.find(path) is None


def test_names_come_from_ids() -> None:
    assert built().findtext("name") == domain_name(SPEC.guest.id)
    assert built().findtext("uuid") == SPEC.guest.id


CAPABILITIES = """<capabilities><host><cpu><arch>x86_64</arch></cpu></host>
<guest><arch name='i686'><domain type='qemu'/><domain type='kvm'/></arch></guest>
<guest><arch name='x86_64'><domain type='qemu'/>{}</arch></guest></capabilities>"""


def test_capabilities_are_read_for_the_hosts_own_architecture() -> None:
    assert parse_architecture(CAPABILITIES) == "x86_64"
    assert not offers_kvm(CAPABILITIES.format(""), "x86_64")
    assert offers_kvm(CAPABILITIES.format("<domain type='kvm'/>"), "x86_64")
    with pytest.raises(ValueError, match="architecture"):
        parse_architecture("<capabilities/>")
