"""Interfaces of servers that are there: a port of a tenant network is bound to its server before the server's record has it.

The two are in two stores. What is left to do should this end in between is written first, in the server's cell and for later
(`port-left/<port>`); the write that gives the record the port takes it away, comparing it. See `fabric.scheduler.core.port_ends`.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

from fabric.api.catalogue import Catalogue
from fabric.api.cells import Cells, CellView
from fabric.api.core import devices
from fabric.api.core.devices import PORTS_LIMIT
from fabric.api.draft import Draft
from fabric.api.instance_ports import InstancePorts
from fabric.api.named import Found, named_by
from fabric.api.network_desk import Desk
from fabric.api.prepared import Prepared
from fabric.clock import Clock
from fabric.errors import Conflict, FabricError, InvalidRequest, NotFound, Reason, WrongState
from fabric.ids import Ids
from fabric.lifecycle.devices import tenant_ports_of
from fabric.model.host import Host
from fabric.model.identity import Principal
from fabric.model.instance import Instance, Location, PortLeft
from fabric.model.network import Network, NetworkKind, NetworkPort, Port
from fabric.observability.failpoints import NO_FAILPOINTS, Failpoints
from fabric.pb.compute.v1 import instance_service_pb2 as pb
from fabric.store.base import Committed, Txn
from fabric.store.codec import decode, encode
from fabric.store.keys import HOST, INSTANCE, LOCATION, PORT_LEFT
from fabric.store.settle import commit_settled

TRIES = 8

HOLD_MS = 60_000
"""How long after a port was bound for it a server may take to have the port, before it is given back."""

PATIENCE_S = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What is to be plugged in: a port that is there, or one that is to be made on a network."""

    principal: Principal
    port: Found[NetworkPort] | None = None
    network: Found[Network] | None = None
    request: pb.AttachInterfaceRequest


class InterfacePreparing:
    """One method for each action."""

    def __init__(
        self,
        catalogue: Catalogue,
        cells: Cells,
        desk: Desk,
        ports: InstancePorts,
        *,
        clock: Clock,
        ids: Ids,
        failpoints: Failpoints = NO_FAILPOINTS,
    ) -> None:
        self._catalogue = catalogue
        self._cells = cells
        self._desk = desk
        self._ports = ports
        self._clock = clock
        self._ids = ids
        self._failpoints = failpoints

    async def attach(self, request: pb.AttachInterfaceRequest, principal: Principal) -> Prepared:
        """What plugging an interface in takes; a port of a tenant network is bound to the server when this returns.

        Raises:
            InvalidRequest, naming the field; WrongState: the server or the port is not such that it can be; NoCapacity; QuotaExceeded;
            Conflict: others were faster, again and again; Unavailable.
        """
        if request.port and (request.network or request.fixed_ips):
            raise InvalidRequest("port contradicts network and fixed_ips: it has both", field="port")
        if not request.port and not request.network:
            network = await named_by("network", self._catalogue.network(""))
            return self._on_hosts_network(network, request)
        location = await self._catalogue.location(request.instance, principal)
        # Whoever asks: the port is the server's project's.
        whose = replace(principal, project_id=location.project_id)
        if request.port:
            port = await named_by("port", self._desk.ports.get(location.project_id, request.port))
            return await self._held(_Asked(principal=whose, port=port, request=request), location)
        found = await named_by("network", self._desk.network(request.network, whose))
        if found.value.kind is NetworkKind.HOST_LOCAL:
            return self._on_hosts_network(found.value, request)
        return await self._held(_Asked(principal=whose, network=found, request=request), location)

    async def detach(self, request: pb.DetachInterfaceRequest, principal: Principal) -> Prepared:
        """What pulling an interface out takes: a port may be named by its id, its name, its MAC or an address of its."""
        location = await self._catalogue.location(request.instance, principal)
        named = await self._desk.ports.find(location.project_id, request.port)
        is_its = named is not None and named.value.instance_id == location.instance_id
        word = named.value.id if named is not None and is_its else request.port
        return Prepared(beside=devices.pulling_out(word))

    def _on_hosts_network(self, network: Network, request: pb.AttachInterfaceRequest) -> Prepared:
        if request.fixed_ips:
            raise InvalidRequest(
                f"fixed_ips: addresses of network {network.name} are its hosts' to give", field="fixed_ips"
            )
        return Prepared(beside=devices.plugging_in(network, self._ids.new_id()))

    async def _held(self, asked: _Asked, location: Location) -> Prepared:
        """Bind the port. What is read here of the server is only what spares a bind that would be taken back."""
        promised: list[_Work] = []
        try:
            return await self._bound(asked, location, promised)
        except FabricError:
            # Of a try before this one, which did not bind the port: for as long as it is there nobody else plugs the port in.
            for work in promised[-1:]:
                await work.call_in()
            raise

    async def _bound(self, asked: _Asked, location: Location, promised: list[_Work]) -> Prepared:
        """As `_held`. What was promised meanwhile is in `promised`."""
        view = self._cells[location.cell]
        new_id = self._ids.new_id()
        for attempt in range(1, TRIES + 1):
            row_key = LOCATION.at(location.instance_id)
            row = (await self._desk.store.get(row_key)).entries.get(row_key)
            if row is None:
                raise NotFound(
                    f"there is no server {location.instance_id}", kind="server", name=location.instance_id
                )
            record = await self._record(view, location.instance_id)
            draft = Draft(attempt)
            port = await self._drafted(draft, asked, record, new_id)
            _check_free(record, port)
            before = decode(Location, row.value)
            after = replace(
                before,
                port_ids=tuple(dict.fromkeys((*before.port_ids, port.id))),
                op_id=self._ids.new_id(),
            )
            work = await self._promise(view, record, port)
            if work is None:
                continue
            promised.append(work)
            await self._failpoints.reach("api.port.promised")
            draft.write(row_key, after, seen=row.mod_revision)
            outcome = await commit_settled(
                self._desk.store,
                Txn(unchanged=draft.unchanged, put=draft.put),
                mark=row_key,
                patience_s=PATIENCE_S,
            )
            if isinstance(outcome, Committed):
                await self._failpoints.reach("api.port.bound")
                return Prepared(beside=devices.joining(port, work.revision), undo=work.call_in)
            asked = await self._again(asked)
        raise Conflict("the server or its networks are being changed by many at once; try again")

    async def _record(self, view: CellView, instance_id: str) -> Instance:
        key = INSTANCE.at(instance_id)
        stored = (await view.get(key)).value(key)
        record = None if stored is None else decode(Instance, stored)
        if record is None or not record.host:
            raise WrongState(
                "the server is on no host, and has nothing that could be plugged into",
                action="attach-interface",
                instance=instance_id,
            )
        host_key = HOST.at(record.host)
        known = (await view.get(host_key)).value(host_key)
        if known is None or not decode(Host, known).tunnel_address:
            raise WrongState(
                "the server's host takes no part in tenant networks",
                action="attach-interface",
                instance=instance_id,
            )
        return record

    async def _drafted(self, draft: Draft, asked: _Asked, record: Instance, new_id: str) -> Port:
        if asked.port is not None:
            return await self._ports.bind(
                draft, asked.port, instance_id=record.id, others=record.ports, field="port", is_again=True
            )
        assert asked.network is not None
        addresses = await self._ports.addresses(asked.request.fixed_ips, asked.principal, path="")
        return await self._ports.make(
            draft,
            asked.network,
            asked.principal,
            port_id=new_id,
            instance_id=record.id,
            addresses=addresses,
            groups=(),
            others=record.ports,
            path="",
            field="network",
        )

    async def _again(self, asked: _Asked) -> _Asked:
        """The same, as it is now."""
        if asked.port is not None:
            port = asked.port.value
            return replace(asked, port=await named_by("port", self._desk.ports.get(port.project_id, port.id)))
        assert asked.network is not None
        word = asked.network.value.id
        return replace(asked, network=await named_by("network", self._desk.network(word, asked.principal)))

    async def _promise(self, view: CellView, record: Instance, port: Port) -> _Work | None:
        """Write what is to be done should the port be bound and never plugged in; None when that has just changed.

        Another server's is left alone: without it, what that one may have bound by now would be given back by nobody.

        Raises:
            WrongState: the port is being given back, or another server is about to have it.
        """
        key = PORT_LEFT.at(port.id)
        seen = await view.get(key)
        stored = seen.value(key)
        now_ms = self._clock.now_ms()
        there = None if stored is None else decode(PortLeft, stored)
        if there is not None and there.not_before_ms > now_ms and there.instance_id != record.id:
            raise WrongState(
                f"port {port.id} is just being plugged into server {there.instance_id}",
                reason=Reason.RESOURCE_IN_USE,
                port=port.id,
                instance=there.instance_id,
            )
        if there is not None and there.not_before_ms <= now_ms:
            raise WrongState(
                f"port {port.id} is just being given back; try again",
                reason=Reason.RESOURCE_IN_USE,
                port=port.id,
            )
        left = PortLeft(
            instance_id=record.id,
            project_id=record.request.guest.project_id,
            port_id=port.id,
            not_before_ms=now_ms + HOLD_MS,
            op_id=self._ids.new_id(),
        )
        outcome = await view.commit(Txn(unchanged={key: seen.seen(key)}, put={key: encode(left)}), mark=key)
        if not isinstance(outcome, Committed):
            return None
        return _Work(view, left, outcome.revision)


@dataclass(frozen=True, slots=True)
class _Work:
    """What is promised to be done later."""

    view: CellView
    left: PortLeft
    revision: int

    async def call_in(self) -> None:
        """Have it done now. Where the cell cannot be reached, it is done later."""
        key = PORT_LEFT.at(self.left.port_id)
        txn = Txn(unchanged={key: self.revision}, put={key: encode(replace(self.left, not_before_ms=0))})
        with contextlib.suppress(FabricError):
            await self.view.change(lambda: self.view.store.commit(txn))


def _check_free(record: Instance, port: Port) -> None:
    if len(record.ports) >= PORTS_LIMIT:
        raise WrongState(
            f"the server has {PORTS_LIMIT} interfaces, and no socket for another",
            action="attach-interface",
            instance=record.id,
        )
    if port.id in tenant_ports_of(record):
        raise WrongState(
            f"the server has port {port.id} already, or has not let go of it yet",
            reason=Reason.RESOURCE_IN_USE,
            action="attach-interface",
            port=port.id,
            instance=record.id,
        )
