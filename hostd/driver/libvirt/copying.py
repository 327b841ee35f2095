"""Copies of a running domain's disk, as it is at one instant: libvirt's backup job in push mode.

QEMU keeps the instant by copying what the guest is about to overwrite first. A copy holds the whole chain and has no backing file. The
functions take a domain of libvirt's and block; a job belongs to libvirtd, and goes on when whoever asked for it dies.
"""

from __future__ import annotations

import contextlib
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Final

import libvirt
import structlog

from hostd.core.faults import FaultCode
from hostd.driver.base import DiskFile, driver_error

_log = structlog.get_logger(__name__)

_AGENT_DEADLINE_S: Final = 10
_NO_AGENT: Final = frozenset(
    {
        libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
        libvirt.VIR_ERR_AGENT_UNRESPONSIVE,
        libvirt.VIR_ERR_AGENT_UNSYNCED,
        libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
        libvirt.VIR_ERR_OPERATION_INVALID,
        libvirt.VIR_ERR_INTERNAL_ERROR,
    }
)
"""How libvirt says that nobody in the guest freezes its filesystems, or not now."""


def begin(domain: libvirt.virDomain, serial: str, target: DiskFile) -> None:
    """Begin a copy into a file that is there, empty, and of the guest's own user. Ends what an earlier copy left under way.

    Where the guest has an agent, its filesystems are frozen for the instant; without one the copy is what a power cut would leave.
    Raises DriverError('GUEST_OFF'), libvirtError.
    """
    end(domain)
    _must_be_on(domain)
    document = backup_xml(domain.XMLDesc(0), serial, target)
    with _frozen(domain):
        domain.backupBegin(document, None, libvirt.VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL)


def is_done(domain: libvirt.virDomain) -> bool:
    """Whether the copy is whole. Raises DriverError (GUEST_OFF, DISK_FULL, SNAPSHOT_FAILED) where it will never be."""
    _must_be_on(domain)
    if domain.jobStats()["type"] != libvirt.VIR_DOMAIN_JOB_NONE:
        return False
    ended = domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)
    is_ours = ended.get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP
    if is_ours and ended["type"] == libvirt.VIR_DOMAIN_JOB_COMPLETED:
        return True
    words = str(ended.get("errmsg", ""))
    _log.warning("copy.failed", job=ended.get("type"), words=words)
    is_full = "No space left on device" in words
    raise driver_error(FaultCode.DISK_FULL if is_full else FaultCode.SNAPSHOT_FAILED)


def end(domain: libvirt.virDomain) -> None:
    """End the copy that is under way, whoever began it, and let the guest's filesystems go on. None is fine."""
    if not domain.isActive():
        return
    job = domain.jobStats()
    if job["type"] != libvirt.VIR_DOMAIN_JOB_NONE:
        if job.get("operation") != libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP:
            raise driver_error(FaultCode.SNAPSHOT_FAILED)
        with contextlib.suppress(libvirt.libvirtError):
            # It may have ended since.
            domain.abortJob()
    _thaw(domain)


def backup_xml(domain_xml: str, serial: str, target: DiskFile) -> str:
    """The document that asks for a copy of one disk and of no other. Raises DriverError where there is no such disk."""
    document = ET.Element("domainbackup", {"mode": "push"})
    disks = ET.SubElement(document, "disks")
    found = False
    for disk in ET.fromstring(domain_xml).iterfind("devices/disk"):  # noqa: S314 - from libvirt
        name = disk.find("target")
        if name is None:
            continue
        is_wanted = disk.findtext("serial") == serial
        found = found or is_wanted
        element = ET.SubElement(
            disks, "disk", {"name": name.attrib["dev"], "backup": "yes" if is_wanted else "no"}
        )
        if is_wanted:
            element.attrib |= {"type": "file", "backupmode": "full"}
            ET.SubElement(element, "driver", {"type": target.format})
            file = ET.SubElement(element, "target", {"file": target.path})
            # Its owner is right already, and libvirt would not give it back.
            ET.SubElement(file, "seclabel", {"model": "dac", "relabel": "no"})
    if not found:
        raise driver_error(FaultCode.SNAPSHOT_FAILED)
    return ET.tostring(document, encoding="unicode")


@contextlib.contextmanager
def _frozen(domain: libvirt.virDomain) -> Iterator[None]:
    with _without_an_agent():
        _bound(domain)
        domain.fsFreeze()
    try:
        yield
    finally:
        _thaw(domain)


def _thaw(domain: libvirt.virDomain) -> None:
    """Also after a freeze whose answer did not come: it may have been heard."""
    with _without_an_agent():
        _bound(domain)
        domain.fsThaw()


def _bound(domain: libvirt.virDomain) -> None:
    """Have libvirt wait for the agent's next answers only for so long. It waits for ever otherwise, once the agent has shown itself."""
    domain.agentSetResponseTimeout(_AGENT_DEADLINE_S)


@contextlib.contextmanager
def _without_an_agent() -> Iterator[None]:
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() not in _NO_AGENT:
            raise


def _must_be_on(domain: libvirt.virDomain) -> None:
    if not domain.isActive():
        raise driver_error(FaultCode.GUEST_OFF)
