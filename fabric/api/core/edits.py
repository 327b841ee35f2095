"""What people change of a server's record alone: its name, metadata and tags, its lock, and what an administrator says it is. Rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from fabric.api.core.intent import Change
from fabric.errors import InvalidRequest, WrongState
from fabric.lifecycle.core import STATE_RESET
from fabric.model.instance import Fault, Instance
from fabric.model.states import Action, TaskState, VmState, Want

METADATA_LIMIT: Final = 128
"""Entries, as in the reference's default quota."""

TAGS_LIMIT: Final = 50
TAG_LIMIT: Final = 60
"""Characters of a tag. It may hold neither a slash nor a comma (as in the reference)."""


def renamed(name: str) -> Change:
    """Another name. The host name stays: the guest has been told it."""

    def change(now: Instance) -> Instance:
        request = now.request
        return replace(now, request=replace(request, guest=replace(request.guest, name=name)))

    return change


def described(
    *, put: Mapping[str, str], drop: Iterable[str], add_tags: Iterable[str], drop_tags: Iterable[str]
) -> Change:
    """Other metadata and tags: what is to go goes first. Raises InvalidRequest for a tag that cannot be one."""
    dropped, added, removed = frozenset(drop), frozenset(add_tags), frozenset(drop_tags)
    for tag in sorted(added):
        if not 1 <= len(tag) <= TAG_LIMIT or "/" in tag or "," in tag:
            raise InvalidRequest(
                f"{tag!r} is no tag: it must have 1 to {TAG_LIMIT} characters, and neither a slash nor a comma",
                field="add_tags",
            )
    if "" in put:
        raise InvalidRequest("a key of metadata must not be empty", field="set")

    def change(now: Instance) -> Instance:
        request = now.request
        metadata = {key: value for key, value in request.guest.metadata.items() if key not in dropped}
        metadata |= put
        tags = tuple(sorted((frozenset(now.tags) - removed) | added))
        if len(metadata) > METADATA_LIMIT:
            raise InvalidRequest(f"a server has at most {METADATA_LIMIT} entries of metadata", field="set")
        if len(tags) > TAGS_LIMIT:
            raise InvalidRequest(f"a server has at most {TAGS_LIMIT} tags", field="add_tags")
        return replace(
            now, tags=tags, request=replace(request, guest=replace(request.guest, metadata=metadata))
        )

    return change


def locked(reason: str, *, by_admin: bool) -> Change:
    """A lock. An administrator's is not made a member's by locking again (as in the reference)."""

    def change(now: Instance) -> Instance:
        if now.locked and now.locked_by_admin and not by_admin:
            return now
        return replace(now, locked=True, locked_reason=reason, locked_by_admin=by_admin)

    return change


def unlocked(*, by_admin: bool) -> Change:
    """No lock. Raises WrongState for an administrator's lock and somebody else."""

    def change(now: Instance) -> Instance:
        if now.locked and now.locked_by_admin and not by_admin:
            because = f": {now.locked_reason}" if now.locked_reason else ""
            raise WrongState(
                f"cannot {Action.UNLOCK}: an administrator has locked the server{because};"
                " allowed now: nothing until an administrator unlocks it",
                action=Action.UNLOCK,
                vm_state=now.vm_state.name.lower(),
                task_state=now.task.name.lower(),
                instance=now.id,
            )
        return replace(now, locked=False, locked_reason="", locked_by_admin=False)

    return change


def reset(onto: VmState, *, now_ms: int) -> Change:
    """The state that an administrator says. ACTIVE is also what is wanted from then on; ERROR stays until an action ends it."""

    def change(now: Instance) -> Instance:
        said = replace(now, vm_state=onto, task=TaskState.NONE, task_deadline_ms=0)
        if onto is VmState.ACTIVE:
            # The host is told anew, and makes it so, or says that it cannot.
            return replace(said, want=Want.RUN, fault=None, generation=now.generation + 1)
        fault = Fault(code=STATE_RESET, message="an administrator has said so", host=now.host, time_ms=now_ms)
        return replace(said, fault=fault)

    return change
