"""Instances in every state, for the lifecycle's tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fabric.lifecycle.core import Said
from fabric.model.image import ImageFormat
from fabric.model.instance import Guest, ImageRef, Instance, Move, Place, Request
from fabric.model.session import HostState
from fabric.model.states import PowerState, TaskState, VmState, Want

NOW_MS = 1_700_000_000_000

IMAGE = ImageRef(
    id="image",
    name="debian",
    format=ImageFormat.QCOW2,
    sha256="ab" * 32,
    size_bytes=1,
    virtual_size_bytes=1,
)

GUEST = Guest(
    id="00000000-0000-4000-8000-000000000001",
    name="web",
    hostname="web",
    project_id="nebula",
    user_id="user",
    vcpus=1,
    ram_mib=512,
    disk_gib=1,
    image=IMAGE,
)

MOVED = Move(
    other=Place(host="h0", placement_epoch=0, slot=3, request=Request(guest=GUEST)),
    want=Want.RUN,
    vm_state=VmState.ACTIVE,
    has_switched=True,
)
"""Of a server that has gone from h0 to where it is."""

POWERS = {
    HostState.ACTIVE: PowerState.RUNNING,
    HostState.STOPPED: PowerState.SHUTDOWN,
    HostState.ERROR: PowerState.NOSTATE,
    HostState.ABSENT: PowerState.NOSTATE,
    HostState.PAUSED: PowerState.PAUSED,
    HostState.SUSPENDED: PowerState.SUSPENDED,
}


DONE = {
    Want.RUN: HostState.ACTIVE,
    Want.STOP: HostState.STOPPED,
    Want.PAUSE: HostState.PAUSED,
    Want.SUSPEND: HostState.SUSPENDED,
    Want.ABSENT: HostState.ABSENT,
}
"""What a host says once it has done what is wanted."""


def instance(vm_state: VmState = VmState.ACTIVE, task: TaskState = TaskState.NONE, **facts: Any) -> Instance:
    """A placed instance; one that was resized has its old copy on another host."""
    made = Instance(
        id=GUEST.id,
        request=Request(guest=GUEST),
        vm_state=vm_state,
        task=task,
        host="h1",
        placement_epoch=1,
        generation=3,
        launch_time_ms=NOW_MS,
        move=MOVED if vm_state is VmState.RESIZED else None,
    )
    return replace(made, **facts)


def said(now: Instance, state: HostState, **facts: Any) -> Said:
    """What its own host says of the intent that is current."""
    code = "DISK_FULL" if state is HostState.ERROR else ""
    made = Said(
        host=now.host,
        placement_epoch=now.placement_epoch,
        generation=now.generation,
        action_seq=now.action.seq,
        state=state,
        power=POWERS[state],
        fault_code=code,
        fault_message="the host's disk is full" if code else "",
    )
    return replace(made, **facts)
