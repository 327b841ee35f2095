"""The books of the network's model: every key that holds something follows from a record, and every record holds what it says.

Whatever was done, lost or raced for before: a key too many has leaked, and one too few will be given twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network
from itertools import combinations
from typing import Any, TypeVar

from fabric.model.network import FloatingIp, Network, NetworkKind, NetworkPort, Router, Subnet
from fabric.model.security_group import SecurityGroup
from fabric.store import keys
from fabric.store.base import Store
from fabric.store.codec import decode
from fabric.store.keys import Key

V = TypeVar("V")

RECORDS: tuple[Key[Any], ...] = (
    keys.NETWORK,
    keys.SUBNET,
    keys.PORT,
    keys.ROUTER,
    keys.FLOATING_IP,
    keys.SECURITY_GROUP,
)
HELD: tuple[Key[str], ...] = (
    keys.NETWORK_NAME,
    keys.PROJECT_NETWORK_NAME,
    keys.VNI,
    keys.SUBNET_NAME,
    keys.ADDRESS,
    keys.PORT_MAC,
    keys.PORT_NAME,
    keys.ROUTER_NAME,
    keys.ROUTER_FLOATING_IP,
    keys.SECURITY_GROUP_NAME,
    keys.SECURITY_GROUP_MEMBER,
    keys.SECURITY_GROUP_REFERRER,
    keys.NETWORK_USE,
)


async def check(store: Store) -> dict[str, list[Any]]:
    """Every record by the name of its key's template, after everything that is held was found to be right."""
    found = {key.template: await _records(store, key) for key in RECORDS}
    expected: dict[str, str] = {}
    for kind in found.values():
        for record in kind:
            for key, value in _held(record):
                assert key not in expected, f"{key} is held by {expected[key]} and {value}"
                expected[key] = value
    actual = {
        name: entry.value.decode()
        for key in HELD
        for name, entry in (await store.list(key.under())).entries.items()
    }
    assert actual == expected
    _check_references(found)
    return found


async def _records(store: Store, key: Key[V]) -> list[V]:
    entries = (await store.list(key.under())).entries.values()
    return [decode(key.record, entry.value) for entry in entries]


def _held(record: Any) -> Iterator[tuple[str, str]]:
    match record:
        case Network():
            if record.kind is NetworkKind.HOST_LOCAL or record.kind is NetworkKind.EXTERNAL or record.shared:
                yield keys.NETWORK_NAME.at(record.name), record.id
            if record.kind is not NetworkKind.HOST_LOCAL:
                yield keys.PROJECT_NETWORK_NAME.at(record.project_id, record.name), record.id
            if record.kind is NetworkKind.TENANT:
                yield keys.VNI.at(str(record.vni)), record.id
            yield from _slot(record, "networks")
        case Subnet():
            yield keys.SUBNET_NAME.at(record.project_id, record.name), record.id
            yield from _slot(record, "subnets")
        case NetworkPort():
            owner = keys.PORT.at(record.project_id, record.id)
            yield keys.PORT_MAC.at(record.network_id, record.mac), owner
            for fixed in record.fixed_addresses:
                yield keys.ADDRESS.at(fixed.subnet_id, fixed.address), owner
            for group in record.security_group_ids:
                yield keys.SECURITY_GROUP_MEMBER.at(group, record.id), record.project_id
            if record.name:
                yield keys.PORT_NAME.at(record.project_id, record.name), record.id
            yield from _slot(record, "ports")
        case Router():
            owner = keys.ROUTER.at(record.project_id, record.id)
            yield keys.ROUTER_NAME.at(record.project_id, record.name), record.id
            yield keys.VNI.at(str(record.vni)), record.id
            for interface in record.interfaces:
                yield keys.PORT_MAC.at(interface.network_id, interface.mac), owner
                yield keys.ADDRESS.at(interface.subnet_id, interface.address), owner
            for fixed in record.external_addresses:
                yield keys.ADDRESS.at(fixed.subnet_id, fixed.address), owner
            if record.external_network_id:
                yield keys.PORT_MAC.at(record.external_network_id, record.external_mac), owner
            yield from _slot(record, "routers")
        case FloatingIp():
            owner = keys.FLOATING_IP.at(record.project_id, record.id)
            yield keys.ADDRESS.at(record.subnet_id, record.address), owner
            if record.port_id:
                yield (
                    keys.ROUTER_FLOATING_IP.at(record.router_id, record.fixed_subnet_id, record.id),
                    record.id,
                )
            yield from _slot(record, "floating_ips")
        case SecurityGroup():
            yield keys.SECURITY_GROUP_NAME.at(record.project_id, record.name), record.id
            for rule in record.rules:
                if rule.remote_group_id not in {"", record.id}:
                    yield keys.SECURITY_GROUP_REFERRER.at(rule.remote_group_id, rule.id), record.id
            yield from _slot(record, "security_groups")


def _slot(record: Any, kind: str) -> Iterator[tuple[str, str]]:
    if record.quota_slot:
        yield keys.NETWORK_USE.at(record.project_id, kind, str(record.quota_slot)), record.id


def _check_references(found: dict[str, list[Any]]) -> None:
    """Nothing names what is not there."""
    networks = {each.id: each for each in found[keys.NETWORK.template]}
    subnets = {each.id: each for each in found[keys.SUBNET.template]}
    ports = {each.id: each for each in found[keys.PORT.template]}
    routers = {each.id: each for each in found[keys.ROUTER.template]}
    floating_ips = {each.id: each for each in found[keys.FLOATING_IP.template]}
    groups = {each.id: each for each in found[keys.SECURITY_GROUP.template]}
    assert {id_ for each in networks.values() for id_ in each.subnet_ids} == set(subnets)
    assert all(each.id in networks[each.network_id].subnet_ids for each in subnets.values())
    for network in networks.values():
        ranges = [ip_network(subnets[each].cidr) for each in network.subnet_ids]
        assert not any(a.version == b.version and a.overlaps(b) for a, b in combinations(ranges, 2))
    for port in ports.values():
        network = networks[port.network_id]
        assert network.shared or network.project_id == port.project_id
        assert all(subnets[each.subnet_id].network_id == port.network_id for each in port.fixed_addresses)
        assert all(groups[each].project_id == port.project_id for each in port.security_group_ids)
        for address, floating_ip in port.floating_ips.items():
            assert floating_ips[floating_ip].port_id == port.id
            assert floating_ips[floating_ip].fixed_address == address
    for floating_ip in floating_ips.values():
        assert floating_ip.network_id in networks
        if floating_ip.port_id:
            port, router = ports[floating_ip.port_id], routers[floating_ip.router_id]
            assert port.floating_ips[floating_ip.fixed_address] == floating_ip.id
            assert router.external_network_id == floating_ip.network_id
            assert floating_ip.fixed_subnet_id in {each.subnet_id for each in router.interfaces}
    for router in routers.values():
        assert all(each.subnet_id in subnets for each in router.interfaces)
        assert router.external_network_id in {"", *networks}
    for group in groups.values():
        assert all(rule.remote_group_id in {"", *groups} for rule in group.rules)
