"""fabric.compute.v1.InstanceService: unpack, decide, commit, pack. What is decided is in `fabric/api/core`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from google.protobuf.message import Message

from fabric.api.answers import Answers
from fabric.api.boot_volumes import NO_IMAGE, BootVolumes, sources
from fabric.api.catalogue import Catalogue
from fabric.api.cells import Cells, CellView
from fabric.api.core.accept import (
    Asked,
    Pledged,
    admission,
    check_room,
    first_cell,
    pledged,
    request_for,
    unpledged,
)
from fabric.api.core.boot_volume import admitted
from fabric.api.core.devices import Known, Ref, ending_nowhere
from fabric.api.core.intent import (
    DEFAULT_STOP_TIMEOUT_S,
    NO_OTHER,
    REQUEST_ID_KEPT_MS,
    Intent,
    Other,
    cancelled,
    ends_at_once,
    keys_of,
    replayed,
    written,
)
from fabric.api.guest_access import GuestAccess
from fabric.api.instance_groups import InstanceGroups
from fabric.api.instance_ports import InstancePorts
from fabric.api.instance_reads import Conductors, InstanceReads, revision_of
from fabric.api.instance_view import from_build
from fabric.api.named import named_by
from fabric.api.network_desk import Desk
from fabric.api.once import body_sha256
from fabric.api.pages import Pages
from fabric.api.preparing import Preparing
from fabric.api.preparing_images import PreparingImages
from fabric.api.preparing_interfaces import InterfacePreparing
from fabric.api.records import found, txn_of
from fabric.api.waiting_images import WaitingImages
from fabric.clock import Clock
from fabric.errors import Bug, Conflict, FabricError, NotFound, Unavailable
from fabric.ids import Ids, is_id
from fabric.lifecycle.core import still_placed
from fabric.lifecycle.devices import volumes_of
from fabric.lifecycle.table import shown
from fabric.model.host import CellCapacity
from fabric.model.identity import Principal
from fabric.model.image import Image
from fabric.model.instance import Answered, Build, Instance, Location, Request
from fabric.model.quota import Charge, Quota
from fabric.model.states import Action, TaskState, VmState
from fabric.observability.failpoints import NO_FAILPOINTS, Failpoints
from fabric.pb.common.v1 import types_pb2
from fabric.pb.compute.v1 import instance_service_pb2 as pb
from fabric.quota.core import charge, charge_of
from fabric.quota.ledger import Ledger
from fabric.rpc.method import Method, methods
from fabric.store import codec
from fabric.store.base import Refused, Snapshot, Store
from fabric.store.keys import (
    ACTED,
    ANSWERED,
    ASSIGNMENT,
    BUILD,
    FLAVOR,
    IMAGE,
    INSTANCE,
    LOCATION,
    OVER,
    QUOTA,
    SESSION,
    USE,
    VOLUME,
)
from fabric.store.settle import commit_settled

TRIES = 8
"""How often a write that lost a race is decided anew."""


BOUND_FIRST = frozenset({Action.ATTACH_INTERFACE, Action.ATTACH_VOLUME})
"""Actions that another store is written for before the record: one that was done before must not write there again."""


class InstanceHandlers:
    """One object for each process; all it keeps of its own is a hint of where creates have just gone.

    Method names are the RPCs' in snake case.
    """

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        cells: Cells,
        ledger: Ledger,
        desk: Desk,
        conductors: Conductors,
        pages: Pages,
        clock: Clock,
        ids: Ids,
        jitter: Callable[[], float],
        failpoints: Failpoints = NO_FAILPOINTS,
        reclaim_s: float = 0.0,
    ) -> None:
        self._reclaim_s = reclaim_s
        self._catalogue = catalogue
        self._global: Store = catalogue.store
        self._cells = cells
        self._answers = Answers(catalogue.store, cells)
        self._ledger = ledger
        self._ports = InstancePorts(catalogue, desk)
        self._groups = InstanceGroups(catalogue, cells, desk)
        self._reads = InstanceReads(
            catalogue=catalogue, cells=cells, conductors=conductors, pages=pages, jitter=jitter
        )
        self._boot_volumes = BootVolumes(catalogue, cells, ids=ids)
        self._access = GuestAccess(catalogue, cells, conductors)
        self.view = self._reads.view
        """How a record of a cell's is shown to somebody."""
        self._pledges: Mapping[str, Pledged] = {}
        self._clock = clock
        self._ids = ids
        self._jitter = jitter
        self.waiting_images = WaitingImages(catalogue, cells, clock=clock, ids=ids, jitter=jitter)
        """To be kept running: it sweeps."""
        self._preparing = Preparing(
            catalogue,
            PreparingImages(catalogue, cells, self.waiting_images),
            InterfacePreparing(
                catalogue, cells, desk, self._ports, clock=clock, ids=ids, failpoints=failpoints
            ),
            clock=clock,
            ids=ids,
        )
        for method in methods(pb.DESCRIPTOR.services_by_name["InstanceService"]):
            if method.action:
                setattr(self, method.attribute, partial(self._answer, method))

    # ---------------------------------------------------------------- create

    async def create_instance(
        self, request: pb.CreateInstanceRequest, principal: Principal
    ) -> pb.CreateInstanceResponse:
        answered = self._answered("create", request, request.request_id, principal)
        for attempt in range(TRIES):
            earlier = await self._created_before(answered, principal)
            if earlier is not None:
                return earlier
            try:
                outcome = await self._accept(request, principal, answered, self._ids.new_id(), attempt)
            except FabricError:
                # Perhaps of its own doing: it may have been sent again while it was still being decided, and that one was faster.
                outcome = await self._created_before(answered, principal)
                if outcome is None:
                    raise
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
        attempt: int,
    ) -> pb.CreateInstanceResponse | None:
        now_ms = self._clock.now_ms()
        asked = await self._look_up(request, principal, now_ms=now_ms)
        root = asked.root
        wired = await self._ports.wired(request, principal, instance_id=instance_id, attempt=attempt)
        asked = replace(asked, network=wired.network, ports=wired.ports)
        wanted = request_for(
            asked,
            instance_id=instance_id,
            project_id=principal.project_id,
            user_id=principal.user_id,
            now_ms=now_ms,
        )
        capacities = unpledged(self._capacities(), self._pledges, now_ms=now_ms)
        cells = [root.entry.cell] if root is not None and root.entry.cell else await self._enabled_cells()
        cell = first_cell(cells, capacities, wanted)
        build = Build(
            instance_id=instance_id,
            cell=cell,
            request=wanted,
            project_id=principal.project_id,
            create_time_ms=now_ms,
        )
        if request.validate_only:
            check_room(cells, capacities, wanted)
            revision = await self._would_charge(wanted, Charge() if root is None else root.charge)
            return pb.CreateInstanceResponse(
                instance=from_build(build), revision=revision_of("global", revision)
            )
        entry = admission(
            wanted,
            cell=cell,
            answered=_about(answered, instance_id),
            now_ms=now_ms,
            op_id=self._ids.new_id(),
        )
        unchanged = {**entry.unchanged, **asked.read, **wired.unchanged}
        entry = replace(entry, unchanged=unchanged, encoded=wired.put)
        if root is not None:
            entry = admitted(entry, root, op_id=self._ids.new_id())
        outcome = await self._ledger.admit(principal.project_id, entry)
        if isinstance(outcome, Refused):
            return None
        if cell in capacities:
            self._pledges = pledged(self._pledges, capacities[cell], wanted, now_ms=now_ms)
        return pb.CreateInstanceResponse(
            instance=from_build(build), revision=revision_of("global", outcome.revision)
        )

    async def _would_charge(self, wanted: Request, more: Charge) -> int:
        """Whether the project could pay, without paying. Raises QuotaExceeded, NotFound."""
        key = QUOTA.at(wanted.guest.project_id)
        seen = await self._global.get(key)
        stored = seen.value(key)
        if stored is None:
            raise NotFound("the project has no quota: it does not exist any more")
        charge(codec.decode(Quota, stored), charge_of(wanted) + more, op_id="")
        return seen.revision

    async def _look_up(
        self, request: pb.CreateInstanceRequest, principal: Principal, *, now_ms: int
    ) -> Asked:
        """Everything that the request names but networks. A name that is not there is the request's fault, and names its field."""
        catalogue = self._catalogue
        flavor = await named_by("flavor", catalogue.flavor(request.flavor))
        # At once, while the picture still shows what was just found in it.
        read = catalogue.flavors.revisions(FLAVOR.at(flavor.id))
        image = None
        if sources(request).image:
            image = await self._image(request.image, principal, read)
        root = await self._boot_volumes.look_up(request, image, principal, now_ms=now_ms)
        image = image or (root.entry.image if root is not None else None) or NO_IMAGE
        keypair = None
        if request.key_name:
            keypair = await named_by(
                "key_name", catalogue.keypair(request.key_name, principal, field="key_name")
            )
        return Asked(
            name=request.name,
            flavor=flavor,
            image=image,
            kernel=await self._image(image.kernel_id, principal, read) if image.kernel_id else None,
            ramdisk=await self._image(image.ramdisk_id, principal, read) if image.ramdisk_id else None,
            keypair=keypair,
            zone=request.availability_zone,
            user_data=request.user_data,
            metadata=dict(request.metadata),
            config_drive=not request.no_config_drive,
            root=root,
            read=read,
        )

    async def _image(self, word: str, principal: Principal, read: dict[str, int]) -> Image:
        """An image, and in `read` what it was found by."""
        found = await named_by("image", self._catalogue.image(word, principal))
        read |= self._catalogue.images.revisions(IMAGE.at(found.id))
        return found

    async def _enabled_cells(self) -> list[str]:
        await self._catalogue.cells.matching(lambda each: each.enabled)
        return sorted(each.name for each in self._catalogue.cells.values() if each.enabled)

    def _capacities(self) -> list[CellCapacity]:
        """Published capacities of the cells that answer; one that is away is nobody's first choice."""
        return [
            each
            for each in self._catalogue.capacities.values()
            if each.cell in self._cells.by_name and self._cells[each.cell].is_answering
        ]

    async def _created_before(
        self, answered: Answered, principal: Principal
    ) -> pb.CreateInstanceResponse | None:
        """The answer to a create that was accepted before: the server as it is now, whatever became of it."""
        who = (answered.project_id, answered.request_id)
        earlier = found(await self._global.get(ANSWERED.at(*who)), ANSWERED, *who)
        if earlier is None:
            return None
        instance, revision = await self._after(replayed(earlier, answered).resource_id, principal)
        return pb.CreateInstanceResponse(instance=instance, revision=revision)

    # ---------------------------------------------------------------- intents

    async def delete_instance(
        self, request: pb.DeleteInstanceRequest, principal: Principal
    ) -> pb.DeleteInstanceResponse:
        answered = self._answered("delete", request, request.request_id, principal)
        keep_s = 0.0 if request.force else self._reclaim_s
        intent = Intent(action=Action.DELETE, answered=answered, keep_s=keep_s)
        _, revision = await self._act(request.instance, intent, principal)
        return pb.DeleteInstanceResponse(revision=revision)

    async def _answer(self, method: Method, request: Any, principal: Principal) -> Message:
        """Any method that is a row of the lifecycle table: what it names is looked up, and its intent written."""
        action = Action(method.action)
        answered = self._answered(action, request, request.request_id, principal)
        if action in BOUND_FIRST and (earlier := await self._answers.before(answered)) is not None:
            return await self._answered_again(method, request, earlier, principal)
        try:
            prepared = await self._preparing.prepare(action, request, principal)
        except FabricError:
            # Of what a late retry names, nothing need be there any more.
            if (earlier := await self._answers.before(answered)) is None:
                raise
            return await self._answered_again(method, request, earlier, principal)
        intent = Intent(
            action=action,
            answered=answered,
            stop_timeout_s=getattr(request, "timeout_s", 0) or DEFAULT_STOP_TIMEOUT_S,
            change=prepared.change,
            image_id=prepared.image_id,
            also=prepared.also,
            work=prepared.work,
            beside=prepared.beside,
            etag=getattr(request, "etag", ""),
        )
        try:
            instance, revision = await self._act(request.instance, intent, principal)
        except (Unavailable, Bug):
            raise  # it may have been written
        except FabricError:
            if prepared.undo is not None:
                await prepared.undo()
            raise
        return method.response(instance=instance, revision=revision, **prepared.answer)

    async def _answered_again(
        self, method: Method, request: Any, earlier: Answered, principal: Principal
    ) -> Message:
        instance, revision = await self._after(earlier.resource_id, principal)
        said = await self._preparing.said_before(Action(method.action), request, principal)
        return method.response(instance=instance, revision=revision, **said)

    async def change_password(
        self, request: pb.ChangePasswordRequest, principal: Principal
    ) -> pb.ChangePasswordResponse:
        # A stored digest of a password would be one to guess at.
        bare = pb.ChangePasswordRequest(
            request_id=request.request_id, instance=request.instance, user=request.user
        )
        answered = self._answered("change_password", bare, request.request_id, principal)
        instance, _ = await self._act(
            request.instance, Intent(action=Action.CHANGE_PASSWORD, answered=answered), principal
        )
        await self._access.set_password(
            instance.id,
            principal,
            request_id=request.request_id,
            user=request.user,
            password=request.password,
        )
        after, revision = await self._after(instance.id, principal)
        return pb.ChangePasswordResponse(instance=after, revision=revision)

    async def reboot_instance(
        self, request: pb.RebootInstanceRequest, principal: Principal
    ) -> pb.RebootInstanceResponse:
        answered = self._answered("reboot", request, request.request_id, principal)
        hard = request.kind == pb.REBOOT_KIND_HARD
        intent = Intent(action=Action.REBOOT_HARD if hard else Action.REBOOT_SOFT, answered=answered)
        instance, revision = await self._act(request.instance, intent, principal)
        return pb.RebootInstanceResponse(instance=instance, revision=revision)

    async def add_instance_security_group(
        self, request: pb.AddInstanceSecurityGroupRequest, principal: Principal
    ) -> pb.AddInstanceSecurityGroupResponse:
        revision = await self._groups.add(request, principal)
        return pb.AddInstanceSecurityGroupResponse(revision=revision_of("global", revision))

    async def remove_instance_security_group(
        self, request: pb.RemoveInstanceSecurityGroupRequest, principal: Principal
    ) -> pb.RemoveInstanceSecurityGroupResponse:
        revision = await self._groups.remove(request, principal)
        return pb.RemoveInstanceSecurityGroupResponse(revision=revision_of("global", revision))

    async def _act(
        self, word: str, intent: Intent, principal: Principal
    ) -> tuple[pb.Instance, types_pb2.Revision]:
        """Write an intent, whatever else is being written: decided anew on what is there, bounded."""
        answered = intent.answered
        earlier = None if is_id(word) else await self._answers.before(answered)
        if earlier is not None:
            # A name may be another server's by now, which this request never was about.
            return await self._after(earlier.resource_id, principal)
        try:
            location = await self._catalogue.location(word, principal)
        except NotFound:
            earlier = await self._answers.before(answered)
            if earlier is None:
                raise
            return _gone(earlier.resource_id, principal), types_pb2.Revision()
        intent = replace(
            intent,
            answered=_about(answered, location.instance_id),
            user_id=principal.user_id,
            is_admin=principal.system_admin,
        )
        for attempt in range(TRIES):
            view = self._cells[location.cell]
            key, over_key = INSTANCE.at(location.instance_id), OVER.at(location.instance_id)
            record = await view.get(key, over_key)
            stored = record.value(key)
            if stored is not None:
                done = await self._write(view, codec.decode(Instance, stored), intent, principal)
            else:
                done = await self._act_unplaced(
                    location, intent, principal, is_over=over_key in record.entries
                )
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
        if ends_at_once(intent, instance) and volumes_of(instance):
            intent = replace(intent, beside=ending_nowhere(await _hosts_of(view, volumes_of(instance))))
        besides = () if intent.beside is None else intent.beside.reads(instance)
        keys = (*keys_of(instance, intent.answered), *(row.at(*fields) for row, fields in besides))
        seen = await view.get(*keys)
        now = found(seen, INSTANCE, instance.id)
        if now is None or now.host != instance.host:
            return None
        acted = found(seen, ACTED, intent.answered.project_id, intent.answered.request_id)
        if acted is not None:
            replayed(acted, intent.answered)
            return self._reads.view(view, now, seen.seen(INSTANCE.at(now.id)), principal), revision_of(
                view.name, seen.revision
            )
        assignment = found(seen, ASSIGNMENT, now.host, now.id) if now.host else None
        if now.move != instance.move:
            return None
        decided = written(
            seen,
            now,
            assignment,
            intent,
            now_ms=self._clock.now_ms(),
            op_id=self._ids.new_id(),
            other=_other(seen, now),
            known=_known(seen, besides),
        )
        outcome = await view.commit(txn_of(decided.write), mark=decided.write.mark)
        if isinstance(outcome, Refused):
            return None
        after = decided.after or now
        return self._reads.view(view, after, outcome.revision, principal), revision_of(
            view.name, outcome.revision
        )

    async def _act_unplaced(
        self, location: Location, intent: Intent, principal: Principal, *, is_over: bool
    ) -> tuple[pb.Instance, types_pb2.Revision] | None:
        """An intent on a server that no host has been claimed for: only its end may be asked for. None: look again.

        `is_over` is what its cell has said. Raises NotFound for one that has ended, of which only the index row and the charge are left.
        """
        build_key = BUILD.at(location.cell, location.instance_id)
        answer_key = ANSWERED.at(intent.answered.project_id, intent.answered.request_id)
        seen = await self._global.get(build_key, LOCATION.at(location.instance_id), answer_key)
        earlier = found(seen, ANSWERED, intent.answered.project_id, intent.answered.request_id)
        if earlier is not None:
            replayed(earlier, intent.answered)
            return pb.Instance(id=location.instance_id), revision_of("global", seen.revision)
        build = found(seen, BUILD, location.cell, location.instance_id)
        if build is None:
            row = found(seen, LOCATION, location.instance_id)
            # A cell that a build has left for another says the same; then the row has just gone there too.
            if row is not None and not (is_over and row.cell == location.cell):
                return None
            if await self._answers.before(intent.answered) is None:
                raise _no_server(location.instance_id)
            return _gone(location.instance_id, principal), types_pb2.Revision()
        if intent.action is not Action.DELETE:
            raise still_placed(location.instance_id, intent.action)
        write = cancelled(seen, build, intent.answered, user_id=intent.user_id, op_id=self._ids.new_id())
        outcome = await commit_settled(self._global, txn_of(write), mark=write.mark, patience_s=1.5)
        if isinstance(outcome, Refused):
            return None
        return from_build(build), revision_of("global", outcome.revision)

    async def _again(self, location: Location) -> Location:
        """Where the server is now: it may have been moved, claimed, or ended. Raises NotFound."""
        key = LOCATION.at(location.instance_id)
        stored = (await self._global.get(key)).value(key)
        if stored is None:
            raise _no_server(location.instance_id)
        return codec.decode(Location, stored)

    async def _after(self, instance_id: str, principal: Principal) -> tuple[pb.Instance, types_pb2.Revision]:
        """A server that was acted on before, as it is now, whatever became of it."""
        try:
            return await self._reads.show(await self._catalogue.location(instance_id, principal), principal)
        except NotFound:
            return _gone(instance_id, principal), types_pb2.Revision()

    # ---------------------------------------------------------------- reads

    async def get_instance(
        self, request: pb.GetInstanceRequest, principal: Principal
    ) -> pb.GetInstanceResponse:
        return await self._reads.get_instance(request, principal)

    async def list_instances(
        self, request: pb.ListInstancesRequest, principal: Principal
    ) -> pb.ListInstancesResponse:
        return await self._reads.list_instances(request, principal)

    async def get_console_log(
        self, request: pb.GetConsoleLogRequest, principal: Principal
    ) -> pb.GetConsoleLogResponse:
        return await self._reads.get_console_log(request, principal)

    async def get_instance_diagnostics(
        self, request: pb.GetInstanceDiagnosticsRequest, principal: Principal
    ) -> pb.GetInstanceDiagnosticsResponse:
        found = await self._access.diagnostics(request.instance, principal)
        return pb.GetInstanceDiagnosticsResponse(diagnostics=found)

    # ---------------------------------------------------------------- parts

    def _answered(self, method: str, request: Message, request_id: str, principal: Principal) -> Answered:
        """What to remember of the request."""
        return Answered(
            request_id=request_id,
            project_id=principal.project_id,
            method=method,
            body_sha256=body_sha256(request),
            resource_id="",
            expire_time_ms=self._clock.now_ms() + REQUEST_ID_KEPT_MS,
        )

    async def _pause(self, attempt: int) -> None:
        """Let the others through: longer each time, and not all together."""
        await asyncio.sleep(min(0.4, 0.005 * 2**attempt) * (0.5 + self._jitter()))


def _about(answered: Answered, instance_id: str) -> Answered:
    return replace(answered, resource_id=instance_id)


def _known(seen: Snapshot, refs: Sequence[Ref]) -> Known:
    """What was read beside a server's record."""
    keys = {row.at(*fields): found(seen, row, *fields) for row, fields in refs}
    return Known(keys, {key: seen.seen(key) for key in keys})


async def _hosts_of(view: CellView, volumes: Sequence[str]) -> Mapping[str, str]:
    """The hosts that have the data of volumes, by their ids; empty where none has."""
    seen = await view.get(*map(VOLUME.at, volumes))
    known = {each: found(seen, VOLUME, each) for each in volumes}
    return {volume_id: "" if volume is None else volume.host for volume_id, volume in known.items()}


def _other(seen: Snapshot, now: Instance) -> Other:
    if now.move is None:
        return NO_OTHER
    host = now.move.other.host
    return Other(use=found(seen, USE, host), session=found(seen, SESSION, host))


def _no_server(instance_id: str) -> NotFound:
    return NotFound(f"there is no server {instance_id}", kind="server", name=instance_id)


def _gone(instance_id: str, principal: Principal) -> pb.Instance:
    """What is left to say of a server that has ended."""
    gone = pb.Instance(id=instance_id, project_id=principal.project_id)
    gone.status.state = shown(VmState.DELETED, TaskState.NONE)
    return gone
