"""fabric.compute.v1.InstanceService: unpack, decide, commit, pack. What is decided is in `fabric/api/core`."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from google.protobuf.message import Message

from fabric.api.catalogue import Catalogue
from fabric.api.cells import Cells, CellView
from fabric.api.core.accept import REQUEST_ID_KEPT_MS, Asked, admission, charge_of, first_cell, request_for
from fabric.api.core.intent import DEFAULT_STOP_TIMEOUT_S, Intent, cancelled, keys_of, replayed, written
from fabric.api.instance_view import from_build, from_location, from_record
from fabric.api.pages import Pages
from fabric.api.records import found, txn_of
from fabric.clock import Clock
from fabric.errors import (
    Conflict,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    Reason,
    Unavailable,
    WrongState,
)
from fabric.ids import Ids
from fabric.model.host import CellCapacity
from fabric.model.identity import Principal
from fabric.model.image import Image
from fabric.model.instance import Answered, Build, Instance, Location, Request
from fabric.model.quota import Quota
from fabric.model.states import Action, TaskState
from fabric.pb.common.v1 import types_pb2
from fabric.pb.compute.v1 import instance_service_pb2 as pb
from fabric.quota.core import charge
from fabric.quota.ledger import Ledger
from fabric.store import codec
from fabric.store.base import Refused, Store
from fabric.store.keys import (
    ACTED,
    ANSWERED,
    ASSIGNMENT,
    BUILD,
    HOST,
    INSTANCE,
    LOCATION,
    QUOTA,
    SESSION,
    Key,
)
from fabric.store.settle import commit_settled

T = TypeVar("T")

TRIES = 8
"""How often a write that lost a race is decided anew."""

LIST_CATCH_UP_S = 0.7
"""How long a list waits for one cell: less than the second within which lists answer (I13)."""

CONSOLE_LIMIT_BYTES = 100 * 1024
"""As much of a console as is ever shown (as the reference)."""

PROGRESS_TIMEOUT_S = 0.3


class Conductors(Protocol):
    """The conductors, as far as the API asks them anything. Endpoints come from hosts' session records."""

    async def console_log(
        self, endpoint: str, host: str, instance_id: str, placement_epoch: int, tail_bytes: int
    ) -> bytes:
        """The end of a serial console. Raises Unavailable, NotFound."""
        ...

    async def progress(self, endpoint: str, instance_ids: Sequence[str]) -> Mapping[str, str]:
        """How far steps are, for those that have a word. Raises Unavailable."""
        ...


class InstanceHandlers:
    """One object for each process; it keeps nothing of its own. Method names are the RPCs' in snake case."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        cells: Cells,
        ledger: Ledger,
        conductors: Conductors,
        pages: Pages,
        clock: Clock,
        ids: Ids,
        jitter: Callable[[], float],
    ) -> None:
        self._catalogue = catalogue
        self._global: Store = catalogue.store
        self._cells = cells
        self._ledger = ledger
        self._conductors = conductors
        self._pages = pages
        self._clock = clock
        self._ids = ids
        self._jitter = jitter

    # ---------------------------------------------------------------- create

    async def create_instance(
        self, request: pb.CreateInstanceRequest, principal: Principal
    ) -> pb.CreateInstanceResponse:
        answered = self._answered("create", request, request.request_id, principal)
        for attempt in range(TRIES):
            asked = (principal.project_id, answered.request_id)
            seen = await self._global.get(ANSWERED.at(*asked))
            earlier = replayed(found(seen, ANSWERED, *asked), answered)
            if earlier is not None:
                return await self._created(earlier.resource_id, principal)
            instance_id = self._ids.new_id()
            outcome = await self._accept(request, principal, answered, instance_id)
            if outcome is not None:
                return outcome
            await self._pause(attempt)
        raise Conflict(f"request_id {answered.request_id} is being used by many at once; try again")

    async def _accept(
        self,
        request: pb.CreateInstanceRequest,
        principal: Principal,
        answered: Answered,
        instance_id: str,
    ) -> pb.CreateInstanceResponse | None:
        now_ms = self._clock.now_ms()
        asked = await self._look_up(request, principal)
        wanted = request_for(
            asked,
            instance_id=instance_id,
            project_id=principal.project_id,
            user_id=principal.user_id,
            now_ms=now_ms,
        )
        cell = first_cell(await self._enabled_cells(), self._capacities(), wanted)
        build = Build(
            instance_id=instance_id,
            cell=cell,
            request=wanted,
            project_id=principal.project_id,
            create_time_ms=now_ms,
        )
        if request.validate_only:
            revision = await self._would_charge(wanted)
            return pb.CreateInstanceResponse(instance=from_build(build), revision=_at("global", revision))
        entry = admission(
            wanted,
            cell=cell,
            answered=_about(answered, instance_id),
            now_ms=now_ms,
            op_id=self._ids.new_id(),
        )
        outcome = await self._ledger.admit(principal.project_id, entry)
        if isinstance(outcome, Refused):
            return None
        return pb.CreateInstanceResponse(instance=from_build(build), revision=_at("global", outcome.revision))

    async def _would_charge(self, wanted: Request) -> int:
        """Whether the project could pay, without paying. Raises QuotaExceeded, NotFound."""
        key = QUOTA.at(wanted.guest.project_id)
        seen = await self._global.get(key)
        stored = seen.value(key)
        if stored is None:
            raise NotFound("the project has no quota: it does not exist any more")
        charge(codec.decode(Quota, stored), charge_of(wanted), op_id="")
        return seen.revision

    async def _look_up(self, request: pb.CreateInstanceRequest, principal: Principal) -> Asked:
        """Everything that the request names. A name that is not there is the request's fault, and names its field."""
        flavor = await _field("flavor", self._catalogue.flavor(request.flavor))
        image = await _field("image", self._catalogue.image(request.image, principal))
        network = await _field("network", self._catalogue.network(request.network))
        keypair = None
        if request.key_name:
            keypair = await _field(
                "key_name", self._catalogue.keypair(request.key_name, principal, field="key_name")
            )
        return Asked(
            name=request.name,
            flavor=flavor,
            image=image,
            network=network,
            kernel=await self._boots_by(image.kernel_id, principal),
            ramdisk=await self._boots_by(image.ramdisk_id, principal),
            keypair=keypair,
            zone=request.availability_zone,
            user_data=request.user_data,
            metadata=dict(request.metadata),
            config_drive=not request.no_config_drive,
        )

    async def _boots_by(self, image_id: str, principal: Principal) -> Image | None:
        if not image_id:
            return None
        return await _field("image", self._catalogue.image(image_id, principal))

    async def _enabled_cells(self) -> list[str]:
        await self._catalogue.cells.matching(lambda each: each.enabled)
        return sorted(each.name for each in self._catalogue.cells.values() if each.enabled)

    def _capacities(self) -> dict[str, CellCapacity]:
        """Published capacities of the cells that answer; one that is away is nobody's first choice."""
        return {
            each.cell: each
            for each in self._catalogue.capacities.values()
            if each.cell in self._cells.by_name and self._cells[each.cell].instances.picture.is_connected
        }

    async def _created(self, instance_id: str, principal: Principal) -> pb.CreateInstanceResponse:
        """The answer to a create that was accepted before: the server as it is now, whatever became of it."""
        held = await self._catalogue.locations.find(LOCATION.at(instance_id))
        if held is None:
            gone = pb.Instance(id=instance_id, project_id=principal.project_id)
            gone.status.state = "DELETED"
            return pb.CreateInstanceResponse(instance=gone)
        message, revision = await self._show(held.value, principal)
        return pb.CreateInstanceResponse(instance=message, revision=revision)

    # ---------------------------------------------------------------- intents

    async def delete_instance(
        self, request: pb.DeleteInstanceRequest, principal: Principal
    ) -> pb.DeleteInstanceResponse:
        answered = self._answered("delete", request, request.request_id, principal)
        _, revision = await self._act(
            request.instance, Intent(action=Action.DELETE, answered=answered), principal
        )
        return pb.DeleteInstanceResponse(revision=revision)

    async def start_instance(
        self, request: pb.StartInstanceRequest, principal: Principal
    ) -> pb.StartInstanceResponse:
        answered = self._answered("start", request, request.request_id, principal)
        instance, revision = await self._act(
            request.instance, Intent(action=Action.START, answered=answered), principal
        )
        return pb.StartInstanceResponse(instance=instance, revision=revision)

    async def stop_instance(
        self, request: pb.StopInstanceRequest, principal: Principal
    ) -> pb.StopInstanceResponse:
        answered = self._answered("stop", request, request.request_id, principal)
        intent = Intent(
            action=Action.STOP,
            answered=answered,
            stop_timeout_s=request.timeout_s or DEFAULT_STOP_TIMEOUT_S,
        )
        instance, revision = await self._act(request.instance, intent, principal)
        return pb.StopInstanceResponse(instance=instance, revision=revision)

    async def reboot_instance(
        self, request: pb.RebootInstanceRequest, principal: Principal
    ) -> pb.RebootInstanceResponse:
        answered = self._answered("reboot", request, request.request_id, principal)
        hard = request.kind == pb.REBOOT_KIND_HARD
        intent = Intent(action=Action.REBOOT_HARD if hard else Action.REBOOT_SOFT, answered=answered)
        instance, revision = await self._act(request.instance, intent, principal)
        return pb.RebootInstanceResponse(instance=instance, revision=revision)

    async def _act(
        self, word: str, intent: Intent, principal: Principal
    ) -> tuple[pb.Instance, types_pb2.Revision]:
        """Write an intent, whatever else is being written: decided anew on what is there, bounded."""
        answered = intent.answered
        try:
            location = await self._catalogue.location(word, principal)
        except NotFound:
            if await self._acted_before(answered):
                return pb.Instance(), types_pb2.Revision()
            raise
        answered = _about(answered, location.instance_id)
        intent = Intent(action=intent.action, answered=answered, stop_timeout_s=intent.stop_timeout_s)
        for attempt in range(TRIES):
            view = self._cells[location.cell]
            record = await view.get(INSTANCE.at(location.instance_id))
            stored = record.value(INSTANCE.at(location.instance_id))
            if stored is not None:
                done = await self._write(view, codec.decode(Instance, stored), intent, principal)
            else:
                done = await self._act_unplaced(location, intent)
            if done is not None:
                return done
            await self._pause(attempt)
            location = await self._again(location)
        raise Conflict(
            "the server is being changed by many at once; try again", instance=location.instance_id
        )

    async def _write(
        self, view: CellView, instance: Instance, intent: Intent, principal: Principal
    ) -> tuple[pb.Instance, types_pb2.Revision] | None:
        """One try at an intent on a server that its cell knows; None when something had changed."""
        seen = await view.get(*keys_of(instance, intent.answered))
        now = found(seen, INSTANCE, instance.id)
        if now is None or now.host != instance.host:
            return None
        acted = found(seen, ACTED, intent.answered.project_id, intent.answered.request_id)
        if replayed(acted, intent.answered) is not None:
            return self._view(view, now, seen.seen(INSTANCE.at(now.id)), principal), _at(
                view.name, seen.revision
            )
        assignment = found(seen, ASSIGNMENT, now.host, now.id) if now.host else None
        decided = written(
            seen, now, assignment, intent, now_ms=self._clock.now_ms(), op_id=self._ids.new_id()
        )
        outcome = await view.commit(txn_of(decided.write), mark=decided.write.mark)
        if isinstance(outcome, Refused):
            return None
        after = decided.after or now
        return self._view(view, after, outcome.revision, principal), _at(view.name, outcome.revision)

    async def _act_unplaced(
        self, location: Location, intent: Intent
    ) -> tuple[pb.Instance, types_pb2.Revision] | None:
        """An intent on a server that no host has been claimed for: only its end may be asked for. None: look again."""
        build_key = BUILD.at(location.cell, location.instance_id)
        answer_key = ANSWERED.at(intent.answered.project_id, intent.answered.request_id)
        seen = await self._global.get(build_key, LOCATION.at(location.instance_id), answer_key)
        earlier = found(seen, ANSWERED, intent.answered.project_id, intent.answered.request_id)
        if replayed(earlier, intent.answered) is not None:
            return pb.Instance(id=location.instance_id), _at("global", seen.revision)
        build = found(seen, BUILD, location.cell, location.instance_id)
        if build is None:
            return None
        if intent.action is not Action.DELETE:
            raise WrongState(
                f"cannot {intent.action} while BUILD with scheduling under way; allowed now: delete",
                action=intent.action,
                vm_state="building",
                task_state="scheduling",
                instance=location.instance_id,
            )
        write = cancelled(seen, build, intent.answered, op_id=self._ids.new_id())
        outcome = await commit_settled(self._global, txn_of(write), mark=write.mark, patience_s=1.5)
        if isinstance(outcome, Refused):
            return None
        return from_build(build), _at("global", outcome.revision)

    async def _again(self, location: Location) -> Location:
        """Where the server is now: it may have been moved, claimed, or ended. Raises NotFound."""
        key = LOCATION.at(location.instance_id)
        stored = (await self._global.get(key)).value(key)
        if stored is None:
            raise NotFound(
                f"there is no server {location.instance_id}", kind="server", name=location.instance_id
            )
        return codec.decode(Location, stored)

    async def _acted_before(self, answered: Answered) -> bool:
        """Whether a server that is gone was acted on by this very request: late retries are answered as the first."""

        async def ask(store: Store, kind: Key[Answered]) -> Answered | None:
            async with asyncio.timeout(LIST_CATCH_UP_S):
                seen = await store.get(kind.at(answered.project_id, answered.request_id))
            return found(seen, kind, answered.project_id, answered.request_id)

        asks = [ask(self._global, ANSWERED)]
        asks += [ask(view.store, ACTED) for view in self._cells.by_name.values()]
        told = await asyncio.gather(*asks, return_exceptions=True)
        return any(isinstance(each, Answered) and replayed(each, answered) is not None for each in told)

    # ---------------------------------------------------------------- reads

    async def get_instance(
        self, request: pb.GetInstanceRequest, principal: Principal
    ) -> pb.GetInstanceResponse:
        location = await self._catalogue.location(request.instance, principal)
        instance, revision = await self._show(location, principal)
        return pb.GetInstanceResponse(instance=instance, revision=revision)

    async def _show(self, location: Location, principal: Principal) -> tuple[pb.Instance, types_pb2.Revision]:
        """The server as its cell has it now; as UNKNOWN, with the cell named, where that cannot be reached."""
        key = INSTANCE.at(location.instance_id)
        for _ in range(TRIES):
            view = self._cells[location.cell]
            try:
                seen = await view.get(key)
            except Unavailable as away:
                return from_location(location, reason=away.message), _at(view.name, 0)
            stored = seen.value(key)
            if stored is not None:
                record = codec.decode(Instance, stored)
                progress = await self._progress(view, [record])
                message = self._view(view, record, seen.seen(key), principal, progress)
                return message, _at(view.name, seen.revision)
            build_key = BUILD.at(location.cell, location.instance_id)
            known = await self._global.get(build_key, LOCATION.at(location.instance_id))
            build = known.value(build_key)
            if build is not None:
                return from_build(codec.decode(Build, build)), _at("global", known.revision)
            now = known.value(LOCATION.at(location.instance_id))
            if now is None:
                break
            # Claimed, moved or ended between the two reads; an end whose refund is due looks like this for a moment.
            location = codec.decode(Location, now)
            await self._pause(1)
        raise NotFound(f"there is no server {location.instance_id}", kind="server", name=location.instance_id)

    async def list_instances(
        self, request: pb.ListInstancesRequest, principal: Principal
    ) -> pb.ListInstancesResponse:
        if request.all_projects and not principal.system_admin:
            raise PermissionDenied("only system administrators list every project's servers")
        await self._catalogue.locations.catch_up(timeout_s=LIST_CATCH_UP_S)
        rows = [
            each
            for each in self._catalogue.locations.values()
            if (request.all_projects or each.project_id == principal.project_id)
            and request.name in {"", each.name}
        ]
        away = await self._catch_up_cells({each.cell for each in rows})
        shown = [(each, self._row(each, away, principal)) for each in rows]
        kept = [
            (location, message)
            for location, message in shown
            if message is not None and request.state in {"", message.status.state}
        ]
        kept.sort(key=lambda pair: (-pair[0].create_time_ms, pair[0].instance_id))
        page, token = self._pages.cut(
            kept,
            request,
            key=lambda pair: f"{(1 << 62) - pair[0].create_time_ms:020d}/{pair[0].instance_id}",
        )
        await self._add_progress([message for _, message in page])
        return pb.ListInstancesResponse(
            instances=[message for _, message in page],
            next_page_token=token,
            unreachable_cells=[
                pb.UnreachableCell(cell=name, reason=reason) for name, reason in sorted(away.items())
            ],
            revisions=[
                _at("global", self._catalogue.locations.picture.revision),
                *(
                    _at(name, view.instances.picture.revision)
                    for name, view in self._cells.by_name.items()
                    if name not in away
                ),
            ],
        )

    async def _catch_up_cells(self, names: set[str]) -> dict[str, str]:
        """Bring the pictures of these cells up to now, all at once; returns why the others cannot be shown."""

        async def one(name: str) -> str | None:
            try:
                view = self._cells[name]
                await view.reach(lambda: view.instances.catch_up(timeout_s=LIST_CATCH_UP_S))
            except Unavailable as away:
                return away.message
            return None

        ordered = sorted(names)
        reasons = await asyncio.gather(*(one(name) for name in ordered))
        return {name: why for name, why in zip(ordered, reasons, strict=True) if why is not None}

    def _row(self, location: Location, away: Mapping[str, str], principal: Principal) -> pb.Instance | None:
        if location.cell in away:
            return from_location(location, reason=away[location.cell])
        view = self._cells[location.cell]
        held = view.instances.entries.get(INSTANCE.at(location.instance_id))
        if held is not None:
            return self._view(view, held.value, held.mod_revision, principal)
        build = self._catalogue.builds.entries.get(BUILD.at(location.cell, location.instance_id))
        # Neither claimed nor waiting: it has ended, and only the refund is due.
        return from_build(build.value) if build is not None else None

    async def _add_progress(self, messages: Sequence[pb.Instance]) -> None:
        for name, view in self._cells.by_name.items():
            building = [
                held.value
                for each in messages
                if each.status.cell == name
                and each.status.task_state
                and (held := view.instances.entries.get(INSTANCE.at(each.id))) is not None
            ]
            words = await self._progress(view, building)
            for each in messages:
                each.status.progress = words.get(each.id, each.status.progress)

    # ---------------------------------------------------------------- console

    async def get_console_log(
        self, request: pb.GetConsoleLogRequest, principal: Principal
    ) -> pb.GetConsoleLogResponse:
        location = await self._catalogue.location(request.instance, principal)
        view = self._cells[location.cell]
        key = INSTANCE.at(location.instance_id)
        stored = (await view.get(key)).value(key)
        if stored is None:
            raise WrongState(
                "the server has no console yet: it is still being placed", instance=location.instance_id
            )
        record = codec.decode(Instance, stored)
        held = await view.sessions.find(SESSION.at(record.host)) if record.host else None
        if held is None or not held.value.conductor:
            raise WrongState("the server has no console: it is on no host", instance=location.instance_id)
        data = await self._conductors.console_log(
            held.value.conductor, record.host, record.id, record.placement_epoch, CONSOLE_LIMIT_BYTES
        )
        if request.lines:
            data = b"".join(data.splitlines(keepends=True)[-request.lines :])
        return pb.GetConsoleLogResponse(output=data)

    # ---------------------------------------------------------------- parts

    def _view(
        self,
        view: CellView,
        record: Instance,
        mod_revision: int,
        principal: Principal,
        progress: Mapping[str, str] | None = None,
    ) -> pb.Instance:
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
        words: dict[str, str] = {}
        try:
            async with asyncio.timeout(PROGRESS_TIMEOUT_S):
                for endpoint, instance_ids in sorted(by_endpoint.items()):
                    words.update(await self._conductors.progress(endpoint, instance_ids))
        except (TimeoutError, Unavailable, NotFound):
            return words
        return words

    def _answered(self, method: str, request: Message, request_id: str, principal: Principal) -> Answered:
        """What to remember of the request: the digest of everything in it but its id."""
        body = type(request)()
        body.CopyFrom(request)
        body.ClearField("request_id")
        digest = hashlib.sha256(body.SerializeToString(deterministic=True)).hexdigest()
        return Answered(
            request_id=request_id,
            project_id=principal.project_id,
            method=method,
            body_sha256=digest,
            resource_id="",
            expire_time_ms=self._clock.now_ms() + REQUEST_ID_KEPT_MS,
        )

    async def _pause(self, attempt: int) -> None:
        """Let the others through: longer each time, and not all together."""
        await asyncio.sleep(min(0.4, 0.005 * 2**attempt) * (0.5 + self._jitter()))


def _about(answered: Answered, instance_id: str) -> Answered:
    return replace(answered, resource_id=instance_id)


def _at(store: str, revision: int) -> types_pb2.Revision:
    return types_pb2.Revision(store=store, revision=revision)


async def _field(field: str, looking: Awaitable[T]) -> T:
    """A thing named by a field. Raises InvalidRequest naming the field, where the thing is not there."""
    try:
        return await looking
    except NotFound as gone:
        raise InvalidRequest(gone.message, field=field, reason=Reason.RESOURCE_NOT_FOUND) from None
