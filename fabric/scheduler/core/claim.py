"""From decisions to the one transaction that makes them true: the host's use record, an assignment and a record for each server.

Whatever raced with the decision (a host filled, closed, or lost its session; the server claimed by another scheduler, or deleted) has moved
a revision compared here, so that the transaction is refused as a whole and nothing was claimed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from fabric.lifecycle.events import created
from fabric.lifecycle.table import BY_ACTION
from fabric.model.host import Host, Resources, Use
from fabric.model.instance import ActionMark, Assignment, Build, Fault, Instance
from fabric.model.placement import Decision
from fabric.model.states import Action, TaskState, VmState, Want
from fabric.network.addresses import ports_at
from fabric.network.claims import slot_on
from fabric.scheduler.core import boot_volumes
from fabric.scheduler.core.boot_volumes import Root
from fabric.scheduler.core.change import Change
from fabric.scheduler.core.picture import HostPicture
from fabric.store import keys
from fabric.store.keys import VOLUME

NO_ROOTS: Final[Mapping[str, Root]] = MappingProxyType({})
"""Everybody boots from an image."""

FIRST_PLACEMENT = 1
"""The placement epoch, the generation and the attempt of every first claim."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A build and the decision that found it a host."""

    build: Build
    decision: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What to commit, and the use records as they then are, by host: the picture takes them in as soon as it is committed.

    `left` are builds whose host no longer takes them by the records that were read: they are to be decided again.
    """

    change: Change
    uses: dict[str, Use]
    claimed: tuple[Build, ...]
    left: tuple[Build, ...]


def claim(
    hosts: HostPicture,
    cell: str,
    chosen: Sequence[Chosen],
    *,
    now_ms: int,
    op_id: str,
    deadline_s: float,
    roots: Mapping[str, Root] = NO_ROOTS,
) -> Claim:
    """Claims for builds of one cell, all in one transaction; `roots` are the volumes of those that boot from one, by server.

    Never puts more on a host than its inventory has, nor two servers at one address, whatever the decisions say: they were
    made on columns, this on the records whose revisions are compared.
    """
    uses: dict[str, Use] = {}
    unchanged: dict[str, int] = {}
    put: dict[str, object] = {}
    claimed: list[Build] = []
    left: list[Build] = []
    for each in chosen:
        name, build = each.decision.host, each.build
        host, session = hosts.host(cell, name), hosts.session(cell, name)
        seen_use = hosts.use(cell, name)
        use = uses.get(name, seen_use.value or Use(host=name))
        guest = build.request.guest
        root = roots.get(build.instance_id)
        volume = None if root is None else boot_volumes.claimed(root, build, name, now_ms=now_ms, op_id=op_id)
        room = Resources(disk_gib=0 if root is None else root.more_gib)
        slot = slot_on(host.value, session.value, use, build.request, more=room)
        if (
            host.value is None
            or slot is None
            or (guest.root_volume is not None and (volume is None or VOLUME.at(volume.id) in put))
        ):
            left.append(build)
            continue
        uses[name] = use.plus(guest.resources(), slot, op_id=op_id).with_volumes(room.disk_gib, op_id=op_id)
        if root is not None and volume is not None:
            unchanged[VOLUME.at(volume.id)] = root.volume.revision
            put[VOLUME.at(volume.id)] = volume
        instance, assignment = _placed(
            each, host.value, slot, now_ms=now_ms, op_id=op_id, deadline_s=deadline_s
        )
        unchanged |= {
            keys.HOST.at(name): host.revision,
            keys.SESSION.at(name): session.revision,
            keys.USE.at(name): seen_use.revision,
            keys.INSTANCE.at(build.instance_id): 0,
            keys.OVER.at(build.instance_id): 0,
        }
        put |= {
            keys.USE.at(name): uses[name],
            keys.ASSIGNMENT.at(name, build.instance_id): assignment,
            keys.INSTANCE.at(build.instance_id): instance,
        }
        claimed.append(build)
    return Claim(
        change=Change(unchanged=unchanged, put=put), uses=uses, claimed=tuple(claimed), left=tuple(left)
    )


def never_placed(
    build: Build, *, fault_code: str, message: str, decision: Decision | None, now_ms: int, op_id: str
) -> Change:
    """The server's record when it ends in ERROR without ever having had a host: exactly once, like a claim.

    A volume that it was to boot from it never had.
    """
    fault = Fault(code=fault_code, message=message, time_ms=now_ms)
    instance = Instance(
        id=build.instance_id,
        request=replace(build.request, guest=replace(build.request.guest, volumes=(), volume_images=())),
        vm_state=VmState.ERROR,
        task=TaskState.NONE,
        # Nothing is to run: there is no host that could.
        want=Want.STOP,
        decision=decision,
        fault=fault,
        event=created(build, now_ms=now_ms, fault=fault),
        create_time_ms=build.create_time_ms,
        update_time_ms=now_ms,
        op_id=op_id,
    )
    return Change(
        unchanged={keys.INSTANCE.at(build.instance_id): 0, keys.OVER.at(build.instance_id): 0},
        put={keys.INSTANCE.at(build.instance_id): instance},
    )


def _placed(
    each: Chosen, host: Host, slot: int, *, now_ms: int, op_id: str, deadline_s: float
) -> tuple[Instance, Assignment]:
    build, request = each.build, each.build.request
    ports = ports_at(host, slot, instance_id=build.instance_id, request=request)
    rule = BY_ACTION[Action.CREATE]
    instance = Instance(
        id=build.instance_id,
        request=request,
        vm_state=VmState.BUILDING,
        task=rule.task,
        want=Want.RUN,
        host=host.name,
        placement_epoch=FIRST_PLACEMENT,
        slot=slot,
        generation=FIRST_PLACEMENT,
        action=ActionMark(),
        ports=ports,
        attempt=FIRST_PLACEMENT,
        # Where its data is, and nowhere else.
        alternates=each.decision.alternates if request.guest.root_volume is None else (),
        decision=each.decision,
        task_start_ms=now_ms,
        task_deadline_ms=now_ms + round(deadline_s * 1000),
        task_request_id=build.request_id,
        task_by=build.request.guest.user_id,
        event=created(build, now_ms=now_ms, host=host.name),
        create_time_ms=build.create_time_ms,
        update_time_ms=now_ms,
        op_id=op_id,
    )
    assignment = Assignment(
        instance_id=build.instance_id,
        placement_epoch=instance.placement_epoch,
        generation=instance.generation,
        want=instance.want,
        action=instance.action,
        # The zone a guest is told is the one it got, which a request may have left open.
        guest=replace(request.guest, ports=ports, availability_zone=host.zone),
    )
    return instance, assignment
