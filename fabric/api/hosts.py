"""HostService: what administrators approve of hosts, in each host's own cell, and what is known of them.

A host is written by nobody but an administrator: what it may take, where it stands, which certificate it may come with. Everything else is
what the fabric has seen of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from fabric.api.cells import Cells, CellView
from fabric.api.convert import host_message
from fabric.api.named import absent, readable
from fabric.api.once import Change, Once
from fabric.api.pages import Pages
from fabric.clock import Clock
from fabric.deadlines import within
from fabric.errors import AlreadyExists, Bug, Conflict, InvalidRequest, Reason, Unavailable, WrongState
from fabric.model.host import Host, HostReport, Resources, Session, Use
from fabric.model.identity import Principal
from fabric.network.core.host_local import check_guest_cidr
from fabric.network.core.underlay import check_tunnel_address
from fabric.pb.compute.v1 import host_service_pb2 as pb
from fabric.store.base import Snapshot
from fabric.store.codec import decode, encode
from fabric.store.keys import ACTED, HOST, REPORT, SESSION, USE

log = structlog.get_logger()

LIST_PATIENCE_S = 0.8
"""How long a list waits for a cell before it is named as unreachable: lists answer within a second (I13)."""

WRITE_PATIENCE_S = 1.5


class HostHandlers:
    """The RPCs, as functions of a request and who asks."""

    def __init__(self, cells: Cells, *, clock: Clock, jitter: Callable[[], float]) -> None:
        self._cells = cells
        self._once = {
            name: Once(view.store, clock=clock, jitter=jitter, kind=ACTED, patience_s=WRITE_PATIENCE_S)
            for name, view in cells.by_name.items()
        }
        self._pages = Pages()
        self._clock = clock

    async def get_host(self, request: pb.GetHostRequest, principal: Principal) -> pb.GetHostResponse:
        if request.cell:
            return pb.GetHostResponse(host=await self._show(self._view(request.cell, "cell"), request.host))
        hosts, away = await self._everywhere(lambda view: _named(view, request.host))
        if not hosts and away:
            raise Unavailable(
                f"no reachable cell has a host {request.host!r}; not reachable: {', '.join(away)}",
                reason=Reason.CELL_UNAVAILABLE,
                cell=away[0],
            )
        if not hosts:
            raise absent("host", request.host)
        if len(hosts) > 1:
            cells = ", ".join(sorted(host.cell for host in hosts))
            raise InvalidRequest(
                f"several cells have a host {request.host!r}; say which: {cells}",
                field="cell",
                reason=Reason.NAME_AMBIGUOUS,
            )
        return pb.GetHostResponse(host=hosts[0])

    async def list_hosts(self, request: pb.ListHostsRequest, principal: Principal) -> pb.ListHostsResponse:
        hosts, away = await self._everywhere(_all_hosts)
        page, token = self._pages.cut(sorted(hosts, key=_position), request, key=_position)
        return pb.ListHostsResponse(hosts=page, next_page_token=token, unreachable_cells=away)

    async def create_host(self, request: pb.CreateHostRequest, principal: Principal) -> pb.CreateHostResponse:
        asked = request.host
        slots = check_guest_cidr(asked.spec.guest_cidr, field="host.spec.guest_cidr")
        view = self._view(asked.cell, "host.cell")

        async def decide() -> Change:
            now_ms = self._clock.now_ms()
            host = _host(asked, slots=slots, create_time_ms=now_ms, update_time_ms=now_ms)
            key = HOST.at(host.name)
            if key in (await view.store.get(key)).entries:
                raise AlreadyExists(f"cell {host.cell} has a host {host.name!r} already", name=host.name)
            return Change(resource_id=host.name, unchanged={key: 0}, put={key: encode(host)})

        await view.change(lambda: self._once[view.name].answer(decide, request, principal))
        return pb.CreateHostResponse(host=await self._show(view, asked.name))

    async def update_host(self, request: pb.UpdateHostRequest, principal: Principal) -> pb.UpdateHostResponse:
        asked = request.host
        slots = check_guest_cidr(asked.spec.guest_cidr, field="host.spec.guest_cidr")
        view = self._view(asked.cell, "host.cell")

        async def decide() -> Change:
            key, use_key = HOST.at(asked.name), USE.at(asked.name)
            seen = await view.store.get(key, use_key)
            stored = seen.value(key)
            if stored is None:
                raise absent("host", asked.name)
            if request.etag not in {"", str(seen.seen(key))}:
                raise Conflict(
                    f"the host has changed since its etag was {request.etag}; read it again",
                    host=asked.name,
                    etag=str(seen.seen(key)),
                )
            now = decode(Host, stored)
            after = _host(
                asked, slots=slots, create_time_ms=now.create_time_ms, update_time_ms=self._clock.now_ms()
            )
            unchanged = {key: seen.seen(key)}
            if after.guest_cidr != now.guest_cidr:
                _check_empty(seen, use_key, asked.name)
                unchanged[use_key] = seen.seen(use_key)
            return Change(resource_id=asked.name, unchanged=unchanged, put={key: encode(after)})

        await view.change(lambda: self._once[view.name].answer(decide, request, principal))
        return pb.UpdateHostResponse(host=await self._show(view, asked.name))

    # ------------------------------------------------------------------ reading

    def _view(self, cell: str, field: str) -> CellView:
        view = self._cells.by_name.get(cell)
        if view is None:
            raise InvalidRequest(
                f"there is no cell {cell!r}; there are {', '.join(self._cells.by_name)}", field=field
            )
        return view

    async def _show(self, view: CellView, name: str) -> pb.Host:
        found = await view.reach(lambda: _one_host(view, name))
        if found is None:
            raise absent("host", name)
        return found

    async def _everywhere(
        self, read: Callable[[CellView], Awaitable[list[pb.Host]]]
    ) -> tuple[list[pb.Host], list[str]]:
        """What every cell says, and the names of those that say nothing in time."""

        async def ask(view: CellView) -> list[pb.Host] | None:
            try:
                async with within(LIST_PATIENCE_S):
                    return await view.reach(lambda: read(view))
            except (TimeoutError, Unavailable):
                return None

        views = list(self._cells.by_name.values())
        answers = await asyncio.gather(*(ask(view) for view in views))
        away = [view.name for view, answer in zip(views, answers, strict=True) if answer is None]
        return [host for answer in answers for host in answer or ()], away


async def _one_host(view: CellView, name: str) -> pb.Host | None:
    seen = await view.store.get(HOST.at(name), SESSION.at(name), USE.at(name), REPORT.at(name))
    return _shown(seen, name)


async def _named(view: CellView, name: str) -> list[pb.Host]:
    found = await _one_host(view, name)
    return [] if found is None else [found]


async def _all_hosts(view: CellView) -> list[pb.Host]:
    hosts = await view.store.list(HOST.under())
    # The rest is read after, so that none of it is older than the host it belongs to; hosts are few, so is the rest.
    rest = [await view.store.list(kind.under()) for kind in (SESSION, USE, REPORT)]
    entries = {key: entry for snapshot in (hosts, *rest) for key, entry in snapshot.entries.items()}
    seen = Snapshot(hosts.revision, entries)
    shown = (_readable(seen, each.value.name) for each in readable(Host, hosts))
    return [each for each in shown if each is not None]


def _readable(seen: Snapshot, name: str) -> pb.Host | None:
    """As `_shown`; None for a host of which something does not parse, which must not hide all the others."""
    try:
        return _shown(seen, name)
    except Bug as broken:
        log.error("host.undecodable", host=name, why=broken.message)
        return None


def _shown(seen: Snapshot, name: str) -> pb.Host | None:
    """A host as a snapshot of its keys has it."""
    host = seen.value(HOST.at(name))
    if host is None:
        return None
    session, use, report = (seen.value(kind.at(name)) for kind in (SESSION, USE, REPORT))
    return host_message(
        decode(Host, host),
        seen.seen(HOST.at(name)),
        session=None if session is None else decode(Session, session),
        use=None if use is None else decode(Use, use),
        report=None if report is None else decode(HostReport, report),
    )


def _host(asked: pb.Host, *, slots: int, create_time_ms: int, update_time_ms: int) -> Host:
    """The record of what was asked. Raises InvalidRequest for a tunnel address that is none."""
    spec = asked.spec
    return Host(
        name=asked.name,
        cell=asked.cell,
        zone=spec.availability_zone,
        capacity=Resources(vcpus=spec.vcpus, ram_mib=spec.ram_mib, disk_gib=spec.disk_gib),
        traits=tuple(dict.fromkeys(spec.traits)),
        enabled=not spec.disabled,
        disabled_reason=spec.disabled_reason,
        cert_serial=spec.cert_serial,
        guest_cidr=spec.guest_cidr,
        slots=slots,
        create_time_ms=create_time_ms,
        update_time_ms=update_time_ms,
        tunnel_address=check_tunnel_address(spec.tunnel_address, field="host.spec.tunnel_address"),
        physical_networks=tuple(dict.fromkeys(spec.physical_networks)),
    )


def _check_empty(seen: Snapshot, use_key: str, name: str) -> None:
    """Guests keep the addresses they were given, so a subnet changes on an empty host only."""
    use = seen.value(use_key)
    instances = 0 if use is None else decode(Use, use).instances
    if instances:
        raise WrongState(
            f"host {name} has {instances} servers with addresses of its subnet; move or delete them first",
            reason=Reason.RESOURCE_IN_USE,
            host=name,
        )


def _position(host: pb.Host) -> str:
    return f"{host.cell}/{host.name}"
