"""The actions that change a server's record alone, each with what its request says of that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from fabric.api.core.edits import described, locked, renamed, reset, unlocked
from fabric.api.core.intent import Change
from fabric.clock import Clock
from fabric.model.identity import Principal
from fabric.model.states import Action, VmState
from fabric.pb.compute.v1 import instance_service_pb2 as pb

Edit = Callable[[Any, Principal, Clock], Change]
"""From a request of the action's own type. Raises InvalidRequest, naming the field."""


def _described(request: pb.SetInstanceMetadataRequest, _principal: Principal, _clock: Clock) -> Change:
    return described(
        put=dict(request.set),
        drop=request.unset,
        add_tags=request.add_tags,
        drop_tags=request.remove_tags,
    )


def _reset(request: pb.ResetInstanceStateRequest, _principal: Principal, clock: Clock) -> Change:
    onto = VmState.ACTIVE if request.state == pb.RESET_TO_ACTIVE else VmState.ERROR
    return reset(onto, now_ms=clock.now_ms())


EDITS: Mapping[Action, Edit] = MappingProxyType(
    {
        Action.RENAME: lambda request, _principal, _clock: renamed(request.name),
        Action.SET_METADATA: _described,
        Action.LOCK: lambda request, principal, _clock: locked(
            request.reason, by_admin=principal.system_admin
        ),
        Action.UNLOCK: lambda _request, principal, _clock: unlocked(by_admin=principal.system_admin),
        Action.RESET_STATE: _reset,
    }
)
