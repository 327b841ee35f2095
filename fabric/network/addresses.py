"""Addresses of guests: arithmetic on a host's guest subnet, shared by whoever claims (scheduler) and whoever moves (conductor).

A host's subnet is its own (`Host.guest_cidr`): the first host address is the gateway, the ones up to `FIRST_GUEST` are kept for the
host's own services, and a claim's slot counts upwards from there. Nothing is looked up, so an address is exact the moment a slot is.
"""

from __future__ import annotations

from hashlib import blake2b
from ipaddress import IPv4Network

from fabric.errors import Bug
from fabric.model.host import Host, Use
from fabric.model.instance import Request
from fabric.model.network import FIRST_GUEST, NO_SLOT, Port

GATEWAY = 1
"""The gateway's place in the subnet: its first host address."""

SLOTS_LIMIT = 1 << 16
"""As many slots as a MAC can tell apart."""

MAC_PREFIX = "fa:16:3e"
"""The prefix OpenStack gives its ports: people recognise it, and it is locally administered (IEEE 802, bit 1 of the first octet)."""


def slots_in(guest_cidr: str) -> int:
    """How many guests a subnet has addresses for; 0 where it is empty or too small. Raises ValueError for what is no IPv4 subnet."""
    if not guest_cidr:
        return 0
    # The last address is the subnet's broadcast address, and never a guest's.
    return min(SLOTS_LIMIT, max(0, IPv4Network(guest_cidr).num_addresses - 1 - FIRST_GUEST))


def slot_limit(host: Host) -> int:
    """How many guests the host can address: what its admin allows, and never more than its subnet has."""
    try:
        return min(host.slots, slots_in(host.guest_cidr))
    except ValueError:
        return 0


def slot_for(host: Host, use: Use, request: Request) -> int | None:
    """The address slot that a claim for the request takes; `NO_SLOT` where it is to have no address of the host's own network.

    None where the host cannot have the guest: it has no address left, or no part in the tenant networks that the guest is on.
    """
    if request.guest.tenant_ports and not host.tunnel_address:
        return None
    return use.free_slot(slot_limit(host)) if request.network_id else NO_SLOT


def ports_at(host: Host, slot: int, *, instance_id: str, request: Request) -> tuple[Port, ...]:
    """All of the instance's interfaces as they are on this host: the one on the host's own network first, where `slot` is its address.

    Raises:
        Bug: as `port_at`.
    """
    tenant = request.guest.tenant_ports
    if slot == NO_SLOT:
        return tenant
    return (port_at(host, slot, instance_id=instance_id, request=request), *tenant)


def port_id(instance_id: str, network_id: str) -> str:
    """The id of the instance's port on a network: a UUID made of both (RFC 9562, version 8), so that every try and every move
    of the instance has the same port.
    """
    digest = bytearray(
        blake2b(f"{instance_id}/{network_id}".encode(), digest_size=16, person=b"port").digest()
    )
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def mac_of(port: str, slot: int) -> str:
    """The MAC of a port at a slot: OpenStack's prefix, 8 bits of the port's id, and the slot.

    The slot makes it exact: no two guests of one host ever share a MAC. From the id alone, two of 60 would once in ten thousand hosts.
    """
    tail = blake2b(port.encode(), digest_size=1, person=b"mac").hexdigest() + f"{slot:04x}"
    return f"{MAC_PREFIX}:{tail[:2]}:{tail[2:4]}:{tail[4:]}"


def port_at(host: Host, slot: int, *, instance_id: str, request: Request) -> Port:
    """The instance's port as it is on this host, at this address slot.

    Raises:
        Bug: the slot is outside what the host can address; whoever claims checks that first.
    """
    if not 0 <= slot < slot_limit(host):
        raise Bug(f"slot {slot} is outside the addresses of host {host.name}", host=host.name, slot=slot)
    subnet = IPv4Network(host.guest_cidr)
    port = port_id(instance_id, request.network_id)
    return Port(
        id=port,
        network_id=request.network_id,
        network_name=request.network_name,
        mac=mac_of(port, slot),
        address=str(subnet[FIRST_GUEST + slot]),
        prefix_length=subnet.prefixlen,
        gateway=str(subnet[GATEWAY]),
        mtu=request.network_mtu,
        dns_servers=request.dns_servers,
    )
