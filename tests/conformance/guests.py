"""Guests for tests: whole, small, and different in what a test says."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

from fabric.model.firewall import Direction, EtherType, FilterRule, HostFilters, PortFilter, RuleGroup
from fabric.model.image import ImageFormat
from fabric.model.instance import Guest, ImageRef
from fabric.model.network import Port, PortAddress
from fabric.model.network_plan import NetworkPlan, PlannedNetwork, PlannedSubnet
from hostd.core.tap_names import tap_name

NAMESPACE = uuid.UUID("00000000-0000-4000-8000-00000000c0de")


def an_id(word: str) -> str:
    """The same UUID for the same word."""
    return str(uuid.uuid5(NAMESPACE, word))


def an_image(content: bytes, **changes: Any) -> ImageRef:
    """A raw image of these bytes."""
    fields: dict[str, Any] = {
        "id": an_id("image"),
        "name": "image",
        "format": ImageFormat.RAW,
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content),
        "virtual_size_bytes": len(content),
    }
    return ImageRef(**fields | changes)


def a_port(number: int = 1, **changes: Any) -> Port:
    """A port with the subnet's address of that number."""
    fields: dict[str, Any] = {
        "id": an_id(f"port {number}"),
        "network_id": an_id("network"),
        "network_name": "default",
        "mac": f"fa:16:3e:00:00:{number:02x}",
        "address": f"10.77.0.{number + 1}",
        "prefix_length": 24,
        "gateway": "10.77.0.1",
        "mtu": 1500,
        "dns_servers": ("192.0.2.53",),
    }
    return Port(**fields | changes)


def a_tenant_port(number: int = 1, **changes: Any) -> Port:
    """A port with addresses of that number in both families, on a tenant network."""
    fields: dict[str, Any] = {
        "id": an_id(f"tenant port {number}"),
        "network_id": an_id("tenant network"),
        "network_name": "private",
        "mac": f"fa:16:3e:01:00:{number:02x}",
        "address": f"10.0.0.{number + 10}",
        "prefix_length": 24,
        "gateway": "10.0.0.1",
        "mtu": 1450,
        "dns_servers": ("192.0.2.53",),
        "vni": 100,
        "further": (
            PortAddress(
                address=f"fd00::{number + 0x10:x}",
                prefix_length=64,
                gateway="fd00::1",
            ),
        ),
    }
    return Port(**fields | changes)


def a_plan(*guests: Guest, group: RuleGroup | None = None, **changes: Any) -> NetworkPlan:
    """A plan for these guests' tenant ports on a host: their networks without neighbours, everything let through."""
    group = group or everything()
    ports = [(guest, port) for guest in guests for port in guest.ports if port.vni]
    fields: dict[str, Any] = {
        "networks": tuple(
            {
                port.network_id: PlannedNetwork(
                    id=port.network_id,
                    vni=port.vni,
                    mtu=port.mtu,
                    subnets=(
                        PlannedSubnet(
                            id=an_id(f"{port.network_id} v4"),
                            cidr="10.0.0.0/24",
                            gateway="10.0.0.1",
                            service_address="10.0.0.2",
                        ),
                        PlannedSubnet(
                            id=an_id(f"{port.network_id} v6"),
                            cidr="fd00::/64",
                            gateway="fd00::1",
                            service_address="fd00::2",
                        ),
                    ),
                )
                for _, port in ports
            }.values()
        ),
        "filters": HostFilters(
            ports=tuple(
                PortFilter(
                    port_id=port.id,
                    instance_id=guest.id,
                    network_id=port.network_id,
                    tap=tap_name(port.id),
                    mac=port.mac,
                    addresses=tuple(each.address for each in port.addresses),
                    groups=(group.id,),
                )
                for guest, port in ports
            ),
            groups=(group,) if ports else (),
        ),
    }
    return NetworkPlan(**fields | changes)


def everything() -> RuleGroup:
    """A group that lets all of both families in and out."""
    return RuleGroup(
        id="everything",
        rules=frozenset(
            FilterRule(direction=direction, ether_type=ether_type)
            for direction in Direction
            for ether_type in EtherType
        ),
    )


def a_guest(word: str = "guest", **changes: Any) -> Guest:
    """A guest of 1 vCPU, 64 MiB and 1 GiB."""
    fields: dict[str, Any] = {
        "id": an_id(word),
        "name": word,
        "hostname": word,
        "project_id": an_id("project"),
        "user_id": an_id("user"),
        "vcpus": 1,
        "ram_mib": 64,
        "disk_gib": 1,
        "image": an_image(b"\0" * 4096),
    }
    return Guest(**fields | changes)
