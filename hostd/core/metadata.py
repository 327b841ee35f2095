"""What a guest is told about itself, in the words cloud-init and its kin understand. Pure.

One source for the config drive and the metadata service. Formats: OpenStack's metadata (nova, doc/source/user/metadata.rst) with its
network_data.json, and the part of EC2's tree that guests without OpenStack support ask for.
"""

from __future__ import annotations

import base64
import ipaddress
import json
from collections.abc import Mapping
from typing import Any, Final

from fabric.model.instance import Guest
from fabric.model.network import Port

CONFIG_DRIVE_LABEL: Final = "config-2"
VERSIONS: Final = (
    *("2012-08-10", "2013-04-04", "2013-10-17", "2015-10-15", "2016-06-30", "2016-10-06", "2017-02-22"),
    *("2018-08-27", "2020-10-14", "latest"),
)
"""Every version of OpenStack's metadata, as nova has them. A client takes the newest that it knows: an old one knows none of the new, and
where it does not find its own it may give up before it asks for `latest`."""

# Since which version there is a file, or a field of meta_data.json; what is not named has always been there. `latest` sorts behind all.
_FILES_SINCE: Final = {
    "vendor_data.json": "2013-10-17",
    "network_data.json": "2015-10-15",
    "vendor_data2.json": "2016-10-06",
}
_FIELDS_SINCE: Final = {
    "random_seed": "2013-04-04",
    "project_id": "2015-10-15",
    "devices": "2016-06-30",
    "dedicated_cpus": "2020-10-14",
}

EC2_VERSIONS: Final = ("2009-04-04", "latest")
TOKEN_PATH: Final = "/latest/api/token"  # noqa: S105 - where tokens are asked for


def meta_data(guest: Guest, version: str = "latest", *, random_seed: bytes = b"") -> dict[str, Any]:
    """meta_data.json. `random_seed` is entropy for the guest's first boot."""
    document: dict[str, Any] = {
        "uuid": guest.id,
        "name": guest.name,
        "hostname": guest.hostname,
        "launch_index": 0,
        "availability_zone": guest.availability_zone,
        "project_id": guest.project_id,
        "meta": dict(guest.metadata),
        "public_keys": dict(guest.public_keys),
        "keys": [
            {"name": name, "type": "ssh", "data": key} for name, key in sorted(guest.public_keys.items())
        ],
        "devices": [],
        "dedicated_cpus": [],
    }
    if random_seed:
        document["random_seed"] = base64.b64encode(random_seed).decode()
    return {name: value for name, value in document.items() if version >= _FIELDS_SINCE.get(name, "")}


def network_data(ports: tuple[Port, ...]) -> dict[str, Any]:
    """network_data.json: every link by its MAC, every address static, so that a guest is reachable without DHCP too.

    To each destination there is one route: by the first address whose subnet has one, as the address of record comes first. So of each
    family there is one way out, and of several networks that have metadata one is where it is asked for.
    """
    links: list[dict[str, Any]] = []
    networks: list[dict[str, Any]] = []
    servers: dict[str, None] = {}
    led_to: set[ipaddress.IPv4Network | ipaddress.IPv6Network] = set()
    for number, port in enumerate(ports):
        servers.update(dict.fromkeys(port.dns_servers))
        links.append(
            {
                "id": f"link{number}",
                "vif_id": port.id,
                "type": "bridge",
                "mtu": port.mtu,
                "ethernet_mac_address": port.mac,
            }
        )
        for each in port.addresses:
            interface = ipaddress.ip_interface(f"{each.address}/{each.prefix_length}")
            ways = [(ipaddress.ip_network(route.destination), route.next_hop) for route in each.routes]
            if each.gateway and not any(destination.prefixlen == 0 for destination, _ in ways):
                ways.insert(0, (_EVERYTHING[interface.version], each.gateway))
            routes = [
                {"network": str(to.network_address), "netmask": str(to.netmask), "gateway": gateway}
                for to, gateway in ways
                if to not in led_to
            ]
            led_to.update(to for to, _ in ways)
            networks.append(
                {
                    "id": f"network{len(networks)}",
                    "network_id": port.network_id,
                    "link": f"link{number}",
                    "type": f"ipv{interface.version}",
                    "ip_address": str(interface.ip),
                    "netmask": str(interface.netmask),
                    "routes": routes,
                    "services": [
                        {"type": "dns", "address": server}
                        for server in port.dns_servers
                        if ipaddress.ip_address(server).version == interface.version
                    ],
                }
            )
    return {
        "links": links,
        "networks": networks,
        "services": [{"type": "dns", "address": server} for server in servers],
    }


_EVERYTHING: Final = {4: ipaddress.ip_network("0.0.0.0/0"), 6: ipaddress.ip_network("::/0")}


def documents(guest: Guest, *, random_seed: bytes = b"") -> dict[str, bytes]:
    """Every file of the config drive by its path. What is below `openstack` is what the service serves there, too."""
    files = {
        f"openstack/{version}/{name}": content
        for version in VERSIONS
        for name, content in _files(guest, version, random_seed).items()
    }
    for version in EC2_VERSIONS:
        files[f"ec2/{version}/meta-data.json"] = _json(_ec2_tree(guest))
        if guest.user_data:
            files[f"ec2/{version}/user-data"] = guest.user_data
    return files


def _files(guest: Guest, version: str, random_seed: bytes) -> dict[str, bytes]:
    files = {
        "meta_data.json": _json(meta_data(guest, version, random_seed=random_seed)),
        "network_data.json": _json(network_data(guest.ports)),
        "vendor_data.json": b"{}",
        "vendor_data2.json": b"{}",
    }
    if guest.user_data:
        files["user_data"] = guest.user_data
    return {name: content for name, content in files.items() if version >= _FILES_SINCE.get(name, "")}


def answer(guest: Guest, path: str, *, random_seed: bytes = b"") -> bytes | None:
    """What the metadata service says to its guest at `path`; None for not found."""
    parts = tuple(part for part in path.split("/") if part)
    if not parts:
        return _lines(EC2_VERSIONS)
    if parts[0] == "openstack":
        return _openstack(guest, parts[1:], random_seed)
    if parts[0] in EC2_VERSIONS:
        return _ec2(guest, parts[1:])
    return None


def _openstack(guest: Guest, parts: tuple[str, ...], random_seed: bytes) -> bytes | None:
    if not parts:
        return _lines(VERSIONS)
    if parts[0] not in VERSIONS or len(parts) > 2:
        return None
    files = _files(guest, parts[0], random_seed)
    return _lines(sorted(files)) if len(parts) == 1 else files.get(parts[1])


def _ec2(guest: Guest, parts: tuple[str, ...]) -> bytes | None:
    if not parts:
        return _lines(("meta-data/", "user-data") if guest.user_data else ("meta-data/",))
    if parts == ("user-data",):
        return guest.user_data or None
    if parts[0] != "meta-data":
        return None
    node: Any = _ec2_tree(guest)
    for part in parts[1:]:
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    if isinstance(node, str):
        return node.encode()
    if parts[1:] == ("public-keys",):
        return _lines(f"{number}={name}" for number, name in enumerate(sorted(guest.public_keys)))
    return _lines(f"{name}/" if isinstance(child, Mapping) else name for name, child in sorted(node.items()))


def _boots_from(guest: Guest) -> str:
    """The id of what the guest boots from: its image, or the volume that is its root disk."""
    if guest.image is not None:
        return guest.image.id
    return guest.root_volume.id if guest.root_volume is not None else ""


def _ec2_tree(guest: Guest) -> dict[str, Any]:
    tree: dict[str, Any] = {
        # EC2's form: i- and 17 hexadecimal digits.
        "instance-id": f"i-{guest.id.replace('-', '')[:17]}",
        "hostname": guest.hostname,
        "local-hostname": guest.hostname,
        "placement": {"availability-zone": guest.availability_zone},
        "instance-action": "none",
        "ami-launch-index": "0",
        "ami-id": f"ami-{_boots_from(guest).replace('-', '')[:17]}",
    }
    if guest.ports:
        tree["mac"] = guest.ports[0].mac
    fours = [
        each.address
        for port in guest.ports
        for each in port.addresses
        if ipaddress.ip_address(each.address).version == 4
    ]
    if fours:
        tree["local-ipv4"] = fours[0]
    if guest.public_keys:
        tree["public-keys"] = {
            str(number): {"openssh-key": key}
            for number, (_, key) in enumerate(sorted(guest.public_keys.items()))
        }
    return tree


def _lines(names: Any) -> bytes:
    return "\n".join(names).encode()


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True).encode()
