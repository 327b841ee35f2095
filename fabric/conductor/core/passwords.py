"""How the task of a changed password ends: by the request that began it, and by the session that its host has now."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from fabric.conductor.core import fence
from fabric.conductor.core.draft import Draft, Ref, ref
from fabric.conductor.core.flow import write
from fabric.lifecycle.core import failed
from fabric.lifecycle.events import closed, stepped
from fabric.model.event import EventStep, StepName
from fabric.model.instance import Fault, Instance
from fabric.model.states import TaskState
from fabric.store.keys import INSTANCE, SESSION

UNANSWERED: Final = "PASSWORD_UNANSWERED"
"""The fault of a host that did not say what became of it. Not among the words of hosts: only the control plane says it."""


def reads(host: str, instance_id: str) -> tuple[Ref, ...]:
    """What `end` looks at."""
    return ref(INSTANCE, instance_id), ref(SESSION, host)


def end(
    draft: Draft,
    host: str,
    epoch: int,
    instance_id: str,
    *,
    request_id: str,
    fault_code: str,
    message: str,
    now_ms: int,
    op_id: str,
) -> None:
    """End the task, with a fault where there is a message of one. A task that is not there any more, or another's, is left alone."""
    now = draft.get(INSTANCE, instance_id)
    if now is None or now.host != host or not fence.holds(draft.get(SESSION, host), epoch):
        return
    if now.task is not TaskState.UPDATING_PASSWORD or now.task_request_id != request_id:
        return
    draft.rely_on(SESSION, host)
    code = fault_code or UNANSWERED if message else ""
    told = _stepped(now, host, code, now_ms=now_ms)
    if message:
        fault = Fault(code=code, message=message, host=host, time_ms=now_ms)
        after = failed(told, fault, now_ms=now_ms, op_id=op_id)
    else:
        after = replace(
            told,
            task=TaskState.NONE,
            task_deadline_ms=0,
            fault=None,
            event=None if told.event is None else closed(told.event, now_ms=now_ms),
            update_time_ms=now_ms,
            op_id=op_id,
        )
    write(draft, now, after)


def _stepped(now: Instance, host: str, fault_code: str, *, now_ms: int) -> Instance:
    """The record with the one step that this takes: from when it was asked for to now."""
    if now.event is None:
        return now
    step = EventStep(
        name=StepName.SET_PASSWORD,
        host=host,
        start_ms=now.task_start_ms,
        finish_ms=now_ms,
        fault_code=fault_code,
    )
    return replace(now, event=stepped(now.event, (step,)))
