"""Ports of tenant networks: what must hold of them, of the servers that have them, and of what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from fabric.lifecycle.devices import tenant_ports_of
from fabric.model.instance import Instance, Location
from fabric.model.network import NetworkPort
from fabric.store import codec, keys

_HELD = ("address", "port-mac", "security-group-member", "network-use")
"""Kinds of keys that ports hold. Others may hold them too."""


@dataclass(slots=True)
class Ports:
    """The ports of the global store, and the keys that are held there, as they are written."""

    by_id: dict[str, NetworkPort] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)
    bound: set[str] = field(default_factory=set)
    """The ids of those that are said to be on a host."""
    _touched: set[str] = field(default_factory=set)
    _servers: set[str] = field(default_factory=set)
    _had: dict[str, NetworkPort] = field(default_factory=dict)

    def wrote(self, key: str, after: bytes | None) -> None:
        """A key of the global store, as it is now."""
        kind, _, rest = key.partition("/")
        if kind == "port":
            port_id = rest.partition("/")[2]
            before = self.by_id.pop(port_id, None)
            if before is not None:
                self._had[port_id] = before
                self._servers.add(before.instance_id)
            if after is not None:
                self.by_id[port_id] = codec.decode(NetworkPort, after)
                self._servers.add(self.by_id[port_id].instance_id)
            self._touched.add(port_id)
        elif kind == "location":
            self._servers.add(rest)
        elif kind == "port-binding":
            port_id = rest.partition("/")[2]
            (self.bound.discard if after is None else self.bound.add)(port_id)
        elif kind in _HELD:
            self.held.pop(key, None)
            if after is not None:
                self.held[key] = after.decode()

    def has_record(self, record: Instance) -> None:
        """A server's record has changed."""
        self._servers.add(record.id)
        self._touched.update(tenant_ports_of(record))

    def wrong(self, locations: Mapping[str, Location], records: Mapping[str, Instance] | None) -> str | None:
        """The first disagreement among what has changed since the last time, in words.

        `records` are those of all cells, where what holds between stores can be judged.
        """
        touched, servers, had = self._touched, self._servers - {""}, self._had
        self._touched, self._servers, self._had = set(), set(), {}
        for port_id in sorted(touched):
            port = self.by_id.get(port_id)
            if port is not None:
                missing = [key for key in _keys(port) if self.held.get(key) != _owner(key, port)]
                if missing:
                    return f"P1 port {port_id} does not hold {missing[0]}"
            kept = set() if port is None else set(_keys(port))
            for key in _keys(had[port_id]) if port_id in had else ():
                if key not in kept and self.held.get(key) == _owner(key, had[port_id]):
                    return f"P1 {key} is held by port {port_id}, which has it no more"
        for instance_id in sorted(servers):
            named = set(locations[instance_id].port_ids) if instance_id in locations else set()
            bound = {each.id for each in self.by_id.values() if each.instance_id == instance_id}
            if named != bound:
                return f"P2 {instance_id} holds {sorted(named)}, and {sorted(bound)} are bound to it"
            record = None if records is None else records.get(instance_id)
            for port_id in () if record is None else tenant_ports_of(record):
                if port_id not in bound:
                    return f"P3 {instance_id} has port {port_id}, which is not its own"
        return None

    def unsettled(self, records: Mapping[str, Instance]) -> str | None:
        """The first thing that is held for nobody once everything is quiet, in words."""
        for port in self.by_id.values():
            record = records.get(port.instance_id)
            if port.instance_id and (record is None or port.id not in tenant_ports_of(record)):
                return f"P4 port {port.id} is bound to {port.instance_id}, which has it not"
        mine = {key for port in self.by_id.values() for key in _keys(port)}
        ours = {f"port/{port.project_id}/{port.id}" for port in self.by_id.values()}
        for key, owner in self.held.items():
            if owner.startswith("port/") and (owner not in ours or key not in mine):
                return f"P4 {key} is held by {owner}, which is not there or has it not"
        return None


def _keys(port: NetworkPort) -> Iterator[str]:
    for fixed in port.fixed_addresses:
        yield keys.ADDRESS.at(fixed.subnet_id, fixed.address)
    yield keys.PORT_MAC.at(port.network_id, port.mac)
    for group in port.security_group_ids:
        yield keys.SECURITY_GROUP_MEMBER.at(group, port.id)
    if port.quota_slot:
        yield keys.NETWORK_USE.at(port.project_id, "ports", str(port.quota_slot))


def _owner(key: str, port: NetworkPort) -> str:
    if key.startswith("security-group-member/"):
        return port.project_id
    return port.id if key.startswith("network-use/") else f"port/{port.project_id}/{port.id}"
