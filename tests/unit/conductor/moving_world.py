"""One server, two hosts, a scheduler, a sweeper and people, as values: every write is a step of its own, and its writer may die after it.

The cores are the shipped ones. The hosts are as small as can be: what they have on their disks is a word, which must be the same on
whatever host the server is in the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fabric.api.core import intent, moves
from fabric.conductor.core import flow, repair, uploads
from fabric.conductor.core.draft import Draft, Found, Ref
from fabric.errors import FabricError
from fabric.lifecycle.moves import places
from fabric.model.flavor import Flavor
from fabric.model.host import Host, Resources, Session, SessionState, Use
from fabric.model.image import ImageFormat, ImageOffer
from fabric.model.instance import (
    Answered,
    Assignment,
    Guest,
    ImageRef,
    Instance,
    MoveWanted,
    OneShot,
    Request,
    Tombstone,
)
from fabric.model.network import NO_SLOT, Port
from fabric.model.placement import Decision
from fabric.model.session import HostState, Released, Status
from fabric.model.states import Action, PowerState, VmState, Want
from fabric.scheduler.core import moving
from fabric.scheduler.core.change import Change
from fabric.scheduler.core.picture import Seen
from fabric.scheduler.core.saga import NO_VALID_HOST
from fabric.store.base import Entry, Snapshot
from fabric.store.codec import encode
from fabric.store.keys import ASSIGNMENT, HOST, INSTANCE, MOVE, SESSION, TOMBSTONE, USE
from tests.unit.conductor.worlds import EPOCH_MS, SERIAL, guest, instance_id

ONE = instance_id(1)
HOSTS = ("h1", "h2")
LARGE = Flavor(id="large", name="large", vcpus=2, ram_mib=1024, disk_gib=2)
TIMERS_S: Mapping[str, float] = {"shelve_offload_s": -1.0, "resize_confirm_s": 0.0}
DATA = "what people have written"


def _image_id(guest: Guest) -> str:
    assert guest.image is not None
    return guest.image.id


@dataclass(slots=True)
class HostModel:
    """What one host has: root disks by placement, the placement that runs, the one-shot actions done."""

    name: str
    disks: dict[int, str] = field(default_factory=dict)
    running: int | None = None
    done_seq: int = 0
    known_epoch: int = 0


class Cell:
    """The cell's keys as values with revisions, and what each actor does in one step. With `tenant` ports, the server has these alone."""

    def __init__(self, tenant: tuple[Port, ...] = ()) -> None:
        self.now_ms = EPOCH_MS
        self.revision = 1
        self.values: dict[str, tuple[object, int]] = {}
        self.hosts = {name: HostModel(name) for name in HOSTS}
        self.images: dict[str, str] = {}
        self.count = 0
        self.slot = NO_SLOT if tenant else 0
        request = Request(
            guest=replace(guest(1), ports=tenant),
            network_id="" if tenant else "net",
            flavor_id="small",
            flavor_name="small",
        )
        record = Instance(
            id=ONE,
            request=request,
            vm_state=VmState.ACTIVE,
            host="h1",
            placement_epoch=1,
            slot=self.slot,
            ports=tenant,
            observed_generation=1,
            update_time_ms=self.now_ms,
        )
        order = Assignment(
            instance_id=ONE,
            placement_epoch=1,
            generation=1,
            want=Want.RUN,
            action=record.action,
            guest=request.guest,
        )
        for number, name in enumerate(HOSTS):
            inventory = Host(
                name=name,
                cell="east",
                zone="z1",
                capacity=Resources(vcpus=8, ram_mib=8192, disk_gib=80),
                cert_serial=SERIAL,
                guest_cidr=f"10.{number}.0.0/24",
                slots=9,
                tunnel_address=f"192.0.2.{number + 1}",
            )
            self._set(HOST.at(name), inventory)
            self._set(SESSION.at(name), Session(host=name, epoch=1, state=SessionState.UP))
        self._set(INSTANCE.at(ONE), record)
        self._set(ASSIGNMENT.at("h1", ONE), order)
        claimed = Use(host="h1").plus(request.guest.resources(), self.slot, op_id="")
        self._set(USE.at("h1"), claimed)
        self.hosts["h1"].disks[1] = DATA
        self.hosts["h1"].running = self.hosts["h1"].known_epoch = 1

    # ------------------------------------------------------------------ the store

    def _set(self, key: str, value: object) -> None:
        self.values[key] = (value, self.revision)

    def get(self, key: str) -> object | None:
        return self.values[key][0] if key in self.values else None

    @property
    def record(self) -> Instance | None:
        value = self.get(INSTANCE.at(ONE))
        assert value is None or isinstance(value, Instance)
        return value

    def _found(self, key: str) -> Found:
        return Found(*self.values[key]) if key in self.values else Found(None, 0)

    def _draft(self, refs: tuple[Ref, ...]) -> Draft:
        return Draft({row.at(*fields): self._found(row.at(*fields)) for row, fields in refs})

    def _more(self, draft: Draft, refs: tuple[Ref, ...]) -> None:
        draft.add({row.at(*fields): self._found(row.at(*fields)) for row, fields in draft.missing(refs)})

    def _commit(
        self, unchanged: Mapping[str, int], put: Mapping[str, object], deleted: tuple[str, ...]
    ) -> None:
        for key, revision in unchanged.items():
            assert self._found(key).revision == revision, f"{key} was compared at another revision"
        self.revision += 1
        for key in deleted:
            del self.values[key]
        for key, value in put.items():
            encode(value)
            self._set(key, value)

    def _write(self, draft: Draft) -> None:
        self._commit(draft.unchanged, draft.puts, draft.deletes)

    def _op(self) -> str:
        self.count += 1
        return f"op-{self.count}"

    # ------------------------------------------------------------------ people

    def ask(self, action: Action) -> None:
        """What the API writes. Raises what it refuses with."""
        now = self.record
        if now is None:
            return
        answered = Answered(
            request_id=self._op(),
            project_id="p",
            method=action,
            body_sha256="",
            resource_id=ONE,
            expire_time_ms=0,
        )
        work: Mapping[Action, moves.Work] = {
            Action.RESIZE: moves.resize_work(
                LARGE, lambda _: None, lambda _: None, image_id=f"carrier-{self.count}", now_ms=self.now_ms
            ),
            Action.MIGRATE: moves.migrate_work("", image_id=f"carrier-{self.count}", now_ms=self.now_ms),
            Action.UNSHELVE: moves.unshelve_work(now_ms=self.now_ms),
        }
        asked = intent.Intent(
            action=action,
            answered=answered,
            work=work.get(action),
            image_id=f"shelved-{self.count}" if action is Action.SHELVE else "",
        )
        names = (*intent.keys_of(now, answered), MOVE.at(ONE))
        seen = Snapshot(
            self.revision,
            {
                name: Entry(name, encode(value), revision, revision)
                for name in names
                if name in self.values
                for value, revision in [self.values[name]]
            },
        )
        order = self.get(ASSIGNMENT.at(now.host, ONE)) if now.host else None
        assert order is None or isinstance(order, Assignment)
        other = intent.NO_OTHER
        if now.move is not None:
            use, session = self.get(USE.at(now.move.other.host)), self.get(SESSION.at(now.move.other.host))
            assert use is None or isinstance(use, Use)
            assert session is None or isinstance(session, Session)
            other = intent.Other(use=use, session=session)
        decided = intent.written(seen, now, order, asked, now_ms=self.now_ms, op_id=self._op(), other=other)
        if any(self._found(key).revision != revision for key, revision in decided.write.unchanged.items()):
            return  # an earlier move's work is still there: asked again until a scheduler has taken it away
        self._commit(decided.write.unchanged, decided.write.put, decided.write.delete)

    # ------------------------------------------------------------------ the scheduler

    def schedule(self, *, has_room: bool) -> None:
        """One turn at the work item, if there is one."""
        work = self.get(MOVE.at(ONE))
        if work is None:
            return
        assert isinstance(work, MoveWanted)
        now = self.record
        here = "" if now is None else now.host
        order: Seen[Any] = self._seen(ASSIGNMENT.at(here, ONE)) if here else Seen()
        waiting = moving.Waiting(
            work=self._seen(MOVE.at(ONE)),
            instance=self._seen(INSTANCE.at(ONE)),
            order=order,
        )
        if now is None or not moving.is_wanted(waiting):
            self._apply(moving.called_off(waiting))
            return
        ask = moving.wants(work, now, cell="east")
        free = [
            name
            for name in HOSTS
            if name not in ask.other_than and self._session(name).state is SessionState.UP
        ]
        if not has_room or not free:
            refused = moving.refused(
                waiting, NO_VALID_HOST, "0 of 2 hosts fit", None, now_ms=self.now_ms, op_id=self._op()
            )
            self._apply(refused)
            return
        found = moving.Found(
            host=self._seen(HOST.at(free[0])),
            session=self._seen(SESSION.at(free[0])),
            use=self._seen(USE.at(free[0])),
        )
        claimed = moving.claim(
            waiting, found, Decision(considered=2, host=free[0]), now_ms=self.now_ms, op_id=self._op()
        )
        if claimed is not None:
            self._apply(claimed.change)

    def _seen(self, key: str) -> Seen[Any]:
        found = self._found(key)
        return Seen(found.value, found.revision, found.revision)

    def _apply(self, change: Change) -> None:
        self._commit(change.unchanged, change.put, change.delete)

    # ------------------------------------------------------------------ hosts

    def _session(self, host: str) -> Session:
        session = self.get(SESSION.at(host))
        assert isinstance(session, Session)
        return session

    def silence(self, host: str) -> None:
        """The host is cut off; what runs there runs on."""
        self._set_state(host, SessionState.UNREACHABLE)

    def join(self, host: str) -> None:
        """It is back, and must let go of what it must before it is up (R8)."""
        if self._session(host).state is SessionState.UNREACHABLE:
            session = self._session(host)
            self.revision += 1
            self._set(SESSION.at(host), replace(session, epoch=session.epoch + 1, state=SessionState.JOIN))

    def come_up(self, host: str) -> None:
        """The barrier is lifted when nothing is left to let go of."""
        if self._session(host).state is SessionState.JOIN and TOMBSTONE.at(host, ONE) not in self.values:
            self._set_state(host, SessionState.UP)

    def _set_state(self, host: str, state: SessionState) -> None:
        self.revision += 1
        self._set(SESSION.at(host), replace(self._session(host), state=state))

    def release(self, host: str) -> None:
        """It does what a tombstone says, and tells."""
        tombstone = self.get(TOMBSTONE.at(host, ONE))
        session = self._session(host)
        if tombstone is None or session.state is SessionState.UNREACHABLE:
            return
        assert isinstance(tombstone, Tombstone)
        model = self.hosts[host]
        self._forget(model, tombstone.placement_epoch)
        said = Released(epoch=session.epoch, instance_id=ONE, placement_epoch=tombstone.placement_epoch)
        draft = self._draft(flow.release_reads(host, said))
        flow.take_released(draft, host, session.epoch, said, now_ms=0, op_id="op")
        self._write(draft)

    @staticmethod
    def _forget(model: HostModel, placement_epoch: int) -> None:
        model.disks = {epoch: data for epoch, data in model.disks.items() if epoch > placement_epoch}
        if model.running is not None and model.running <= placement_epoch:
            model.running = None

    def work(self, host: str, *, goes_well: bool) -> None:
        """It does what it is ordered to, if it can be reached, and says how that went."""
        order, session = self.get(ASSIGNMENT.at(host, ONE)), self._session(host)
        if order is None or session.state is SessionState.UNREACHABLE:
            return
        assert isinstance(order, Assignment)
        model = self.hosts[host]
        if order.placement_epoch > model.known_epoch:
            self._forget(model, order.placement_epoch - 1)
            model.known_epoch = order.placement_epoch
            model.done_seq = order.action.seq - (order.action.kind is OneShot.REBUILD)
        fault = "" if goes_well and self._does(model, order) else "DISK_FULL"
        state = HostState.ERROR if fault else _WORDS[order.want]
        if fault and order.want is not Want.ABSENT:
            model.running = None
        self._say(host, order, state, fault)

    def _does(self, model: HostModel, order: Assignment) -> bool:
        epoch = order.placement_epoch
        if order.want is Want.ABSENT:
            self._forget(model, epoch)
            return True
        model.running = None
        is_owed = order.action.seq > model.done_seq
        if order.action.kind is OneShot.REBUILD and is_owed:
            model.disks.pop(epoch, None)
            model.disks[epoch] = self.images[_image_id(order.guest)]
        if order.action.kind is OneShot.SNAPSHOT and is_owed:
            if epoch not in model.disks:
                return False
            try:
                self._hand_in(model, order)
            except FabricError:
                return False
        model.done_seq = max(model.done_seq, order.action.seq)
        if order.want is Want.RUN:
            if epoch not in model.disks:
                if not order.guest.standalone:
                    return False
                model.disks[epoch] = self.images[_image_id(order.guest)]
            model.running = epoch
        return True

    def _hand_in(self, model: HostModel, order: Assignment) -> None:
        """The image is in the store before the host says that it is done."""
        offer = ImageOffer(
            image_id=order.action.image_id,
            instance_id=ONE,
            placement_epoch=order.placement_epoch,
            sha256="ab" * 32,
            size_bytes=1,
            virtual_size_bytes=1,
        )
        now = uploads.check(self.record, model.name, offer)
        self.images[order.action.image_id] = model.disks[order.placement_epoch]
        image = ImageRef(
            id=order.action.image_id,
            name="",
            format=ImageFormat.QCOW2,
            sha256="ab" * 32,
            size_bytes=1,
            virtual_size_bytes=1,
        )
        self.revision += 1
        self._set(INSTANCE.at(ONE), uploads.handed_in(now, image, now_ms=self.now_ms, op_id=self._op()))

    def _say(self, host: str, order: Assignment, state: HostState, fault: str) -> None:
        session = self._session(host)
        said = Status(
            epoch=session.epoch,
            instance_id=ONE,
            placement_epoch=order.placement_epoch,
            generation=order.generation,
            action_seq=order.action.seq,
            state=state,
            power=PowerState.NOSTATE if state is HostState.ERROR else _POWERS[state],
            fault_code=fault,
        )
        draft = self._draft(flow.status_reads(host, said))
        self._more(draft, flow.move_reads(draft, said))
        flow.take_status(
            draft, host, session.epoch, said, now_ms=self.now_ms, op_id=self._op(), timers_s=TIMERS_S
        )
        if draft:
            self._write(draft)

    # ------------------------------------------------------------------ time

    def sweep(self) -> None:
        """What the conductors do about what is overdue."""
        now = self.record
        if now is None:
            return
        draft = self._draft(repair.overdue_reads(now.host, ONE))
        self._more(draft, repair.further_reads(draft, ONE))
        if repair.end_overdue(draft, now.host, ONE, now_ms=self.now_ms, op_id=self._op()) and draft:
            self._write(draft)

    # ------------------------------------------------------------------ what must hold

    def running(self) -> list[str]:
        return [name for name, model in self.hosts.items() if model.running is not None]

    def check(self) -> None:
        """Whatever was the last step."""
        assert len(self.running()) <= 1, f"I1 runs on {self.running()}"
        now = self.record
        named = {} if now is None else {place.host: place for place in places(now)}
        for name in HOSTS:
            order, use = self.get(ASSIGNMENT.at(name, ONE)), self.get(USE.at(name)) or Use(host=name)
            assert isinstance(use, Use)
            assert (order is not None) == (name in named), f"{name} is ordered what the record does not name"
            claimed = Resources()
            if isinstance(order, Assignment):
                claimed = order.guest.resources()
                assert order.placement_epoch == named[name].placement_epoch
                assert use.slots == (() if self.slot == NO_SLOT else (named[name].slot,))
                assert order.guest.tenant_ports == self._tenant_ports()
            assert (use.claimed, use.instances) == (claimed, int(order is not None)), f"I2 {use}"
            tombstone = self.get(TOMBSTONE.at(name, ONE))
            if isinstance(tombstone, Tombstone) and name in named:
                assert tombstone.placement_epoch < named[name].placement_epoch

    def _tenant_ports(self) -> tuple[Port, ...]:
        return () if self.record is None else self.record.request.guest.ports

    def data(self) -> str | None:
        """What people would find on the server's disk."""
        now = self.record
        if now is None:
            return None
        if now.host:
            return self.hosts[now.host].disks.get(now.placement_epoch)
        return self.images.get(now.carrier_id)


_WORDS = {Want.RUN: HostState.ACTIVE, Want.STOP: HostState.STOPPED, Want.ABSENT: HostState.ABSENT}
_POWERS = {
    HostState.ACTIVE: PowerState.RUNNING,
    HostState.STOPPED: PowerState.SHUTDOWN,
    HostState.ABSENT: PowerState.NOSTATE,
}
