"""Why something failed on a host: a closed list, because a host is not believed about its own words.

A host reports a code; the text people read comes from the table here, on the conductor's side too. Codes are stored: append only.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final


class FaultCode(enum.StrEnum):
    """What a host may say went wrong."""

    DISK_FULL = "DISK_FULL"
    DISK_FAILED = "DISK_FAILED"
    IMAGE_UNAVAILABLE = "IMAGE_UNAVAILABLE"
    IMAGE_CORRUPT = "IMAGE_CORRUPT"
    IMAGE_REJECTED = "IMAGE_REJECTED"
    IMAGE_TOO_LARGE = "IMAGE_TOO_LARGE"
    NETWORK_FAILED = "NETWORK_FAILED"
    HYPERVISOR_UNAVAILABLE = "HYPERVISOR_UNAVAILABLE"
    HYPERVISOR_TIMEOUT = "HYPERVISOR_TIMEOUT"
    HYPERVISOR_FAILED = "HYPERVISOR_FAILED"
    DOMAIN_INVALID = "DOMAIN_INVALID"
    DOMAIN_MISSING = "DOMAIN_MISSING"
    DOMAIN_START_FAILED = "DOMAIN_START_FAILED"
    DOMAIN_STOP_FAILED = "DOMAIN_STOP_FAILED"
    GUEST_CRASHED = "GUEST_CRASHED"
    CONSOLE_UNAVAILABLE = "CONSOLE_UNAVAILABLE"
    HOST_FAILED = "HOST_FAILED"
    DISK_LOST = "DISK_LOST"
    DOMAIN_PAUSE_FAILED = "DOMAIN_PAUSE_FAILED"
    DOMAIN_RESUME_FAILED = "DOMAIN_RESUME_FAILED"
    DOMAIN_SUSPEND_FAILED = "DOMAIN_SUSPEND_FAILED"
    GUEST_OFF = "GUEST_OFF"
    AGENT_MISSING = "AGENT_MISSING"
    AGENT_FAILED = "AGENT_FAILED"
    CONSOLE_IN_USE = "CONSOLE_IN_USE"
    SNAPSHOT_FAILED = "SNAPSHOT_FAILED"
    IMAGE_UPLOAD_FAILED = "IMAGE_UPLOAD_FAILED"
    VOLUME_LOST = "VOLUME_LOST"
    VOLUME_UNREACHABLE = "VOLUME_UNREACHABLE"
    VOLUME_ATTACH_FAILED = "VOLUME_ATTACH_FAILED"
    INTERFACE_ATTACH_FAILED = "INTERFACE_ATTACH_FAILED"
    DEVICE_HELD = "DEVICE_HELD"
    NETWORK_PLAN_MISSING = "NETWORK_PLAN_MISSING"


FAULT_TEXT: Final[Mapping[FaultCode, str]] = MappingProxyType(
    {
        FaultCode.DISK_FULL: "the host's disk is full",
        FaultCode.DISK_FAILED: "the host could not make the server's disks",
        FaultCode.IMAGE_UNAVAILABLE: "the host could not fetch the image",
        FaultCode.IMAGE_CORRUPT: "the image's bytes do not match its SHA-256",
        FaultCode.IMAGE_REJECTED: "the image is not what its record says it is",
        FaultCode.IMAGE_TOO_LARGE: "the image makes a larger disk than the flavor has",
        FaultCode.NETWORK_FAILED: "the host could not wire the server's ports",
        FaultCode.HYPERVISOR_UNAVAILABLE: "the host's hypervisor cannot be reached",
        FaultCode.HYPERVISOR_TIMEOUT: "the host's hypervisor did not answer in time",
        FaultCode.HYPERVISOR_FAILED: "the host's hypervisor failed",
        FaultCode.DOMAIN_INVALID: "the host's hypervisor cannot run a server like this",
        FaultCode.DOMAIN_MISSING: "the host has no such server",
        FaultCode.DOMAIN_START_FAILED: "the host's hypervisor could not start the server",
        FaultCode.DOMAIN_STOP_FAILED: "the host's hypervisor could not stop the server",
        FaultCode.GUEST_CRASHED: "the guest crashed",
        FaultCode.CONSOLE_UNAVAILABLE: "the server's console cannot be read",
        FaultCode.HOST_FAILED: "the host failed in a way it has no word for",
        FaultCode.DISK_LOST: "the server's disk is gone from its host",
        FaultCode.DOMAIN_PAUSE_FAILED: "the host's hypervisor could not pause the server",
        FaultCode.DOMAIN_RESUME_FAILED: "the host's hypervisor could not let the server go on",
        FaultCode.DOMAIN_SUSPEND_FAILED: "the host's hypervisor could not save the server's memory",
        FaultCode.GUEST_OFF: "the guest had shut itself down",
        FaultCode.AGENT_MISSING: "no agent answers in the guest: it needs qemu-guest-agent, installed and running",
        FaultCode.AGENT_FAILED: "the guest's agent refused, or failed",
        FaultCode.CONSOLE_IN_USE: "somebody else has the server's console",
        FaultCode.SNAPSHOT_FAILED: "the host could not copy the server's disk",
        FaultCode.IMAGE_UPLOAD_FAILED: "the image of the server's disk could not be handed in",
        FaultCode.VOLUME_LOST: "the volume's data is gone from its host",
        FaultCode.VOLUME_UNREACHABLE: "the host cannot reach its volumes",
        FaultCode.VOLUME_ATTACH_FAILED: "the host's hypervisor could not plug the volume into the server",
        FaultCode.INTERFACE_ATTACH_FAILED: "the host's hypervisor could not plug the interface into the server",
        FaultCode.DEVICE_HELD: "the guest did not let go of the device: unmount it there, or stop the server, and ask again",
        FaultCode.NETWORK_PLAN_MISSING: "the host was not told in time what the server's ports may send and be sent",
    }
)


def as_fault_code(text: str) -> FaultCode:
    """The code of that name, `HOST_FAILED` for any other: what a host invents is not passed on."""
    try:
        return FaultCode(text)
    except ValueError:
        return FaultCode.HOST_FAILED
