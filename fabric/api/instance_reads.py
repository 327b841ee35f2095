"""Servers as they are read: shown, listed, and their consoles.

One is read from its cell's store, a list from pictures that are brought up to now first. A cell that cannot be reached costs a list less
than a second, and its servers read as UNKNOWN with the cell named (I13).
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from fabric.api.catalogue import Catalogue
from fabric.api.cells import Cells, CellView
from fabric.api.consoles import ConsoleConductors
from fabric.api.floating_addresses import FloatingAddresses
from fabric.api.guest_access import GuestConductors
from fabric.api.instance_view import from_build, from_location, from_record
from fabric.api.pages import Pages
from fabric.api.placed import Whereabouts, find_placed
from fabric.deadlines import within
from fabric.errors import FabricError, InvalidRequest, NotFound, PermissionDenied, Unavailable
from fabric.lifecycle.table import SHOWN, UNKNOWN, shown
from fabric.model.identity import Principal
from fabric.model.instance import Build, Instance, Location
from fabric.model.network_plan import PlanState
from fabric.model.states import TaskState, VmState
from fabric.pb.common.v1 import types_pb2
from fabric.pb.compute.v1 import instance_service_pb2 as pb
from fabric.store import codec
from fabric.store.keys import BUILD, HOST, INSTANCE, LOCATION, SESSION

LOOKS = 8
"""How often a server that is between two places is looked for."""

LOOK_PAUSE_S = 0.01

LIST_CATCH_UP_S = 0.7
"""How long a list waits for one cell: less than the second within which lists answer (I13)."""

CONSOLE_LIMIT_BYTES = 100 * 1024
"""As much of a console as is ever shown (as the reference)."""

PROGRESS_TIMEOUT_S = 0.3


class Conductors(GuestConductors, ConsoleConductors, Protocol):
    """The conductors, as far as the API asks them anything. Endpoints come from hosts' session records."""

    async def console_log(self, where: Whereabouts, *, tail_bytes: int) -> bytes:
        """The end of a serial console. Raises Unavailable, NotFound."""
        ...

    async def progress(self, endpoint: str, instance_ids: Sequence[str]) -> Mapping[str, str]:
        """How far steps are, for those that have a word. Raises Unavailable."""
        ...

    async def plan_state(self, endpoint: str, host: str) -> PlanState | None:
        """How far a host has got with its network plans; None where it is told none. Raises Unavailable."""
        ...


class InstanceReads:
    """What one API server shows of servers; it keeps nothing of its own."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        cells: Cells,
        conductors: Conductors,
        pages: Pages,
        jitter: Callable[[], float],
    ) -> None:
        self._catalogue = catalogue
        self._global = catalogue.store
        self._cells = cells
        self._conductors = conductors
        self._floating = FloatingAddresses(catalogue)
        self._pages = pages
        self._jitter = jitter

    async def get_instance(
        self, request: pb.GetInstanceRequest, principal: Principal
    ) -> pb.GetInstanceResponse:
        location = await self._catalogue.location(request.instance, principal)
        instance, revision = await self.show(location, principal)
        await self._floating.add([instance], timeout_s=LIST_CATCH_UP_S)
        return pb.GetInstanceResponse(instance=instance, revision=revision)

    async def show(self, location: Location, principal: Principal) -> tuple[pb.Instance, types_pb2.Revision]:
        """The server as its cell has it now; as UNKNOWN, with the cell named, where that cannot be reached. Raises NotFound."""
        key = INSTANCE.at(location.instance_id)
        for _ in range(LOOKS):
            try:
                view = self._cells[location.cell]
                seen = await view.get(key)
            except Unavailable as away:
                return from_location(location, reason=away.message), revision_of(location.cell, 0)
            stored = seen.value(key)
            if stored is not None:
                record = codec.decode(Instance, stored)
                progress = await self._progress(view, [record])
                message = self.view(view, record, seen.seen(key), principal, progress)
                return message, revision_of(view.name, seen.revision)
            build_key = BUILD.at(location.cell, location.instance_id)
            known = await self._global.get(build_key, LOCATION.at(location.instance_id))
            build = known.value(build_key)
            if build is not None:
                return from_build(codec.decode(Build, build)), revision_of("global", known.revision)
            now = known.value(LOCATION.at(location.instance_id))
            if now is None:
                break
            # Claimed, moved or ended between the two reads; an end whose refund is due looks like this for a moment.
            location = codec.decode(Location, now)
            await asyncio.sleep(LOOK_PAUSE_S * (0.5 + self._jitter()))
        raise NotFound(f"there is no server {location.instance_id}", kind="server", name=location.instance_id)

    async def list_instances(
        self, request: pb.ListInstancesRequest, principal: Principal
    ) -> pb.ListInstancesResponse:
        if request.all_projects and not principal.system_admin:
            raise PermissionDenied("only system administrators list every project's servers", needed="system")
        if request.state and request.state not in SHOWN:
            # An empty list would say that nothing is in a state which nothing can be in.
            raise InvalidRequest(
                f"there is no state {request.state}; there are {', '.join(SHOWN)}", field="state"
            )
        catalogue = self._catalogue
        project_id = None if request.all_projects else principal.project_id
        waiting = await self._catch_up_index(project_id)
        those = (
            catalogue.locations.values()
            if project_id is None
            else catalogue.locations_by_project.of(project_id)
        )
        rows = [each for each in those if request.name in {"", each.name}]
        away = await self._catch_up_cells({each.cell for each in rows})
        # Those that waited before the cells were looked at, and those that do now: a server is never in neither.
        waiting |= self._waiting(project_id)
        # Of thousands of servers a page shows a hundred: only theirs become messages.
        kept = sorted(
            (
                each
                for each in rows
                if (word := self._word(each, away, waiting)) and request.state in {"", word}
            ),
            key=_position,
        )
        page, token = self._pages.cut(kept, request, key=_position)
        messages = [self._row(each, away, waiting, principal) for each in page]
        await self._add_progress(messages)
        await self._floating.add(messages, timeout_s=LIST_CATCH_UP_S)
        return pb.ListInstancesResponse(
            instances=messages,
            next_page_token=token,
            unreachable_cells=[
                pb.UnreachableCell(cell=name, reason=reason) for name, reason in sorted(away.items())
            ],
            revisions=[
                revision_of("global", self._catalogue.locations.picture.revision),
                *(
                    revision_of(name, view.instances.picture.revision)
                    for name, view in self._cells.by_name.items()
                    if name not in away
                ),
            ],
        )

    async def _catch_up_index(self, project_id: str | None) -> dict[str, Build]:
        """Bring the index up to now; returns what waited for a host just before then, by server. For None everybody's."""

        async def waiting() -> tuple[int, dict[str, Build]]:
            revision = await self._catalogue.builds.catch_up(timeout_s=LIST_CATCH_UP_S)
            return revision, self._waiting(project_id)

        locations = self._catalogue.locations
        (revision, found), _ = await asyncio.gather(waiting(), locations.catch_up(timeout_s=LIST_CATCH_UP_S))
        # What waits no more is then in the cell that the index names, which is looked at next.
        await locations.picture.at_least(revision, timeout_s=LIST_CATCH_UP_S)
        return found

    def _waiting(self, project_id: str | None) -> dict[str, Build]:
        builds = (
            self._catalogue.builds.values()
            if project_id is None
            else self._catalogue.builds_by_project.of(project_id)
        )
        return {each.instance_id: each for each in builds}

    async def _catch_up_cells(self, names: set[str]) -> dict[str, str]:
        """Bring the pictures of these cells up to now, all at once; returns why the others cannot be shown."""

        async def one(name: str) -> str | None:
            try:
                view = self._cells[name]
                # Whether the store answers is for the breaker to know; a picture that is late says nothing about orders to the cell.
                revision = await view.reach(functools.partial(_now, view))
                await view.instances.picture.at_least(revision, timeout_s=LIST_CATCH_UP_S)
            except Unavailable as away:
                return away.message
            return None

        ordered = sorted(names)
        reasons = await asyncio.gather(*(one(name) for name in ordered))
        return {name: why for name, why in zip(ordered, reasons, strict=True) if why is not None}

    def _word(self, location: Location, away: Mapping[str, str], waiting: Mapping[str, Build]) -> str:
        """The state that the row will show; empty for a server that has ended, of which only the refund is due."""
        if location.cell in away:
            return UNKNOWN
        held = self._cells[location.cell].instances.entries.get(INSTANCE.at(location.instance_id))
        if held is not None:
            return shown(held.value.vm_state, held.value.task)
        is_waiting = location.instance_id in waiting
        return shown(VmState.BUILDING, TaskState.SCHEDULING) if is_waiting else ""

    def _row(
        self,
        location: Location,
        away: Mapping[str, str],
        waiting: Mapping[str, Build],
        principal: Principal,
    ) -> pb.Instance:
        """A server that has a `_word`."""
        if location.cell in away:
            return from_location(location, reason=away[location.cell])
        view = self._cells[location.cell]
        held = view.instances.entries.get(INSTANCE.at(location.instance_id))
        if held is not None:
            return self.view(view, held.value, held.mod_revision, principal)
        return from_build(waiting[location.instance_id])

    async def _add_progress(self, messages: Sequence[pb.Instance]) -> None:
        """Show how far servers with a task are: every cell is asked at once, so that silent ones take no longer than one."""

        async def ask(name: str, view: CellView) -> None:
            busy = {each.id: each for each in messages if each.status.cell == name and each.status.task_state}
            records = [
                held.value
                for instance_id in busy
                if (held := view.instances.entries.get(INSTANCE.at(instance_id))) is not None
            ]
            for instance_id, word in (await self._progress(view, records)).items():
                if instance_id in busy:
                    busy[instance_id].status.progress = word

        await asyncio.gather(*(ask(name, view) for name, view in self._cells.by_name.items()))

    # ---------------------------------------------------------------- console

    async def get_console_log(
        self, request: pb.GetConsoleLogRequest, principal: Principal
    ) -> pb.GetConsoleLogResponse:
        placed = await find_placed(self._catalogue, self._cells, request.instance, principal, what="console")
        data = await self._conductors.console_log(placed.where, tail_bytes=CONSOLE_LIMIT_BYTES)
        if request.lines:
            data = b"".join(data.splitlines(keepends=True)[-request.lines :])
        return pb.GetConsoleLogResponse(output=data)

    # ---------------------------------------------------------------- parts

    def view(
        self,
        view: CellView,
        record: Instance,
        mod_revision: int,
        principal: Principal,
        progress: Mapping[str, str] | None = None,
    ) -> pb.Instance:
        """A record of a cell's as the principal may see it."""
        held = view.sessions.entries.get(SESSION.at(record.host)) if record.host else None
        placed = view.hosts.entries.get(HOST.at(record.host)) if record.host else None
        return from_record(
            record,
            cell=view.name,
            session=held.value if held is not None else None,
            zone=placed.value.zone if placed is not None else "",
            mod_revision=mod_revision,
            shows_host=principal.system_admin,
            progress=(progress or {}).get(record.id, ""),
        )

    async def _progress(self, view: CellView, records: Sequence[Instance]) -> Mapping[str, str]:
        """How far these are, for people: asked of the conductors that know, and left out where they do not answer soon."""
        by_endpoint: dict[str, list[str]] = {}
        for record in records:
            held = view.sessions.entries.get(SESSION.at(record.host)) if record.host else None
            if record.task is not TaskState.NONE and held is not None and held.value.conductor:
                by_endpoint.setdefault(held.value.conductor, []).append(record.id)

        async def ask(endpoint: str, instance_ids: Sequence[str]) -> Mapping[str, str]:
            try:
                async with within(PROGRESS_TIMEOUT_S):
                    return await self._conductors.progress(endpoint, instance_ids)
            except (TimeoutError, FabricError):
                # Whatever is wrong there: nobody is refused their servers for want of a word about them.
                return {}

        told = await asyncio.gather(*(ask(*each) for each in sorted(by_endpoint.items())))
        return {instance_id: word for each in told for instance_id, word in each.items()}


def revision_of(store: str, revision: int) -> types_pb2.Revision:
    """Which store an answer is from, and as of when."""
    return types_pb2.Revision(store=store, revision=revision)


def _position(location: Location) -> str:
    """Newest first; of one moment, by id."""
    return f"{(1 << 62) - location.create_time_ms:020d}/{location.instance_id}"


async def _now(view: CellView) -> int:
    """A cell's revision, while a list may wait for it. Raises TimeoutError, Unavailable."""
    async with within(LIST_CATCH_UP_S):
        return await view.instances.now()
