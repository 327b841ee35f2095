"""Devices of a guest that runs: which of its volumes and interfaces are to be plugged in or out next.

What the domain has is compared with what the order says, whoever plugged it and whenever: so it never matters how far an earlier pass came.
Disks that are no volumes are the guest's own and are left alone. A guest is asked to let go of a device, again and again, and has so long
for it; then it keeps the device, and the fault says so. Nobody pulls a disk out from under a guest that writes to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fabric.model.instance import Guest
from fabric.model.states import PowerState
from fabric.model.volume import is_serial
from hostd.core.faults import FaultCode
from hostd.core.steps import (
    AttachDisk,
    AttachInterface,
    DetachDisk,
    DetachInterface,
    Effort,
    EnsureImage,
    Rewire,
    Wait,
)
from hostd.driver.base import Domain

LET_GO_S: Final = 30.0
"""How long a guest has to let go of a device."""

ASK_AGAIN_S: Final = 5.0
"""Between two times that it is asked: one that is still booting does not hear it."""

LOOK_S: Final = 0.25
"""Between two looks at whether it has."""

HELD_LOOK_S: Final = 5.0
"""Between two looks at a device that the guest has kept too long: it may let go of it yet, and nobody says so."""

_OPEN: Final = frozenset({PowerState.RUNNING, PowerState.PAUSED})

Next = EnsureImage | AttachDisk | DetachDisk | AttachInterface | DetachInterface | Rewire | Wait


def is_plugged(guest: Guest, domain: Domain) -> bool:
    """Whether the domain has the guest's volumes and interfaces, and no others."""
    return _volumes_of(domain) == {each.serial for each in guest.volumes} and set(domain.macs) == {
        port.mac for port in guest.ports
    }


def next_plug(
    guest: Guest,
    domain: Domain | None,
    wired: frozenset[str] | None,
    effort: Effort,
    *,
    now_s: float,
    unmade: frozenset[str] = frozenset(),
) -> Next | FaultCode | None:
    """The next step towards the guest's devices; why they stay as they are; or None where they are right.

    Of a guest that nobody has open, none has to be there; but what it is to have no more must not stay: it is another's to have.

    `wired` are the MACs that the host's network has for the guest, None where that is not known; `unmade` are volumes that are still to be
    made of an image.
    """
    if domain is None or domain.power not in _OPEN | {PowerState.SUSPENDED}:
        return _give_up(guest, wired, effort)
    if domain.power is PowerState.SUSPENDED:
        # What is in its saved memory comes back with it, and is plugged out then.
        return None if is_plugged(guest, domain) else FaultCode.DEVICE_HELD
    if effort.misplugged is not None:
        return effort.misplugged
    return _pull(guest, domain, effort, now_s=now_s) or _push(guest, domain, wired, effort, unmade)


def _give_up(guest: Guest, wired: frozenset[str] | None, effort: Effort) -> Rewire | FaultCode | None:
    if wired is None or wired <= {port.mac for port in guest.ports}:
        return None
    if effort.misplugged is not None:
        return effort.misplugged
    return FaultCode.NETWORK_FAILED if effort.is_rewired else Rewire()


def _volumes_of(domain: Domain) -> set[str]:
    return {serial for serial in domain.disks if is_serial(serial)}


def _pull(guest: Guest, domain: Domain, effort: Effort, *, now_s: float) -> Next | FaultCode | None:
    pulls: Mapping[str, DetachDisk | DetachInterface] = {
        **{
            serial: DetachDisk(serial)
            for serial in sorted(_volumes_of(domain) - {each.serial for each in guest.volumes})
        },
        **{
            mac: DetachInterface(mac) for mac in sorted(set(domain.macs) - {port.mac for port in guest.ports})
        },
    }
    for name, step in pulls.items():
        if name not in effort.pulled:
            return step
    for name, step in pulls.items():
        first_s, last_s = effort.pulled[name]
        if now_s >= first_s + LET_GO_S:
            return FaultCode.DEVICE_HELD
        if now_s >= last_s + ASK_AGAIN_S:
            return step
    return Wait(now_s + LOOK_S, "the guest is letting go of a device") if pulls else None


def _push(
    guest: Guest,
    domain: Domain,
    wired: frozenset[str] | None,
    effort: Effort,
    unmade: frozenset[str],
) -> Next | FaultCode | None:
    for volume in guest.volumes:
        if volume.serial not in domain.disks:
            image = guest.image_of(volume.id)
            if image is not None and volume.id in unmade and image.sha256 not in effort.images:
                return EnsureImage(image, for_plug=True)
            return FaultCode.VOLUME_ATTACH_FAILED if volume.serial in effort.pushed else AttachDisk(volume)
    missing = [port for port in guest.ports if port.mac not in domain.macs]
    if wired is not None and wired != {port.mac for port in guest.ports}:
        return FaultCode.NETWORK_FAILED if effort.is_rewired else Rewire()
    if missing and effort.interfaces is None:
        return Rewire()
    for port in missing:
        if port.mac in effort.pushed:
            return FaultCode.INTERFACE_ATTACH_FAILED
        for interface in effort.interfaces or ():
            if interface.mac == port.mac:
                return AttachInterface(interface)
        return FaultCode.INTERFACE_ATTACH_FAILED
    return None
