"""Clients that behave as clients do: retry with the same request_id, sometimes twice at once on two API servers, and give up.

What they were told is recorded for the checker; what they were not told is recorded as nothing at all (I16).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from fabric.deadlines import within
from fabric.errors import FabricError, NotFound, Unavailable
from fabric.lifecycle.core import allowed_actions
from fabric.model.identity import Principal
from fabric.model.states import Action, TaskState, VmState
from fabric.pb.compute.v1 import instance_service_pb2 as pb
from fabric.rpc.method import Method, methods
from tests.history.events import Called, Event, Returned

PATIENCE_S = 20.0
"""How long a client waits for one answer."""

ATTEMPTS = 8

CARELESS = 0.15
"""How often a client asks for anything at all, whatever state its server is in."""

MOVES = frozenset({"shelve", "unshelve", "resize", "migrate", "confirm-resize", "revert-resize"})
"""What a client that moves its servers about asks for whenever it can."""

FIELDS: dict[str, dict[str, list[Any]]] = {
    "stop": {"timeout_s": [1, 5]},
    "resize": {"flavor": ["small", "large"]},
    "migrate": {"host": [""]},
    "rescue": {"image": ["", "tiny"], "password": [""]},
    "create-image": {"name": [f"image-{number}" for number in range(1000)], "properties": [{}]},
    "create-backup": {
        "name": [f"backup-{number}" for number in range(1000)],
        "backup_type": ["daily"],
        "rotation": [1, 2],
    },
    "rebuild": {"image": ["tiny"], "key_name": [""], "user_data": [b""], "metadata": [{}], "name": [""]},
    "reboot": {"kind": [pb.REBOOT_KIND_SOFT, pb.REBOOT_KIND_HARD]},
}
"""What the requests of some actions need besides, and what it may be."""


def _methods() -> dict[str, tuple[Method, dict[str, list[Any]]]]:
    found = {
        method.action or "reboot": method
        for method in methods(pb.DESCRIPTOR.services_by_name["InstanceService"])
        if method.action or method.name == "RebootInstance"
    }
    plain = {"request_id", "instance"}
    return {
        action: (method, FIELDS.get(action, {}))
        for action, method in found.items()
        if {each.name for each in method.request.DESCRIPTOR.fields} - plain <= FIELDS.get(action, {}).keys()
    }


METHODS = _methods()
"""Every action that a client knows how to ask for: those that need nothing but the server, and those of FIELDS."""

_REBOOTS = frozenset({Action.REBOOT_SOFT, Action.REBOOT_HARD})


def _allowed(seen: pb.GetInstanceResponse) -> tuple[str, ...]:
    status = seen.instance.status
    if not status.vm_state:
        return ()
    task = TaskState[status.task_state.upper()] if status.task_state else TaskState.NONE
    may = allowed_actions(VmState[status.vm_state.upper()], task)
    words = dict.fromkeys("reboot" if each in _REBOOTS else str(each) for each in may)
    return tuple(word for word in words if word in METHODS)


Call = Callable[[str, str, Any, Principal], Awaitable[Any]]
"""(api server, handler, request, principal) -> response; raises what the handler raises, or Unavailable when it is down."""


@dataclass(slots=True)
class Client:
    """One user of one or two projects. One who `moves` has few servers, and sends them from host to host."""

    name: str
    random: Random
    principals: list[Principal]
    apis: list[str]
    call: Call
    record: Callable[[Event], None]
    number: Callable[[], int]
    moves: bool = False
    mine: list[tuple[str, Principal]] = field(default_factory=list)
    _asked: int = 0

    async def run(self, is_over: Callable[[], bool]) -> None:
        """Work until it is over."""
        while not is_over():
            await asyncio.sleep(self.random.uniform(0.2, 3.0))
            draw = self.random.random()
            create, delete, look = (0.15, 0.2, 0.25) if self.moves else (0.45, 0.65, 0.72)
            if draw < create or not self.mine:
                await self._create()
            elif draw < delete:
                await self._delete(*self.random.choice(self.mine))
            elif draw < look:
                await self._get()
            else:
                await self._act()

    async def _create(self) -> None:
        self._asked += 1
        principal = self.random.choice(self.principals)
        request = pb.CreateInstanceRequest(
            request_id=f"{self.name}-{self._asked}",
            name=f"{self.name}-{self._asked}",
            flavor=self.random.choice(["small", "small", "large"]),
            network="default",
            **self._boots_from(principal),
        )
        twice = self.random.random() < 0.3
        for _ in range(ATTEMPTS):
            servers = self.apis if twice else [self.random.choice(self.apis)]
            answers = await asyncio.gather(
                *(self._ask(api, "create", "create_instance", request, principal) for api in servers)
            )
            made = [each.instance for each in answers if isinstance(each, pb.CreateInstanceResponse)]
            if made:
                self.mine.append((made[0].id, principal))
                self._has_made(made[0], principal)
                if self.random.random() < 0.15:
                    await self._delete(made[0].id, principal)
                return
            if any(each is not None and not isinstance(each, Unavailable) for each in answers):
                return
            await asyncio.sleep(0.5)

    def _has_made(self, instance: pb.Instance, principal: Principal) -> None:
        """A create was accepted."""

    def _boots_from(self, _principal: Principal) -> dict[str, Any]:
        """What a create says of what its server boots from."""
        return {"image": "tiny"}

    async def _delete(self, instance_id: str, principal: Principal) -> None:
        self._asked += 1
        request = pb.DeleteInstanceRequest(request_id=f"{self.name}-{self._asked}", instance=instance_id)
        await self._retry("delete", "delete_instance", request, principal)

    async def _act(self) -> None:
        instance_id, principal = self.random.choice(self.mine[-3:] if self.moves else self.mine)
        asked = pb.GetInstanceRequest(instance=instance_id)
        seen = await self._ask(self.random.choice(self.apis), "get", "get_instance", asked, principal)
        self._asked += 1
        rid = f"{self.name}-{self._asked}"
        may = _allowed(seen) if isinstance(seen, pb.GetInstanceResponse) else ()
        if not may or self.random.random() < CARELESS:
            may = tuple(METHODS)
        moves = tuple(word for word in may if word in MOVES)
        if self.moves and moves and self.random.random() < 0.8:
            may = moves
        action = self.random.choice(may)
        method, fields = METHODS[action]
        fields = {name: self.random.choice(values) for name, values in fields.items()}
        request = method.request(request_id=rid, instance=instance_id, **fields)
        await self._retry(action, method.attribute, request, principal)

    async def _get(self) -> None:
        instance_id, principal = self.random.choice(self.mine)
        request = pb.GetInstanceRequest(instance=instance_id)
        await self._ask(self.random.choice(self.apis), "get", "get_instance", request, principal)

    async def _retry(self, method: str, handler: str, request: Any, principal: Principal) -> None:
        for _ in range(ATTEMPTS):
            answer = await self._ask(self.random.choice(self.apis), method, handler, request, principal)
            if answer is not None and not isinstance(answer, Unavailable):
                return
            await asyncio.sleep(0.5)

    async def _ask(self, api: str, method: str, handler: str, request: Any, principal: Principal) -> Any:
        """One attempt: the response, the error, or None when no answer came."""
        call = self.number()
        instance_id = getattr(request, "instance", "")
        self.record(
            Called(call, method, principal.project_id, getattr(request, "request_id", ""), instance_id)
        )
        try:
            async with within(PATIENCE_S):
                answer = await self.call(api, handler, request, principal)
        except TimeoutError:
            return None
        except NotFound as gone:
            self.record(Returned(call, error="" if method in {"get", "delete"} else gone.reason))
            return gone
        except Unavailable as away:
            return away
        except FabricError as refusal:
            self.record(Returned(call, error=refusal.reason))
            return refusal
        self.record(
            Returned(call, instance_id=answer.instance.id if method in {"create", "get"} else instance_id)
        )
        return answer
