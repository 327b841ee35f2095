"""Attaching and detaching, as rules on values: what is read beside a server's record, and what is written with it.

A volume has at most one server because each attachment compares the volume's own key; an address at most one port because each slot is
taken in the host's book of claims. Both are in the one transaction that changes the record, so nothing is ever half attached.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar, cast

from fabric.api.core.accept import ref_of
from fabric.errors import Conflict, NoCapacity, NotFound, WrongState
from fabric.lifecycle.devices import (
    freed,
    is_placements_own,
    tombstone_of,
    volumes_of,
    with_port,
    with_volume,
    without_port,
    without_volume,
)
from fabric.model.host import Host, Resources, Session, SessionState, Use
from fabric.model.instance import Instance
from fabric.model.network import Network, Port
from fabric.model.volume import GuestVolume, Volume, VolumeEntry, VolumeState, trait_of
from fabric.network.addresses import mac_of, port_at, slot_limit
from fabric.store.keys import HOST, PORT_LEFT, SESSION, TOMBSTONE, USE, VOLUME, Key

_V = TypeVar("_V")

VOLUMES_LIMIT: Final = 8
"""Volumes of a server: as many as a guest has free sockets for when it boots, beside four more interfaces."""

PORTS_LIMIT: Final = 5
"""Interfaces of a server."""


Ref = tuple[Key[Any], tuple[str, ...]]
"""A kind of key, and its fields."""


@dataclass(frozen=True, slots=True)
class Known:
    """What was read, by key: each record, None where there is none, and the revision to compare."""

    records: Mapping[str, object]
    revisions: Mapping[str, int]

    def get(self, row: Key[_V], *fields: str) -> _V | None:
        """The record of a key that was read."""
        return cast("_V | None", self.records[row.at(*fields)])

    def seen(self, key: str) -> int:
        """The revision of a key that was read."""
        return self.revisions[key]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrote:
    """What goes into the transaction of the record, which is then `after`."""

    after: Instance
    unchanged: Mapping[str, int] = field(default_factory=dict)
    put: Mapping[str, object] = field(default_factory=dict)
    delete: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """Something that an action changes with the record: what must be read, and what is written of it.

    `write` is given what was read, the record with the action begun, the time and the id of the write. It raises what forbids it.
    """

    reads: Callable[[Instance], tuple[Ref, ...]]
    write: Callable[[Known, Instance, int, str], Wrote]


# -- volumes --------------------------------------------------------------------------------------


def attaching(entry: VolumeEntry, *, ends_with_instance: bool) -> Beside:
    """A volume for a server. The entry must be bound to the server's cell."""

    def reads(now: Instance) -> tuple[Ref, ...]:
        return ((VOLUME, (entry.id,)), (HOST, (now.host,)), (USE, (now.host,)))

    def write(seen: Known, now: Instance, now_ms: int, op_id: str) -> Wrote:
        guest = now.request.guest
        before = seen.get(VOLUME, entry.id) or Volume(
            id=entry.id, project_id=entry.project_id, state=VolumeState.AVAILABLE
        )
        _must_be_free(before, entry, now)
        if entry.project_id != guest.project_id:
            raise NotFound(
                f"the server's project has no volume {entry.name!r}", kind="volume", name=entry.name
            )
        if entry.directory:
            _must_share(entry, seen.get(HOST, now.host), now)
        elif before.host not in {"", now.host}:
            raise WrongState(
                f"volume {entry.name!r} is on another host than the server: a volume of local files can only be attached to servers of the"
                " host that it was first attached on",
                action="attach-volume",
                instance=now.id,
            )
        wanted = GuestVolume(
            id=entry.id, size_gib=max(entry.size_gib, before.size_gib), directory=entry.directory
        )
        if len(volumes_of(now)) >= VOLUMES_LIMIT:
            raise WrongState(
                f"the server has {VOLUMES_LIMIT} volumes, and no socket for another",
                action="attach-volume",
                instance=now.id,
            )
        if any(each.serial == wanted.serial for each in guest.volumes):
            raise Conflict("the server has a volume with the same serial number", instance=now.id)
        after = replace(
            before,
            state=VolumeState.IN_USE,
            host=now.host,
            size_gib=wanted.size_gib,
            directory=entry.directory,
            instance_id=now.id,
            ends_with_instance=ends_with_instance,
            attach_time_ms=now_ms,
            update_time_ms=now_ms,
            op_id=op_id,
        )
        unchanged = {VOLUME.at(entry.id): seen.seen(VOLUME.at(entry.id))}
        if entry.directory:
            unchanged[HOST.at(now.host)] = seen.seen(HOST.at(now.host))
        put: dict[str, object] = {VOLUME.at(entry.id): after}
        more_gib = after.claimed_gib - before.claimed_gib
        if more_gib:
            host_key, use_key = HOST.at(now.host), USE.at(now.host)
            unchanged |= {key: seen.seen(key) for key in (host_key, use_key)}
            put[use_key] = _claimed(seen.get(HOST, now.host), _use(seen, now.host), more_gib, op_id=op_id)
        image = None if entry.image is None else ref_of(entry.image)
        return Wrote(after=with_volume(now, wanted, image), unchanged=unchanged, put=put)

    return Beside(reads=reads, write=write)


def detaching(entry: VolumeEntry) -> Beside:
    """A volume no more for a server. One that the server is letting go of already is asked for once more."""

    def reads(_: Instance) -> tuple[Ref, ...]:
        return ((VOLUME, (entry.id,)),)

    def write(seen: Known, now: Instance, now_ms: int, op_id: str) -> Wrote:
        before = seen.get(VOLUME, entry.id)
        if before is None or before.instance_id != now.id:
            raise WrongState(
                f"volume {entry.name!r} is not attached to the server",
                action="detach-volume",
                instance=now.id,
            )
        if any(each.id == entry.id and each.is_root for each in now.request.guest.volumes):
            raise WrongState(
                f"volume {entry.name!r} is the disk that the server boots from: delete the server, which keeps the volume",
                action="detach-volume",
                instance=now.id,
            )
        leaving = replace(before, state=VolumeState.DETACHING, update_time_ms=now_ms, op_id=op_id)
        key = VOLUME.at(entry.id)
        return Wrote(after=without_volume(now, entry.id), unchanged={key: seen.seen(key)}, put={key: leaving})

    return Beside(reads=reads, write=write)


def ending_nowhere(hosts: Mapping[str, str]) -> Beside:
    """The end of a server that is on no host: its volumes are free at once, because the last host that it was on has let go of them, and
    those that end with it are to be removed. `hosts` are those that have the data, by the id of each of its volumes, as they were a moment
    ago; empty where none has.
    """

    def reads(_: Instance) -> tuple[Ref, ...]:
        placed = [(volume_id, host) for volume_id, host in hosts.items() if host]
        return (
            *((VOLUME, (each,)) for each in hosts),
            *((SESSION, (host,)) for host in sorted({host for _, host in placed})),
            *((TOMBSTONE, (host, volume_id)) for volume_id, host in placed),
        )

    def write(seen: Known, now: Instance, now_ms: int, op_id: str) -> Wrote:
        there = [seen.get(VOLUME, each) for each in hosts]
        # One that it was to boot from, and never had, is another's or nobody's.
        mine = [each for each in there if each is not None and each.instance_id == now.id]
        if hosts.keys() != set(volumes_of(now)) or any(each.host != hosts[each.id] for each in mine):
            raise Conflict("the server's volumes are being changed by others; try again", instance=now.id)
        unchanged: dict[str, int] = {}
        put: dict[str, object] = {}
        for before in mine:
            after = freed(before, has_ended=True, now_ms=now_ms, op_id=op_id)
            unchanged[VOLUME.at(before.id)] = seen.seen(VOLUME.at(before.id))
            put[VOLUME.at(before.id)] = after
            if after.state is VolumeState.DELETING:
                put |= buried(after, seen.get(SESSION, after.host), op_id=op_id)
                beside = (SESSION.at(after.host), TOMBSTONE.at(after.host, after.id))
                unchanged |= {key: seen.seen(key) for key in beside}
        return Wrote(after=now, unchanged=unchanged, put=put)

    return Beside(reads=reads, write=write)


def buried(volume: Volume, session: Session | None, *, op_id: str) -> Mapping[str, object]:
    """What has a volume's host remove its data; its keys are to be compared. A host that is just joining must not come up before it has
    (R8): its session is touched, so that whoever is about to say so looks once more.
    """
    put: dict[str, object] = {TOMBSTONE.at(volume.host, volume.id): tombstone_of(volume)}
    if session is not None and session.state is SessionState.JOIN:
        put[SESSION.at(volume.host)] = replace(session, op_id=op_id)
    return put


def _must_share(entry: VolumeEntry, host: Host | None, now: Instance) -> None:
    if host is None or trait_of(entry.directory) not in host.traits:
        raise WrongState(
            f"volume {entry.name!r} is in directory {entry.directory}, which the server's host does not share: it can only be attached to"
            f" servers of hosts with the trait {trait_of(entry.directory)}",
            action="attach-volume",
            instance=now.id,
        )


def _must_be_free(volume: Volume, entry: VolumeEntry, now: Instance) -> None:
    if volume.state is VolumeState.AVAILABLE:
        return
    ending = volume.state in {VolumeState.DELETING, VolumeState.DELETED}
    if ending:
        raise WrongState(f"volume {entry.name!r} is being deleted", action="attach-volume", instance=now.id)
    whose = "this server" if volume.instance_id == now.id else f"server {volume.instance_id}"
    doing = "is attached to" if volume.state is VolumeState.IN_USE else "is still being detached from"
    raise WrongState(
        f"volume {entry.name!r} {doing} {whose}; a volume has one server at a time",
        action="attach-volume",
        instance=now.id,
    )


def _claimed(host: Host | None, use: Use, more_gib: int, *, op_id: str) -> Use:
    """The host's book with room for a volume. Raises NoCapacity where there is none."""
    after = use.with_volumes(more_gib, op_id=op_id)
    if host is None or not host.capacity.covers(Resources(disk_gib=after.taken.disk_gib)):
        free_gib = 0 if host is None else max(0, host.capacity.disk_gib - use.taken.disk_gib)
        raise NoCapacity(f"the server's host has {free_gib} GiB of disk left, {more_gib} more were asked for")
    return after


def _use(seen: Known, host: str) -> Use:
    return seen.get(USE, host) or Use(host=host)


# -- interfaces -----------------------------------------------------------------------------------


def plugging_in(network: Network, port_id: str) -> Beside:
    """Another interface on a host-local network. `port_id` is the new port's."""

    def reads(now: Instance) -> tuple[Ref, ...]:
        return ((HOST, (now.host,)), (USE, (now.host,)))

    def write(seen: Known, now: Instance, _now_ms: int, op_id: str) -> Wrote:
        host, use = seen.get(HOST, now.host), _use(seen, now.host)
        if len(now.ports) >= PORTS_LIMIT:
            raise WrongState(
                f"the server has {PORTS_LIMIT} interfaces, and no socket for another",
                action="attach-interface",
                instance=now.id,
            )
        slot = None if host is None else use.free_slot(slot_limit(host))
        if host is None or slot is None:
            raise NoCapacity("the server's host has no address left to give", instance=now.id)
        request = replace(
            now.request,
            network_id=network.id,
            network_name=network.name,
            network_mtu=network.mtu,
            dns_servers=network.dns_servers,
        )
        port = replace(
            port_at(host, slot, instance_id=now.id, request=request), id=port_id, mac=mac_of(port_id, slot)
        )
        return Wrote(
            after=with_port(now, port),
            unchanged={key: seen.seen(key) for key in (HOST.at(now.host), USE.at(now.host))},
            put={USE.at(now.host): use.with_slot(slot, op_id=op_id)},
        )

    return Beside(reads=reads, write=write)


def joining(port: Port, promise: int) -> Beside:
    """Another interface on a tenant network, by a port that is bound to the server. `promise` is the revision of the work that was left
    for later should this not be written: taking it away is what says that it was.
    """
    key = PORT_LEFT.at(port.id)

    def write(seen: Known, now: Instance, _now_ms: int, _op_id: str) -> Wrote:
        if seen.seen(key) != promise:
            raise Conflict(
                "it took too long to plug the port in, and it was given back; try again", port=port.id
            )
        if len(now.ports) >= PORTS_LIMIT:
            raise WrongState(
                f"the server has {PORTS_LIMIT} interfaces, and no socket for another",
                action="attach-interface",
                instance=now.id,
            )
        if any(each.mac == port.mac for each in now.ports):
            raise Conflict(
                f"the server has another interface with the MAC {port.mac} by now", instance=now.id
            )
        return Wrote(after=with_port(now, port), unchanged={key: promise}, delete=(key,))

    return Beside(reads=lambda _: ((PORT_LEFT, (port.id,)),), write=write)


def pulling_out(word: str) -> Beside:
    """An interface no more: by its port's id, its MAC or an address."""

    def write(_: Known, now: Instance, _now_ms: int, _op_id: str) -> Wrote:
        port = _named(now.ports, word)
        if port is None:
            if any(each.port_id == word and each.is_leaving for each in now.plugs):
                return Wrote(after=now)
            raise NotFound(f"the server has no port {word!r}", kind="port", name=word)
        if is_placements_own(now, port):
            raise WrongState(
                "the server's address of its host's own network goes with the server",
                action="detach-interface",
                instance=now.id,
            )
        return Wrote(after=without_port(now, port.id))

    return Beside(reads=lambda _: (), write=write)


def _named(ports: tuple[Port, ...], word: str) -> Port | None:
    """The port of this id, MAC or address, as people may write them."""
    words = {word, word.lower()}
    with contextlib.suppress(ValueError):
        words.add(str(ipaddress.ip_address(word)))
    return next(
        (
            each
            for each in ports
            if not words.isdisjoint({each.id, each.mac, *(it.address for it in each.addresses)})
        ),
        None,
    )
