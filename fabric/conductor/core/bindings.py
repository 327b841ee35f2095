"""Where the ports of a cell's servers are, as every cell may know: what is to be written, from the servers' records and what is written.

A server's record says which host it is on; that is the truth, and a binding follows it. While a server moves, the host that its record
points to counts. A port is bound only while it is the server's: the port's own record says whose it is, and is compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fabric.conductor.core.draft import Found
from fabric.model.binding import PortBinding
from fabric.model.host import Host
from fabric.model.instance import Instance
from fabric.model.network import NetworkPort


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """What of a server's record its ports' bindings are made of; `ports` are (network, port), of tenant networks only."""

    instance_id: str
    host: str
    placement_epoch: int
    ports: tuple[tuple[str, str], ...]


def placed(instance: Instance) -> Placed | None:
    """Where an instance's ports are; None where it has none, or no host."""
    ports = tuple((each.network_id, each.id) for each in instance.ports if not each.is_host_local)
    if not ports or not instance.host:
        return None
    return Placed(
        instance_id=instance.id,
        host=instance.host,
        placement_epoch=instance.placement_epoch,
        ports=ports,
    )


def binding_of(placed: Placed, network_id: str, port_id: str, host: Host) -> PortBinding:
    """The binding of a server's port on a host."""
    return PortBinding(
        port_id=port_id,
        network_id=network_id,
        instance_id=placed.instance_id,
        cell=host.cell,
        host=host.name,
        tunnel_address=host.tunnel_address,
        placement_epoch=placed.placement_epoch,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One binding to write, None to take it away; and the keys to compare. Not to be mixed up: `binding` is at `key`."""

    key: str
    binding: PortBinding | None
    unchanged: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What is known of one port, read just now: its binding and its own record with their keys, and from the cell the servers that may
    have it with their hosts. `port` is None where nobody knows yet under which key to read it.
    """

    cell: str
    port_id: str
    binding_key: str
    binding: Found
    port_key: str
    port: Found | None
    instances: tuple[Instance, ...]
    hosts: Mapping[str, Host]


def write_of(read: Read) -> Write | None:
    """What to write about a port; None for nothing."""
    wanted = _wanted(read)
    found = read.binding.value
    assert found is None or isinstance(found, PortBinding)
    if wanted == found:
        return None
    compared = {read.binding_key: read.binding.revision}
    if wanted is not None and read.port is not None:
        return Write(
            key=read.binding_key, binding=wanted, unchanged={**compared, read.port_key: read.port.revision}
        )
    # Those of other cells are theirs to take away; and one that a server still says it has only goes with the port's own record.
    if found is None or found.cell != read.cell or (read.port is None and _is_said(read)):
        return None
    return Write(key=read.binding_key, binding=None, unchanged=compared)


def _wanted(read: Read) -> PortBinding | None:
    port = None if read.port is None else read.port.value
    if not isinstance(port, NetworkPort):
        return None
    for instance in read.instances:
        at = placed(instance)
        if at is None or instance.id != port.instance_id or at.host not in read.hosts:
            continue
        if (port.network_id, port.id) in at.ports:
            return binding_of(at, port.network_id, port.id, read.hosts[at.host])
    return None


def _is_said(read: Read) -> bool:
    found = (placed(each) for each in read.instances)
    return any(port_id == read.port_id for each in found if each is not None for _, port_id in each.ports)
