"""fabric.compute.v1.InstanceEventService: what was done to servers, and what changes about them as it happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fabric.api.catalogue import Catalogue
from fabric.api.cells import Cells, CellView
from fabric.api.instance_view import timestamp
from fabric.api.watching import Watching
from fabric.deadlines import within
from fabric.errors import NotFound, Unavailable
from fabric.ids import is_id
from fabric.lifecycle.events import accepted, written_down
from fabric.model.event import Event, EventStep, Outcome
from fabric.model.faults import FAULT_TEXT
from fabric.model.identity import Principal
from fabric.model.instance import Build, Instance, Location
from fabric.pb.compute.v1 import instance_event_service_pb2 as pb
from fabric.store import codec
from fabric.store.keys import BUILD, EVENT, INSTANCE

LOOK_UP_S = 0.7
"""How long one cell may take to say what it knows of a server that is gone: as long as a list waits for it."""


class InstanceEventHandlers:
    """One object for each process."""

    def __init__(self, *, catalogue: Catalogue, cells: Cells, watching: Watching) -> None:
        self._catalogue = catalogue
        self._cells = cells
        self._watching = watching

    async def list_instance_events(
        self, request: pb.ListInstanceEventsRequest, principal: Principal
    ) -> pb.ListInstanceEventsResponse:
        events = await self._events(request.instance, principal)
        messages = [_message(each, shows_host=principal.system_admin) for each in events]
        for each in messages:
            del each.steps[:]
        return pb.ListInstanceEventsResponse(events=messages)

    async def get_instance_event(
        self, request: pb.GetInstanceEventRequest, principal: Principal
    ) -> pb.GetInstanceEventResponse:
        for event in await self._events(request.instance, principal):
            if event.request_id == request.request_id:
                return pb.GetInstanceEventResponse(event=_message(event, shows_host=principal.system_admin))
        raise NotFound(
            f"server {request.instance} has no action with the request id {request.request_id}",
            kind="event",
            name=request.request_id,
        )

    def watch_instances(
        self, request: pb.WatchInstancesRequest, principal: Principal
    ) -> AsyncIterator[pb.WatchInstancesResponse]:
        return self._watching.news(request, principal)

    # ---------------------------------------------------------------- parts

    async def _events(self, word: str, principal: Principal) -> list[Event]:
        """The server's actions, newest first. Raises NotFound, and Unavailable where a cell that may know cannot be reached."""
        try:
            location = await self._catalogue.location(word, principal)
        except NotFound:
            if not is_id(word):
                raise
            events = await self._left(word, principal)
            if not events:
                raise
            return events
        view = self._cells[location.cell]
        return (
            await self._known(view, location.instance_id)
            or await self._unclaimed(location)
            # Claimed between the two.
            or await self._known(view, location.instance_id)
        )

    async def _known(self, view: CellView, instance_id: str) -> list[Event]:
        """What the cell knows: of the latest action and of devices on their way its record, of the earlier ones their own keys."""
        key = INSTANCE.at(instance_id)
        stored = (await view.get(key)).value(key)
        # After the record: an action that it leaves behind meanwhile is then among them.
        earlier = await view.reach(lambda: view.store.list(EVENT.under(instance_id)))
        carried = () if stored is None else written_down(codec.decode(Instance, stored))
        kept = [codec.decode(Event, entry.value) for entry in earlier.entries.values()]
        events = {event.seq: event for event in (*carried, *kept)}
        return [events[seq] for seq in sorted(events, reverse=True)]

    async def _unclaimed(self, location: Location) -> list[Event]:
        key = BUILD.at(location.cell, location.instance_id)
        stored = (await self._catalogue.store.get(key)).value(key)
        if stored is None:
            return []
        return [accepted(codec.decode(Build, stored))]

    async def _left(self, instance_id: str, principal: Principal) -> list[Event]:
        """The actions on a server that is gone, whichever cell it was in."""

        async def ask(view: CellView) -> list[Event] | None:
            try:
                async with within(LOOK_UP_S):
                    return await self._known(view, instance_id)
            except (TimeoutError, Unavailable):
                return None

        views = list(self._cells.by_name.values())
        answers = await asyncio.gather(*(ask(view) for view in views))
        events = [
            event
            for answer in answers
            for event in answer or ()
            if principal.system_admin or event.project_id == principal.project_id
        ]
        if not events:
            for view, answer in zip(views, answers, strict=True):
                if answer is None:
                    raise view.away()
        return events


def _message(event: Event, *, shows_host: bool) -> pb.InstanceEvent:
    return pb.InstanceEvent(
        instance_id=event.instance_id,
        request_id=event.request_id,
        action=event.action,
        project_id=event.project_id,
        user_id=event.user_id,
        start_time=timestamp(event.start_ms),
        finish_time=timestamp(event.finish_ms),
        result=event.outcome.name.lower(),
        fault_code=event.fault_code,
        message=event.message,
        steps=[_step(each, shows_host=shows_host) for each in event.steps],
    )


def _step(step: EventStep, *, shows_host: bool) -> pb.InstanceEventStep:
    outcome = Outcome.FAILED if step.fault_code else Outcome.DONE
    return pb.InstanceEventStep(
        name=step.name.name.lower(),
        start_time=timestamp(step.start_ms),
        finish_time=timestamp(step.finish_ms),
        # Tenants do not learn where their neighbours are.
        host=step.host if shows_host else "",
        result=outcome.name.lower(),
        fault_code=step.fault_code,
        details=_DETAILS.get(step.fault_code, ""),
    )


_DETAILS = {code.value: text for code, text in FAULT_TEXT.items()}
