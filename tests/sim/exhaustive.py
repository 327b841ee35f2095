"""Every step of every action, broken in every way: the action completes, or is taken back with its reason, and nothing is left behind.

python -m tests.sim.exhaustive                 everything, as Markdown: docs/reports/failpoints.md
python -m tests.sim.exhaustive pause suspend   these actions only

First an action is run whole, and everything that it does is noted: each place that a host daemon says it has reached, each call on the
host's machine, each write of a store. Then it is run again for each of them, in a new world, with one thing broken just there; what was
killed comes back after some seconds. Chance decides nothing here, so what is broken is what was noted.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Final

from google.protobuf.message import Message

from fabric.errors import FabricError, NotFound, WrongState
from fabric.lifecycle.core import allowed_actions
from fabric.lifecycle.table import BY_ACTION, RULES, shown
from fabric.model.faults import FaultCode
from fabric.model.image import ImageState
from fabric.model.quota import Charge
from fabric.model.states import Action, TaskState, VmState
from fabric.model.volume import is_serial
from fabric.pb.compute.v1 import instance_service_pb2 as pb
from fabric.pb.volume.v1 import volume_service_pb2 as volume_pb
from hostd.driver.fake import Delays, FakeMachine, MachineEvent
from tests.history.invariants import Violation
from tests.sim.clients import METHODS
from tests.sim.loop import PROCESS, SimLoop, graveyard
from tests.sim.run import unlogged
from tests.sim.world import Topology, World

BACK_S: Final = 3.0
"""After how long what was killed is started again."""

POWER_S: Final = 15.0
"""How long a machine is without power."""

KEPT_S: Final = 1e9
"""How long deleted servers are kept where they are: longer than any story lasts."""

MARGIN_S: Final = 400.0
"""How long after the action's own deadline everything must be at rest."""

LOOKS: Final = frozenset(
    {"observe", "domains", "held", "free_gib", "find_copy", "open", "prune", "console_log"}
)
"""Calls on a machine that change nothing: what breaks there is measured again."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where something can be broken: by its name, whose it is, and the how-manieth time (from 1)."""

    kind: str
    """`reach`, `step` or `write`."""
    name: str
    whose: str
    visit: int

    def __str__(self) -> str:
        return f"{self.name} ({self.visit})" if self.visit > 1 else self.name


TAKEN_BACK: Final = "taken back, with its reason"

BREAKS: Final[dict[str, tuple[str, ...]]] = {
    "reach": ("kill hostd", "kill conductor", "lose power"),
    "write": ("kill the process",),
    "step": ("fail",),
}


@dataclass(slots=True)
class Run:
    """One world's history: what was reached, and how it ended."""

    places: list[Place] = field(default_factory=list)
    ended: str = ""
    violation: str = ""
    is_broken: bool = False


class Wired(FakeMachine):
    """A machine that tells of every call before it is carried out."""

    def __init__(self, told: Callable[[str, str], FaultCode | None], *args: Any, **facts: Any) -> None:
        super().__init__(*args, **facts)
        self._told = told

    def pop_fault(self, step: str) -> FaultCode | None:
        return super().pop_fault(step) or self._told(self.name, step)


class Reached:
    """The failpoints of one process."""

    def __init__(self, told: Callable[[str, str], bool], process: str) -> None:
        self._told = told
        self._process = process

    async def reach(self, name: str) -> None:
        if self._told(self._process, name):
            # Whoever was killed here never goes on.
            await asyncio.sleep(0)


class OneBreak(World):
    """A small world in which one thing breaks at one place, or nothing does."""

    def __init__(self, loop: SimLoop, place: Place | None, how: str, *, keeps: bool = False) -> None:
        super().__init__(
            loop,
            0,
            Topology(
                hosts_per_cell=3,
                apis=1,
                schedulers=1,
                conductors_per_cell=1,
                projects=1,
                quota=Charge(instances=20, vcpus=40, ram_mib=40960, volumes=1, volume_gib=1),
                # Shelving is one action here, and offloading another; so are deleting and keeping what is deleted.
                shelve_offload_s=-1,
                reclaim_s=KEPT_S if keeps else 0.0,
            ),
        )
        self.network.lose_answers = 0.0
        self.network.double_frames = 0.0
        self._delays = Delays()
        self.found = Run()
        self.is_watching = False
        self._place = place
        self._how = how
        self._visits: Counter[tuple[str, str, str]] = Counter()

    # ---------------------------------------------------------------- noticing

    def failpoints_of(self, process: str) -> Reached:
        return Reached(self._has_reached, process)

    def machine_of(self, name: str, record: Callable[[MachineEvent], None]) -> FakeMachine:
        return Wired(
            self._is_about_to, name, total=self.topology.host_capacity, delays=self._delays, record=record
        )

    def _has_reached(self, process: str, name: str) -> bool:
        return self._meets(Place("reach", name, process, 0)) is not None

    def _is_about_to(self, host: str, step: str) -> FaultCode | None:
        if step in LOOKS or self._meets(Place("step", step, host, 0)) is None:
            return None
        return FaultCode.HOST_FAILED

    def _committed(self, process: str) -> None:
        super()._committed(process)
        if process.startswith(("api", "scheduler", "cell")):
            self._meets(Place("write", f"{process.rstrip('0123456789')} writes", process, 0))

    def _meets(self, place: Place) -> Place | None:
        """Note it; break what is to be broken here. The place, where it was."""
        if not self.is_watching:
            return None
        key = (place.kind, place.name, place.whose)
        self._visits[key] += 1
        place = replace(place, visit=self._visits[key])
        if self._place is None:
            self.found.places.append(place)
            return None
        if self.found.is_broken or place != self._place:
            return None
        self.found.is_broken = True
        self._strike(place)
        return place

    def _strike(self, place: Place) -> None:
        conductors = self.conductors_of(self.cells[0])
        match self._how:
            case "kill hostd" | "kill the process":
                self._kill(place.whose)
            case "kill conductor":
                for name in conductors:
                    self._kill(name)
            case "lose power":
                self.lose_power(place.whose)
                self._later(POWER_S, lambda: self.restore_power(place.whose))

    def _kill(self, process: str) -> None:
        self.kill(process)
        self._later(BACK_S, lambda: self.start(process))

    def _later(self, delay_s: float, act: Callable[[], None]) -> None:
        context = self.network.world.copy()
        context.run(PROCESS.set, None)
        self.loop.call_later(delay_s, act, context=context)


# -------------------------------------------------------------------- scenarios


def way_to(action: Action) -> tuple[Action, ...]:
    """The shortest way from a server that runs to one that may be asked for the action, by actions that a client can ask for."""
    ways: dict[VmState, tuple[Action, ...]] = {VmState.ACTIVE: ()}
    queue = [VmState.ACTIVE]
    while queue:
        state = queue.pop(0)
        if action in allowed_actions(state, TaskState.NONE):
            return ways[state]
        for rule in RULES:
            final = rule.final
            if (
                state in rule.allowed
                and is_asked_for(rule.action)
                and final is not None
                and final not in ways
            ):
                ways[final] = (*ways[state], rule.action)
                queue.append(final)
    raise LookupError(f"nothing leads to {action}")


KEEPING: Final = frozenset({Action.SOFT_DELETE, Action.RESTORE})
"""What needs a world in which deleted servers are kept."""

OTHERWISE: Final = frozenset({Action.SOFT_DELETE, Action.CHANGE_PASSWORD})
"""What has no method of its own, or one that answers when it is done."""

LEFT_TO_HOSTS: Final[dict[Action, tuple[Action, ...]]] = {
    Action.CONFIRM_RESIZE: (),
    Action.ATTACH_VOLUME: (),
    Action.DETACH_VOLUME: (Action.ATTACH_VOLUME,),
    Action.ATTACH_INTERFACE: (),
    Action.DETACH_INTERFACE: (Action.ATTACH_INTERFACE,),
}
"""What has no task, but leaves something to hosts: a copy to forget, a device to plug in or out. And what must have been done before."""

_DEVICES: Final = frozenset(LEFT_TO_HOSTS) - {Action.CONFIRM_RESIZE}
_OF_VOLUMES: Final = frozenset({Action.ATTACH_VOLUME, Action.DETACH_VOLUME})

PASSWORD: Final = "of the story"
IMAGE: Final = "made-of-web"
VOLUME: Final = "data"


def is_asked_for(action: Action) -> bool:
    """Whether a client can ask for it."""
    return word_of(action) in METHODS or action in OTHERWISE


def word_of(action: Action) -> str:
    """The client's word for an action."""
    return "reboot" if action in {Action.REBOOT_SOFT, Action.REBOOT_HARD} else str(action)


def actions() -> Iterator[Action]:
    """What is broken: the create, the delete, and everything that a client can ask for and that is under way for a while."""
    yield Action.CREATE
    yield Action.DELETE
    yield from LEFT_TO_HOSTS
    for rule in RULES:
        if rule.task is not TaskState.NONE and is_asked_for(rule.action):
            yield rule.action


class Story:
    """A server's life up to an action, the action, and its end."""

    def __init__(self, world: OneBreak) -> None:
        self._world = world
        self._who = world.principals()[0]
        self._asked = 0

    async def tell(self, action: Action) -> str:
        """Run it. Returns how the action ended, in words. Raises Violation."""
        world = self._world
        await world.furnish()
        world.populate()
        await self._at_rest(60.0, "at first")
        if action is Action.CREATE:
            world.is_watching = True
        server = await self._create()
        before = VmState.BUILDING
        if action is not Action.CREATE:
            await self._at_rest(120.0, "after the create")
            if action in _OF_VOLUMES:
                await self._make_volume()
            for step in (*way_to(action), *LEFT_TO_HOSTS.get(action, ())):
                await self._ask(step, server)
                await self._at_rest(BY_ACTION[step].deadline_s, f"after {step}")
            before = await self._state(server) or before
            world.is_watching = True
            await self._ask(action, server)
        rule = BY_ACTION[action]
        await self._at_rest(rule.deadline_s, f"after {action}")
        world.is_watching = False
        ended = await self._how_it_ended(action, before, server)
        if await self._state(server) is not None:
            await self._ask(Action.DELETE, server)
            await self._at_rest(BY_ACTION[Action.DELETE].deadline_s, "after its delete")
        return ended

    async def _how_it_ended(self, action: Action, before: VmState, server: str) -> str:
        state = await self._state(server)
        rule = BY_ACTION[action]
        fault = await self._fault(server)
        self._check_what_was_made(action, server, is_done=not fault)
        await self._check_what_is_plugged(action, server, is_done=not fault)
        if state is None:
            return "done" if action is Action.DELETE else "gone"
        # A resize that is over, either way, is where it was before it was asked for.
        is_over = action in {Action.REVERT_RESIZE, Action.CONFIRM_RESIZE}
        wanted = VmState.ACTIVE if is_over else rule.final or before
        if state is wanted and not fault:
            return "done"
        if not fault:
            return f"{shown(state, TaskState.NONE)} without a reason"
        return TAKEN_BACK if state is before else f"{shown(state, TaskState.NONE)}, with its reason"

    def _check_what_was_made(self, action: Action, server: str, *, is_done: bool) -> None:
        """What was said to be done must be so. Of what was not, nothing half made may be left."""
        world = self._world
        if action is Action.CHANGE_PASSWORD and is_done:
            known = [machine.passwords.get((server, "root")) for machine in world.machines.values()]
            if PASSWORD not in known:
                raise Violation("the password is said to be set, and is not")
        if action in {Action.CREATE_IMAGE, Action.CREATE_BACKUP}:
            made = [each for each in world.checker.images.values() if each.name == IMAGE]
            if is_done != (ImageState.ACTIVE in {each.state for each in made}) or len(made) > is_done:
                raise Violation(f"done: {is_done}; its images: {[each.state.name for each in made]}")

    async def _check_what_is_plugged(self, action: Action, server: str, *, is_done: bool) -> None:
        """A device is there or not, in the record and at the host alike, and as the action was to have it where that was done."""
        found = await self._get(server)
        if action not in _DEVICES or found is None:
            return
        status = found.status
        is_volume = action in _OF_VOLUMES
        there = (
            [each.state for each in status.volumes]
            if is_volume
            else [each.port_id for each in status.addresses[1:]]
        )
        is_there = len(there) == 1
        is_attach = action in {Action.ATTACH_VOLUME, Action.ATTACH_INTERFACE}
        if (
            len(there) > 1
            or (is_volume and there not in ([], ["ATTACHED"]))
            or (is_done and is_there is not is_attach)
        ):
            raise Violation(f"{action}, done: {is_done}, and what is plugged in is {there}")
        specs = [
            machine.domains[server].spec
            for machine in self._world.machines.values()
            if server in machine.domains
        ]
        held = [
            any(is_serial(each.serial) for each in spec.disks) if is_volume else len(spec.interfaces) > 1
            for spec in specs
        ]
        if held != [is_there]:
            raise Violation(f"{action}, done: {is_done}: in the record {is_there}, at the host {held}")

    async def _make_volume(self) -> None:
        asked = volume_pb.CreateVolumeRequest(
            request_id="volume", volume=volume_pb.Volume(name=VOLUME, size_gib=1)
        )
        await self._call("create_volume", asked)

    async def _create(self) -> str:
        request = pb.CreateInstanceRequest(
            request_id="create", name="web", flavor="small", image="tiny", network="default"
        )
        answer = await self._call("create_instance", request)
        self._world.checker.accepted.add(answer.instance.id)
        return str(answer.instance.id)

    async def _ask(self, action: Action, server: str) -> None:
        self._asked += 1
        rid = f"{action}-{self._asked}"
        if action in {Action.DELETE, Action.SOFT_DELETE}:
            is_last = action is Action.DELETE
            request = pb.DeleteInstanceRequest(request_id=rid, instance=server, force=is_last)
            await self._call("delete_instance", request)
            if is_last:
                self._world.checker.deleted.add(server)
            return
        if action in _DEVICES:
            await self._plug(action, rid, server)
            return
        if action is Action.CHANGE_PASSWORD:
            asked = pb.ChangePasswordRequest(request_id=rid, instance=server, password=PASSWORD)
            # It is answered when it is done: that it was not is the story's to tell, by its fault.
            with contextlib.suppress(WrongState):
                await self._call("change_password", asked)
            return
        method, fields = METHODS[word_of(action)]
        chosen = {name: values[-1] for name, values in fields.items()}
        if action in {Action.CREATE_IMAGE, Action.CREATE_BACKUP}:
            chosen["name"] = IMAGE
        if action in {Action.REBOOT_SOFT, Action.REBOOT_HARD}:
            chosen["kind"] = pb.REBOOT_KIND_HARD if action is Action.REBOOT_HARD else pb.REBOOT_KIND_SOFT
        await self._call(method.attribute, method.request(request_id=rid, instance=server, **chosen))

    async def _plug(self, action: Action, rid: str, server: str) -> None:
        asked: Message
        match action:
            case Action.ATTACH_VOLUME:
                asked = pb.AttachVolumeRequest(request_id=rid, instance=server, volume=VOLUME)
            case Action.DETACH_VOLUME:
                asked = pb.DetachVolumeRequest(request_id=rid, instance=server, volume=VOLUME)
            case Action.ATTACH_INTERFACE:
                asked = pb.AttachInterfaceRequest(request_id=rid, instance=server, network="default")
            case _:
                found = await self._get(server)
                port = "" if found is None else found.status.addresses[-1].port_id
                asked = pb.DetachInterfaceRequest(request_id=rid, instance=server, port=port)
        await self._call(str(action).replace("-", "_"), asked)

    async def _call(self, handler: str, request: Any) -> Any:
        """As a client does: the same request again until it is answered."""
        for _ in range(60):
            asking = asyncio.ensure_future(self._world.call("api0", handler, request, self._who))
            # One that is not waited for any more may end in an error that is nobody's.
            asking.add_done_callback(lambda done: done.cancelled() or done.exception())
            done, _pending = await asyncio.wait({asking}, timeout=5.0)
            if done:
                error = asking.exception()
                if error is None:
                    return asking.result()
                if not isinstance(error, FabricError) or error.reason not in _AGAIN:
                    raise error
            await asyncio.sleep(0.5)
        raise Violation(f"{handler} was never answered")

    async def _get(self, server: str) -> pb.Instance | None:
        try:
            answer = await self._call("get_instance", pb.GetInstanceRequest(instance=server))
        except NotFound:
            return None
        found: pb.Instance = answer.instance
        return None if found.status.state == "DELETED" else found

    async def _state(self, server: str) -> VmState | None:
        found = await self._get(server)
        return None if found is None else VmState[found.status.vm_state.upper()]

    async def _fault(self, server: str) -> str:
        found = await self._get(server)
        return "" if found is None else found.status.fault.code

    async def _at_rest(self, deadline_s: float, when: str) -> None:
        world = self._world
        until_s = world.loop.time() + deadline_s + MARGIN_S
        await asyncio.sleep(1.0)
        while True:
            await world.approve_quarantined()
            world.check_alive()
            if world.violation is not None:
                raise world.violation
            left = world.unsettled() or self._waiting()
            if left is None and all(process.is_up for process in world.processes.values()):
                return
            if world.loop.time() > until_s:
                raise Violation(f"not at rest {when}: {left}")
            await asyncio.sleep(0.5)

    def _waiting(self) -> str | None:
        """An image without its bytes: it comes to have them, or is swept."""
        for image_id, image in sorted(self._world.checker.images.items()):
            if image.state is ImageState.QUEUED:
                return f"image {image_id} waits for a disk"
        return None


_AGAIN: Final = frozenset({"UNAVAILABLE", "STORE_UNAVAILABLE", "HOST_UNAVAILABLE", "DEADLINE_EXCEEDED"})


def run(action: Action, place: Place | None = None, how: str = "") -> Run:
    """One world, with one thing broken in it or none."""
    with unlogged(), graveyard():
        return _run(action, place, how)


def _run(action: Action, place: Place | None, how: str) -> Run:
    loop = SimLoop(Random(0))
    world = OneBreak(loop, place, how, keeps=action in KEEPING)
    try:
        world.found.ended = loop.run_world(Story(world).tell(action))
    except (Violation, FabricError) as broken:
        world.found.violation = f"{type(broken).__name__}: {broken}"
    return world.found


def breaks(place: Place) -> tuple[str, ...]:
    """Every way to break something at a place."""
    if place.kind == "reach" and not place.name.startswith("hostd"):
        return ("kill the process",)
    return BREAKS[place.kind]


@dataclass(frozen=True, slots=True)
class Found:
    """One thing broken, and what became of it."""

    action: Action
    place: Place
    how: str
    run: Run


def everything(chosen: Iterable[Action]) -> Iterator[Found]:
    """Break everything there is to break in these actions, one thing at a time."""
    for action in chosen:
        whole = run(action)
        if whole.violation or whole.ended != "done":
            yield Found(action, Place("whole", "nothing", "", 1), "nothing is broken", whole)
            continue
        for place in whole.places:
            for how in breaks(place):
                yield Found(action, place, how, run(action, place, how))


def is_well(found: Found) -> bool:
    """Whether it ended as it may: at rest, with nothing left, done or taken back or in ERROR with a reason."""
    return not found.run.violation and "without a reason" not in found.run.ended and found.run.ended != "gone"


def page(results: Iterable[Found]) -> str:
    """The report: every action with how its runs ended, and each run that did not simply end well."""
    rows = list(results)
    bad = sum(not is_well(each) for each in rows)
    lines = [
        "# Report: everything broken once",
        "",
        "Made by `python -m tests.sim.exhaustive`: each action is run whole, and then once for each place that it reaches",
        "and each way to break something there (its host daemon killed, the conductor killed, the power of its host lost,",
        "the call on the machine failing, the process that writes killed). What was killed comes back; then all must be at",
        "rest, the books even and nothing left: no domain, disk, tap, assignment, address, claim, charge, image or work",
        "item. Then the server is deleted, and all of it is looked at again.",
        "",
        "What is said to be done is looked for: the password in the guest, the image with its bytes. A password that is said not",
        "to be set may be, where its host died before it could say so.",
        "",
        "Actions without a task are done when they are written. Those are here that leave something to hosts: the old copy of a",
        "confirmed resize, and volumes and interfaces to be plugged in or out, which are looked for in the record and in the guest.",
        "",
        f"**{len(rows)} runs, {bad} that ended as they may not.**",
        "",
        "| action | runs | done | taken back, with its reason | elsewhere, with its reason |",
        "| --- | --- | --- | --- | --- |",
    ]
    for action in dict.fromkeys(each.action for each in rows):
        ended = [each.run.ended for each in rows if each.action is action]
        done, back = ended.count("done"), ended.count(TAKEN_BACK)
        lines.append(f"| {action} | {len(ended)} | {done} | {back} | {len(ended) - done - back} |")
    lines += [
        "",
        "## Those that were not done in the end",
        "",
        "| action | broken at | how | ended |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {each.action} | {each.place} | {each.how} | {each.run.violation or each.run.ended} |"
        for each in rows
        if each.run.ended != "done"
    ]
    return "\n".join(lines) + "\n"


def main(words: list[str]) -> int:
    """Break the actions named, or all; 1 when any ended as it may not."""
    rows = list(everything([Action(word) for word in words] or actions()))
    print(page(rows))
    return 0 if all(map(is_well, rows)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
