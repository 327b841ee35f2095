"""VolumeService: disks that outlive servers.

A volume's row in the global store says whose it is, what it is called and what it is charged; from its first attachment on, its cell's
record says where its data is and which server has it. Attaching is an action of the server (`fabric/api/core/devices.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from google.protobuf.message import Message

from fabric.api.answers import Answers
from fabric.api.cells import Cells
from fabric.api.core.accept import check_fits_volume
from fabric.api.core.devices import buried
from fabric.api.draft import Draft, drafted
from fabric.api.instance_view import timestamp
from fabric.api.named import Found
from fabric.api.network_desk import named, position, project_of, required_name
from fabric.api.once import Change, Done, Once, answered_by
from fabric.api.owned import Owned
from fabric.api.pages import Pages
from fabric.clock import Clock
from fabric.errors import (
    AlreadyExists,
    Ambiguous,
    Conflict,
    InvalidRequest,
    NotFound,
    Reason,
    Unavailable,
    WrongState,
)
from fabric.ids import Ids, is_id
from fabric.model.host import Session
from fabric.model.identity import Principal
from fabric.model.image import Image
from fabric.model.quota import Charge, Quota
from fabric.model.volume import Volume, VolumeEnd, VolumeEntry, VolumeState, serial_of
from fabric.pb.volume.v1 import volume_service_pb2 as pb
from fabric.quota.core import charge, refund
from fabric.store.base import Committed, Snapshot, Store, Txn
from fabric.store.codec import decode, encode
from fabric.store.keys import (
    ACTED,
    QUOTA,
    SESSION,
    TOMBSTONE,
    VOLUME,
    VOLUME_END,
    VOLUME_ENTRY,
    VOLUME_NAME,
)
from fabric.store.settle import commit_settled

UPDATABLE = frozenset({"name", "size_gib"})

ATTEMPTS = 12
"""How often a change is decided anew: every create of the project changes the same quota."""

READ_TOGETHER = 100

WRITE_PATIENCE_S = 1.5

_WORDS: Mapping[VolumeState, str] = {
    VolumeState.AVAILABLE: "available",
    VolumeState.IN_USE: "in-use",
    VolumeState.DETACHING: "detaching",
    VolumeState.DELETING: "deleting",
    VolumeState.DELETED: "deleting",
}
UNKNOWN = "unknown"


class VolumeHandlers:
    """The RPCs, as functions of a request and who asks."""

    def __init__(
        self,
        store: Store,
        cells: Cells,
        *,
        image: Callable[[str, Principal], Awaitable[Image]],
        clock: Clock,
        ids: Ids,
        jitter: Callable[[], float],
    ) -> None:
        self._store = store
        self._image = image
        self._cells = cells
        self._clock = clock
        self._ids = ids
        self._pages = Pages()
        self._entries = Owned(store, VOLUME_ENTRY, "volume", VOLUME_NAME)
        self._once = Once(store, clock=clock, jitter=jitter, attempts=ATTEMPTS)
        self._answers = Answers(store, cells)
        self._in_cell = {
            name: Once(view.store, clock=clock, jitter=jitter, kind=ACTED, patience_s=WRITE_PATIENCE_S)
            for name, view in cells.by_name.items()
        }

    # ------------------------------------------------------------------ reading

    async def get_volume(self, request: pb.GetVolumeRequest, principal: Principal) -> pb.GetVolumeResponse:
        found = await self._entries.get(project_of(principal), request.volume)
        return pb.GetVolumeResponse(volume=await self._shown(found.value, principal), revision=found.revision)

    async def list_volumes(
        self, request: pb.ListVolumesRequest, principal: Principal
    ) -> pb.ListVolumesResponse:
        found, revision = await self._entries.all(project_of(principal))
        entries = sorted((each.value for each in found), key=_position)
        if request.instance_id:
            known = await self._known(entries)
            entries = [each for each in entries if _whose(known.get(each.id)) == request.instance_id]
        page, token = self._pages.cut(entries, request, key=_position)
        known = await self._known(page)
        return pb.ListVolumesResponse(
            volumes=[_message(each, known, principal) for each in page],
            next_page_token=token,
            revision=revision,
        )

    async def _shown(self, entry: VolumeEntry, principal: Principal) -> pb.Volume:
        return _message(entry, await self._known([entry]), principal)

    async def _known(self, entries: Sequence[VolumeEntry]) -> dict[str, Volume | None]:
        """What their cells say of those that have one; nothing of those whose cell cannot be reached."""
        by_cell: dict[str, list[str]] = {}
        for entry in entries:
            if entry.cell:
                by_cell.setdefault(entry.cell, []).append(entry.id)
        told = await asyncio.gather(*(self._ask(cell, ids) for cell, ids in by_cell.items()))
        return {volume_id: volume for each in told for volume_id, volume in each.items()}

    async def _ask(self, cell: str, ids: Sequence[str]) -> dict[str, Volume | None]:
        told: dict[str, Volume | None] = {}
        for begin in range(0, len(ids), READ_TOGETHER):
            part = ids[begin : begin + READ_TOGETHER]
            try:
                seen = await self._cells[cell].get(*map(VOLUME.at, part))
            except (Unavailable, Ambiguous):
                return told
            told |= {each: _volume(seen, each) for each in part}
        return told

    # ------------------------------------------------------------------ changing

    async def create_volume(
        self, request: pb.CreateVolumeRequest, principal: Principal
    ) -> pb.CreateVolumeResponse:
        asked, project_id, volume_id = request.volume, project_of(principal), self._ids.new_id()
        now_ms = self._clock.now_ms()
        image = await self._made_of(asked, principal)

        async def decide(draft: Draft) -> str:
            await self._take_name(draft, project_id, asked.name, volume_id)
            await self._charge(draft, project_id, Charge(volumes=1, volume_gib=asked.size_gib))
            entry = VolumeEntry(
                id=volume_id,
                project_id=project_id,
                user_id=principal.user_id,
                name=asked.name,
                size_gib=asked.size_gib,
                image=image,
                directory=asked.directory,
                create_time_ms=now_ms,
                update_time_ms=now_ms,
                op_id=self._ids.new_id(),
            )
            draft.write(VOLUME_ENTRY.at(project_id, volume_id), entry, seen=0)
            return volume_id

        done = await self._make(decide, request, principal)
        made = await self._entries.get(project_id, done.resource_id)
        return pb.CreateVolumeResponse(
            volume=await self._shown(made.value, principal), revision=done.revision
        )

    async def update_volume(
        self, request: pb.UpdateVolumeRequest, principal: Principal
    ) -> pb.UpdateVolumeResponse:
        project_id, paths = project_of(principal), named(request.update_mask, UPDATABLE)

        async def decide(draft: Draft) -> str:
            found = await self._entries.get(project_id, request.volume)
            before = found.value
            after = replace(before, update_time_ms=self._clock.now_ms(), op_id=self._ids.new_id())
            if "name" in paths and request.name != before.name:
                after = replace(after, name=required_name(request.name))
                await self._take_name(draft, project_id, after.name, before.id)
                draft.free(VOLUME_NAME.at(project_id, before.name))
            if "size_gib" in paths and request.size_gib != before.size_gib:
                after = replace(after, size_gib=request.size_gib)
                await self._check_can_grow(before, after)
                more = Charge(volume_gib=after.size_gib - before.size_gib)
                await self._charge(draft, project_id, more)
            draft.write(VOLUME_ENTRY.at(project_id, before.id), after, seen=found.mod_revision)
            return before.id

        done = await self._make(decide, request, principal)
        made = await self._entries.get(project_id, done.resource_id)
        return pb.UpdateVolumeResponse(
            volume=await self._shown(made.value, principal), revision=done.revision
        )

    async def _check_can_grow(self, before: VolumeEntry, after: VolumeEntry) -> None:
        """Raises InvalidRequest, WrongState; Unavailable where its cell cannot be asked.

        A server may be given it in this very moment. That is no harm: it is made larger when it is next attached.
        """
        if after.size_gib < before.size_gib:
            raise InvalidRequest(
                f"volume {before.name!r} has {before.size_gib} GiB, and volumes do not shrink",
                field="size_gib",
            )
        volume = await self._where(before)
        if volume is not None and volume.state is not VolumeState.AVAILABLE:
            raise WrongState(
                f"volume {before.name!r} is {_WORDS[volume.state]}: only one that no server has can be made larger"
            )

    async def delete_volume(
        self, request: pb.DeleteVolumeRequest, principal: Principal
    ) -> pb.DeleteVolumeResponse:
        project_id = project_of(principal)
        # A name may be another volume's by now, which this request never was about.
        is_done = not is_id(request.volume) and await self._was_done(request, principal)
        found = None if is_done else await self._entries.find(project_id, request.volume)
        if is_done or (found is None and await self._was_done(request, principal)):
            return pb.DeleteVolumeResponse(revision=(await self._store.get()).revision)
        if found is not None and found.value.cell:
            done = await self._end_in_cell(found.value, request, principal)
        else:
            done = await self._make(self._unused(project_id, request.volume), request, principal)
        return pb.DeleteVolumeResponse(revision=done.revision)

    def _unused(self, project_id: str, word: str) -> Callable[[Draft], Awaitable[str]]:
        """The end of one that was never used: there is nothing but its row."""

        async def decide(draft: Draft) -> str:
            found = await self._entries.get(project_id, word)
            entry = found.value
            if entry.cell:
                raise Conflict(f"volume {entry.name!r} has just been attached; look again")
            key = QUOTA.at(project_id)
            seen = await self._store.get(key)
            quota = _quota(seen, key)
            back = Charge(volumes=1, volume_gib=entry.size_gib)
            draft.write(key, refund(quota, back, op_id=self._ids.new_id()), seen=seen.seen(key))
            draft.remove(VOLUME_ENTRY.at(project_id, entry.id), seen=found.mod_revision)
            draft.free(VOLUME_NAME.at(project_id, entry.name))
            return entry.id

        return decide

    async def _end_in_cell(
        self, entry: VolumeEntry, request: pb.DeleteVolumeRequest, principal: Principal
    ) -> Done:
        """The end of one that was used: its host removes its data, and then the reconciler its row."""
        view = self._cells[entry.cell]

        async def decide() -> Change:
            keys: tuple[str, ...] = (VOLUME.at(entry.id),)
            volume = _volume(await view.get(*keys), entry.id)
            host = "" if volume is None else volume.host
            if host:
                keys = (*keys, SESSION.at(host), TOMBSTONE.at(host, entry.id))
            seen = await view.get(*keys)
            if _volume(seen, entry.id) != volume:
                raise Conflict(f"volume {entry.name!r} is being changed by others; try again")
            return _ended(entry, volume, seen, keys, now_ms=self._clock.now_ms(), op_id=self._ids.new_id())

        return await view.change(lambda: self._in_cell[entry.cell].answer(decide, request, principal))

    # ------------------------------------------------------------------ parts

    async def _was_done(self, request: pb.DeleteVolumeRequest, principal: Principal) -> bool:
        """Whether this very delete was made before, in whichever store. Raises Conflict for another request's id."""
        return await self._answers.before(answered_by(request, principal)) is not None

    async def _made_of(self, asked: pb.Volume, principal: Principal) -> Image | None:
        """The image that the volume is to start as; None: it starts empty. Raises InvalidRequest, naming the field."""
        if not asked.image:
            return None
        try:
            image = await self._image(asked.image, principal)
        except NotFound as gone:
            raise InvalidRequest(
                gone.message, field="volume.image", reason=Reason.RESOURCE_NOT_FOUND
            ) from None
        check_fits_volume(image, asked.size_gib, field="volume.size_gib")
        return image

    async def _where(self, entry: VolumeEntry) -> Volume | None:
        if not entry.cell:
            return None
        return _volume(await self._cells[entry.cell].get(VOLUME.at(entry.id)), entry.id)

    async def _take_name(self, draft: Draft, project_id: str, name: str, volume_id: str) -> None:
        key = VOLUME_NAME.at(project_id, name)
        if key in (await self._store.get(key)).entries:
            raise AlreadyExists(f"the project has a volume {name!r} already", name=name)
        draft.take(key, volume_id)

    async def _charge(self, draft: Draft, project_id: str, more: Charge) -> None:
        key = QUOTA.at(project_id)
        seen = await self._store.get(key)
        draft.write(key, charge(_quota(seen, key), more, op_id=self._ids.new_id()), seen=seen.seen(key))

    async def _make(
        self, decide: Callable[[Draft], Awaitable[str]], request: Message, principal: Principal
    ) -> Done:
        return await self._once.answer(drafted(decide), request, principal)


async def bound(store: Store, found: Found[VolumeEntry], cell: str, *, op_id: str) -> VolumeEntry | None:
    """Have a volume belong to a cell from now on, which it does when it is first used. None: somebody was faster, look again.

    Raises WrongState for one that belongs to another cell.
    """
    entry = found.value
    if entry.cell == cell:
        return entry
    if entry.cell:
        raise WrongState(
            f"volume {entry.name!r} is in cell {entry.cell} and the server in cell {cell}: a volume of local files can only be attached to"
            " servers of the host that it was first attached on",
            action="attach-volume",
        )
    after = replace(entry, cell=cell, op_id=op_id)
    draft = Draft()
    key = VOLUME_ENTRY.at(entry.project_id, entry.id)
    draft.write(key, after, seen=found.mod_revision)
    txn = Txn(unchanged=draft.unchanged, put=draft.put)
    outcome = await commit_settled(store, txn, mark=key, patience_s=WRITE_PATIENCE_S)
    return after if isinstance(outcome, Committed) else None


def _ended(
    entry: VolumeEntry,
    volume: Volume | None,
    seen: Snapshot,
    keys: Sequence[str],
    *,
    now_ms: int,
    op_id: str,
) -> Change:
    """The write that ends a volume in its cell. Raises WrongState for one that a server has."""
    if volume is not None and volume.state in {VolumeState.IN_USE, VolumeState.DETACHING}:
        doing = "is attached to" if volume.state is VolumeState.IN_USE else "is still being detached from"
        raise WrongState(
            f"volume {entry.name!r} {doing} server {volume.instance_id}; detach it first",
            action="delete-volume",
        )
    if volume is not None and volume.state in {VolumeState.DELETING, VolumeState.DELETED}:
        return Change(resource_id=entry.id, unchanged={})
    before = volume or Volume(id=entry.id, project_id=entry.project_id, state=VolumeState.AVAILABLE)
    is_somewhere = bool(before.host)
    after = replace(
        before,
        state=VolumeState.DELETING if is_somewhere else VolumeState.DELETED,
        update_time_ms=now_ms,
        op_id=op_id,
    )
    put: dict[str, object] = {VOLUME.at(entry.id): after}
    if is_somewhere:
        stored = seen.value(SESSION.at(before.host))
        session = None if stored is None else decode(Session, stored)
        put |= buried(after, session, op_id=op_id)
    else:
        put[VOLUME_END.at(entry.id)] = VolumeEnd(volume_id=entry.id, project_id=entry.project_id)
    return Change(
        resource_id=entry.id,
        unchanged={key: seen.seen(key) for key in keys},
        put={key: encode(value) for key, value in put.items()},
    )


def _message(entry: VolumeEntry, known: Mapping[str, Volume | None], principal: Principal) -> pb.Volume:
    volume = known.get(entry.id)
    is_known = not entry.cell or entry.id in known
    return pb.Volume(
        id=entry.id,
        name=entry.name,
        size_gib=entry.size_gib,
        project_id=entry.project_id,
        user_id=entry.user_id,
        status=_WORDS[volume.state] if volume else (_WORDS[VolumeState.AVAILABLE] if is_known else UNKNOWN),
        instance_id=_whose(volume),
        serial=serial_of(entry.id),
        delete_on_termination=volume.ends_with_instance if volume else False,
        cell=entry.cell,
        host=volume.host if volume and principal.system_admin else "",
        create_time=timestamp(entry.create_time_ms),
        attach_time=timestamp(volume.attach_time_ms) if volume and volume.attach_time_ms else None,
        image=entry.image.id if entry.image else "",
        image_name=entry.image.name if entry.image else "",
        directory=entry.directory,
    )


def _whose(volume: Volume | None) -> str:
    return "" if volume is None else volume.instance_id


def _volume(seen: Snapshot, volume_id: str) -> Volume | None:
    stored = seen.value(VOLUME.at(volume_id))
    return None if stored is None else decode(Volume, stored)


def _quota(seen: Snapshot, key: str) -> Quota:
    stored = seen.value(key)
    if stored is None:
        raise NotFound("the project has no quota: it does not exist any more")
    return decode(Quota, stored)


def _position(entry: VolumeEntry) -> str:
    return position(entry.name, entry.id)
