"""What a port is made of, taken and given back: addresses, a MAC, memberships, a place in the quota. In a draft that others may share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fabric.api.draft import Draft
from fabric.api.named import Found
from fabric.api.network_desk import Desk
from fabric.api.security_groups import ensure_default, groups_named
from fabric.errors import Reason, WrongState
from fabric.model.identity import Principal
from fabric.model.network import FixedAddress, Network, NetworkPort
from fabric.model.security_group import SecurityGroup
from fabric.network.core.ports import AskedAddress, Wanted, check_network, check_trust, wanted_addresses
from fabric.store.keys import (
    ADDRESS,
    NETWORK,
    PORT,
    PORT_MAC,
    PORT_NAME,
    SECURITY_GROUP,
    SECURITY_GROUP_MEMBER,
    SUBNET,
)


def check_allowed(
    network: Network, port: NetworkPort, principal: Principal, *, asked_mac: bool, field: str
) -> None:
    """Whether the port may be on the network as it is. Raises InvalidRequest, naming `field`, PermissionDenied."""
    is_admin = principal.system_admin
    check_network(network, project_id=port.project_id, is_admin=is_admin, field=field)
    check_trust(port, network, asked_mac=asked_mac, is_admin=is_admin)


async def take_port(
    desk: Desk,
    draft: Draft,
    bare: NetworkPort,
    network: Found[Network],
    *,
    addresses: Sequence[AskedAddress] | None,
    groups: Sequence[str] | None,
    seed: str,
    field: str,
    groups_field: str = "",
    besides: frozenset[str] = frozenset(),
) -> NetworkPort:
    """Make a port in a draft.

    Args:
        desk: to look things up.
        draft: the transaction that it becomes part of.
        bare: the port as far as nothing has to be looked up; a MAC in it is one that was asked for.
        network: its network, on which it may be.
        addresses: the addresses asked for; empty: one of each family the network has; None: none at all.
        groups: the security groups asked for; empty: the project's default one; None: none at all.
        seed: which free numbers to try first.
        field: where the request names the addresses and the groups: the path that their fields' names are put behind.
        groups_field: the groups' own path, where it is another.
        besides: MACs that it must not have.

    Raises:
        InvalidRequest, naming the field below `field`; NoCapacity: no address is free; WrongState: an address or a MAC is in use;
        QuotaExceeded; AlreadyExists: its name is.
    """
    draft.read(NETWORK.at(network.value.id), network.mod_revision)
    key = PORT.at(bare.project_id, bare.id)
    now_ms = desk.clock.now_ms()
    port = replace(
        bare,
        network_id=network.value.id,
        fixed_addresses=()
        if addresses is None
        else await _take_addresses(desk, draft, addresses, network.value, key, seed, field=field),
        mac=await _take_mac(desk, draft, network.value, key, seed, asked=bare.mac, besides=besides),
        quota_slot=await desk.take_slot(draft, bare.project_id, "ports", bare.id, seed=seed),
        create_time_ms=now_ms,
        update_time_ms=now_ms,
    )
    port = replace(port, security_group_ids=())
    if groups is not None:
        found = await named_groups(
            desk, groups, port.project_id, field=groups_field or f"{field}security_groups"
        )
        join(draft, found, port)
        port = replace(port, security_group_ids=tuple(each.value.id for each in found))
    if port.name:
        await desk.take_name(draft, name_key(port), port.id, what="port", name=port.name)
    draft.write(key, port, seen=0)
    return port


async def named_groups(
    desk: Desk, names: Sequence[str], project_id: str, *, field: str
) -> list[Found[SecurityGroup]]:
    """The groups of these names, or the project's default one. Raises InvalidRequest."""
    return await groups_named(
        desk, list(names) or [await ensure_default(desk, project_id)], project_id, field=field
    )


def join(draft: Draft, groups: Sequence[Found[SecurityGroup]], port: NetworkPort) -> None:
    """Become a member. The groups are compared: none of them may end meanwhile."""
    for each in groups:
        draft.read(SECURITY_GROUP.at(port.project_id, each.value.id), each.mod_revision)
        draft.take(membership(each.value.id, port), port.project_id)


def membership(group_id: str, port: NetworkPort) -> str:
    """The key of a port's membership."""
    return SECURITY_GROUP_MEMBER.at(group_id, port.id)


def name_key(port: NetworkPort) -> str:
    """The key of the port's name; empty where it has none."""
    return PORT_NAME.at(port.project_id, port.name) if port.name else ""


async def _take_addresses(
    desk: Desk,
    draft: Draft,
    asked: Sequence[AskedAddress],
    network: Network,
    owner: str,
    seed: str,
    *,
    field: str,
) -> tuple[FixedAddress, ...]:
    subnets = await desk.subnets_of(network)
    wanted = wanted_addresses(asked, [it.value for it in subnets], field=f"{field}fixed_ips")
    taken: dict[int, FixedAddress] = {}
    # Those that are named first: else "any" might be one of them.
    for at, each in sorted(enumerate(wanted), key=lambda one: not one[1].address):
        fixed = await _free_address(desk, draft, each, seed=f"{seed}/{at}")
        draft.take(ADDRESS.at(fixed.subnet_id, fixed.address), owner)
        taken[at] = fixed
    found = tuple(taken[at] for at in range(len(wanted)))
    for subnet in subnets:
        if any(each.subnet_id == subnet.value.id for each in found):
            draft.read(SUBNET.at(subnet.value.id), subnet.mod_revision)
    return found


async def _free_address(desk: Desk, draft: Draft, wish: Wanted, *, seed: str) -> FixedAddress:
    """One that is neither taken nor about to be, by the draft itself."""
    if not wish.address:
        return await desk.holdings.free_address(wish.subnets, seed=seed, besides=draft.put)
    (subnet,) = wish.subnets
    key = ADDRESS.at(subnet.id, wish.address)
    if key in draft.put or key in (await desk.store.get(key)).entries:
        raise WrongState(f"{wish.address} of subnet {subnet.name} is in use", reason=Reason.RESOURCE_IN_USE)
    return FixedAddress(subnet_id=subnet.id, address=wish.address)


async def _take_mac(
    desk: Desk,
    draft: Draft,
    network: Network,
    owner: str,
    seed: str,
    *,
    asked: str,
    besides: frozenset[str],
) -> str:
    others = {PORT_MAC.at(network.id, each) for each in besides} | draft.put.keys()
    mac = asked or await desk.holdings.free_mac(network.id, seed=seed, besides=others)
    key = PORT_MAC.at(network.id, mac)
    if asked and key in (await desk.store.get(key)).entries:
        raise WrongState(f"MAC {mac} is in use on network {network.name}", reason=Reason.RESOURCE_IN_USE)
    draft.take(key, owner)
    return mac
