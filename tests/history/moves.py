"""What may never happen to a server that goes from host to host: written by hand, from what people are promised, not from our tables.

- I1 a record changes its place in one of four ways, and never while the server runs where it was
- I2 hosts are ordered what the record names, and nothing else; a tombstone is never of what it names
- I3 a server is at no time larger than what its project is charged for it
- I15 no placement epoch is given out twice; a lower one comes back only with the copy that has it
"""

from __future__ import annotations

from collections.abc import Mapping

from fabric.model.instance import Instance, Location
from fabric.model.quota import Charge
from fabric.model.states import VmState

Where = tuple[str, int]
"""A host and a placement epoch."""


def here(record: Instance) -> Where:
    """Where the record says that the server is; an empty host for nowhere."""
    return (record.host, record.placement_epoch if record.host else 0)


def there(record: Instance) -> Where | None:
    """Where else it has a claim."""
    return None if record.move is None else (record.move.other.host, record.move.other.placement_epoch)


def named(record: Instance) -> dict[str, int]:
    """The placement epochs that the record names, by host."""
    return dict(each for each in (here(record), there(record)) if each is not None and each[0])


def highest(record: Instance) -> int:
    """The highest placement epoch that the record knows of."""
    return max(record.highest_epoch, record.placement_epoch, (there(record) or ("", 0))[1])


def wrong_place(before: Instance, after: Instance, runs_on: str | None) -> str | None:
    """What is wrong with how a record has changed its places; None for nothing."""
    if highest(after) < highest(before):
        return (
            f"I15 the highest placement epoch of {after.id} went from {highest(before)} to {highest(after)}"
        )
    known = set(named(before).items())
    for host, epoch in named(after).items():
        if (host, epoch) not in known and epoch <= highest(before):
            return f"I15 {after.id} was placed on {host} at epoch {epoch}, below one that was given out"
    if here(before) == here(after):
        return None
    if before.host and runs_on == before.host:
        return f"I1 {after.id} left {before.host} for {after.host or 'nowhere'}, and runs there"
    if not after.host:
        is_shelved = after.vm_state is VmState.SHELVED_OFFLOADED
        return None if is_shelved else f"I1 {after.id} is on no host, and is {after.vm_state.name}"
    if here(after) in known:
        is_kept = there(after) == here(before) or after.move is None
        return None if is_kept else f"I1 {after.id} went to {after.host}, and its old copy is nowhere"
    is_first = before.vm_state is VmState.BUILDING
    if before.host and not is_first:
        return f"I1 {after.id} went from {before.host} to {after.host}, where it had no claim"
    return None


def wrong_orders(
    record: Instance | None, ordered: Mapping[str, int], buried: Mapping[str, int]
) -> str | None:
    """What is wrong with what hosts are told of one server: `ordered` and `buried` are placement epochs by host."""
    wanted = {} if record is None else named(record)
    if dict(ordered) != wanted:
        return f"I2 hosts are ordered {dict(ordered)}, and the record names {wanted}"
    for host, epoch in buried.items():
        if wanted.get(host, epoch + 1) <= epoch:
            return f"I2 {host} is to forget placement {epoch}, and the record names {wanted[host]}"
    return None


def cost(record: Instance) -> Charge:
    """What a server like this costs."""
    guest = record.request.guest
    return Charge(instances=1, vcpus=guest.vcpus, ram_mib=guest.ram_mib)


def undercharged(record: Instance, location: Location) -> str | None:
    """Whether the server is larger than what is charged for it, as it is or as it is becoming."""
    sizes = [record.request] if record.move is None else [record.request, record.move.other.request]
    charge = location.charge
    for guest in (each.guest for each in sizes):
        if charge.instances < 1 or charge.vcpus < guest.vcpus or charge.ram_mib < guest.ram_mib:
            return f"I3 {record.id} has {guest.vcpus} vCPUs and {guest.ram_mib} MiB, and is charged {charge}"
    return None
