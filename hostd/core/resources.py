"""What a host holds and what that takes: the arithmetic of the audit, on values that were measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fabric.ids import is_id
from fabric.model.host import Resources
from fabric.model.instance import Guest
from fabric.model.session import Held, Inventory, Report
from fabric.model.states import PowerState
from hostd.core.reconcile import RUNNING
from hostd.driver.base import Domain, Hypervisor
from hostd.images.base import Held as HeldFiles

HEALTHY = "ok"

_HELD_LIMIT = 4096
_STRAYS_LIMIT = 1024
_STRAY_NAME_LIMIT = 128
"""What a conductor takes in one inventory; a host that says more is not believed at all."""


def report(
    hypervisor: Hypervisor | None,
    domains: Sequence[Domain],
    guests: Mapping[str, Guest],
    *,
    agent_version: str,
    health: str,
    directories: tuple[str, ...] = (),
) -> Report:
    """The report of one audit. In use is what the guests that have a domain were promised, running or not: the claim's own arithmetic."""
    ours = [domain for domain in domains if domain.ours]
    held = [guests[domain.instance_id] for domain in ours if domain.instance_id in guests]
    return Report(
        epoch=0,
        total=hypervisor.total if hypervisor else Resources(),
        used=sum((guest.resources() for guest in held), Resources()),
        running=sum(domain.power in RUNNING for domain in ours),
        hypervisor=f"{hypervisor.kind}/{hypervisor.accelerator}" if hypervisor else "",
        hypervisor_version=hypervisor.version if hypervisor else "",
        agent_version=agent_version,
        health=health,
        directories=directories,
    )


def inventory(domains: Sequence[Domain], files: Iterable[HeldFiles], wired: Mapping[str, int]) -> Inventory:
    """Everything held here, whoever still knows of it, in one order. Each placement once, with its domain's power where it has one.

    A stray may be called anything: what cannot be printed is replaced, what is too long cut, what is too much left out.
    """
    powers = {(held.instance_id, held.placement_epoch): PowerState.NOSTATE for held in files}
    powers |= {placement: powers.get(placement, PowerState.NOSTATE) for placement in wired.items()}
    powers |= {
        (domain.instance_id, domain.placement_epoch): domain.power for domain in domains if domain.ours
    }
    ours = [
        Held(instance_id=instance_id, placement_epoch=placement_epoch, power=power)
        for (instance_id, placement_epoch), power in sorted(powers.items())
        if is_id(instance_id) and placement_epoch >= 1
    ]
    strays = sorted(_printable(domain.name) for domain in domains if not domain.ours)
    return Inventory(epoch=0, held=tuple(ours[:_HELD_LIMIT]), strays=tuple(strays[:_STRAYS_LIMIT]))


def _printable(name: str) -> str:
    shown = "".join(character if character.isprintable() else "?" for character in name)
    return shown[:_STRAY_NAME_LIMIT] or "?"


def unexplained(held: Inventory, known: Iterable[str]) -> tuple[str, ...]:
    """Instances held here that no order explains: reported, never destroyed for it (R4)."""
    return tuple(sorted({one.instance_id for one in held.held} - set(known)))
