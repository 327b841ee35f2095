"""A cell's conductor: serves hosts, answers the API about them, and repairs. It keeps nothing that the cell's store does not have.

Any number of conductors serve one cell. Which of them a host comes to is the host's choice; the session key makes it exclusive.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import structlog

from fabric.clock import Clock
from fabric.conductor.blobs import BlobSource, ImageSink
from fabric.conductor.core.bindings import placed
from fabric.conductor.networks import Networks
from fabric.conductor.passwords import PasswordTasks
from fabric.conductor.proofs import Prover
from fabric.conductor.quarantine import Quarantines, Reputation
from fabric.conductor.reporter import Reporter
from fabric.conductor.sessions import HostSession, Surroundings
from fabric.conductor.settings import ConductorSettings
from fabric.conductor.sweeper import Sweeper, Watched
from fabric.conductor.telling import Change
from fabric.conductor.upkeep import Upkeep
from fabric.conductor.uploads import Uploads
from fabric.conductor.writer import Writer
from fabric.deadlines import within
from fabric.errors import InvalidRequest, NotFound, PermissionDenied, Reason, Unavailable
from fabric.ids import Ids
from fabric.lifecycle.table import TIMED_STATES
from fabric.model.console import ConsoleEnd, ConsoleKind
from fabric.model.host import Host, Session
from fabric.model.image import ImageOffer
from fabric.model.instance import Assignment, ImageRef, Instance, Tombstone
from fabric.model.network_plan import PlanState
from fabric.model.session import Diagnostics, DiagnosticsWanted, Goodbye
from fabric.model.states import TaskState, Want
from fabric.rpc import frames, relay
from fabric.rpc.session_codec import pack_from_conductor
from fabric.rpc.stream import Stream, StreamClosed
from fabric.store.base import Store
from fabric.store.codec import decode
from fabric.store.keys import ALIVE, ASSIGNMENT, HOST, INSTANCE, SESSION, TOMBSTONE
from fabric.store.parsed import parsed
from fabric.store.picture import Change as Moved
from fabric.store.picture import Pace, Picture

log = structlog.get_logger()

_ASKING: Final = Pace(contact_s=2.0, stale_after_s=8.0)
_QUIET: Final = Pace(contact_s=30.0, stale_after_s=120.0)
"""All pictures are of one store: it is enough that one of them asks whether it is there."""


class ConductorService:
    """See the module. `run` must be running for anything else to get on."""

    def __init__(
        self,
        settings: ConductorSettings,
        store: Store,
        *,
        clock: Clock,
        ids: Ids,
        jitter: Callable[[], float],
        blobs: BlobSource,
        images: ImageSink,
        global_store: Store | None = None,
    ) -> None:
        """`global_store` is where tenant networks are; without it this conductor's hosts have none."""
        self._settings = settings
        self._store = store
        self._blobs = blobs
        self._uploads = Uploads(
            store,
            images,
            clock=clock,
            ids=ids,
            jitter=jitter,
            bytes_per_s=settings.upload_bytes_per_s,
        )
        self._is_stopping = False
        # In the order they came: a set's order would differ from run to run, and a simulation could not be replayed.
        self._here: dict[str, dict[HostSession, None]] = {}
        self._granted: dict[str, HostSession] = {}

        def picture(
            prefix: str, read: Callable[[bytes], Any], on_change: Any = None, pace: Pace = _QUIET
        ) -> Picture[Any]:
            return Picture(
                store,
                prefix,
                lambda _, data: read(data),
                clock=clock,
                on_change=on_change,
                pace=pace,
            )

        self._hosts: Picture[Host] = picture(
            HOST.under(), lambda data: decode(Host, data), self._on_inventories
        )
        self._sessions: Picture[Session] = picture(
            SESSION.under(), lambda data: decode(Session, data), self._on_sessions, _ASKING
        )
        self._alive: Picture[str] = picture(ALIVE.under(), lambda data: decode(str, data))
        self._instances: Picture[Watched] = picture(INSTANCE.under(), _watched, self._on_instances)
        # Kept as bytes: most are other conductors' hosts', and nobody here will ever read them.
        self._assignments: Picture[bytes] = picture(
            ASSIGNMENT.under(), bytes, lambda moved: self._on_orders(Assignment, moved)
        )
        self._tombstones: Picture[bytes] = picture(
            TOMBSTONE.under(), bytes, lambda moved: self._on_orders(Tombstone, moved)
        )
        self._passwords = PasswordTasks(
            store, clock=clock, ids=ids, jitter=jitter, patience_s=settings.password_s
        )
        self._networks = (
            None
            if global_store is None
            else Networks(
                settings.cell,
                store,
                global_store,
                hosts=self._hosts,
                sessions=self._sessions,
                clock=clock,
                jitter=jitter,
                on_touched=self._on_plans,
            )
        )
        self._around = Surroundings(
            settings=settings,
            store=store,
            clock=clock,
            ids=ids,
            jitter=jitter,
            writer=Writer(store, clock=clock, ids=ids, jitter=jitter, timers_s=settings.timers_s),
            prover=Prover(store, clock=clock, jitter=jitter),
            upkeep=Upkeep(store, clock=clock, ids=ids),
            reporter=Reporter(store, clock=clock),
            reputation=Reputation(clock),
            quarantines=Quarantines(store, clock=clock, ids=ids, jitter=jitter),
            plans=None if self._networks is None else self._networks.plans,
        )

        self._sweeper = Sweeper(
            settings,
            store,
            clock=clock,
            ids=ids,
            jitter=jitter,
            sessions=self._sessions,
            alive=self._alive,
            instances=self._instances,
        )

    # ------------------------------------------------------------------ its life

    async def run(self) -> None:
        """Do what a conductor does besides answering, until cancelled. Survives the store being away for any time."""
        around = self._around
        async with asyncio.TaskGroup() as group:
            for life in (
                self._hosts,
                self._sessions,
                self._alive,
                self._instances,
                self._assignments,
                self._tombstones,
                around.writer,
                around.prover,
                around.reporter,
                around.quarantines,
                self._sweeper,
                self._passwords,
            ):
                group.create_task(life.run(), name=type(life).__name__)
            if self._networks is not None:
                group.create_task(self._networks.run(), name="Networks")

    def stop(self) -> None:
        """Take no more hosts, and send those that are here to another conductor."""
        self._is_stopping = True
        for sessions in self._here.values():
            for session in sessions:
                session.end("this conductor is stopping", retry_after_ms=30_000)

    async def serve_host(self, host: str, cert_serial: str, stream: Stream) -> None:
        """Be the conductor of a host for one session; returns when it is over. The name and the serial are the certificate's."""
        if self._is_stopping:
            await _turn_away(stream, "this conductor is stopping")
            return
        session = HostSession(self._around, host, cert_serial, stream)
        self._here.setdefault(host, {})[session] = None
        try:
            await session.run(lambda: self._is_granted(session))
        finally:
            del self._here[host][session]
            if not self._here[host]:
                del self._here[host]
            if self._granted.get(host) is session:
                del self._granted[host]

    def _is_granted(self, session: HostSession) -> None:
        before = self._granted.get(session.host)
        self._granted[session.host] = session
        if before is not None:
            before.lost("the host has begun another session")

    # ------------------------------------------------------------------ for the API

    async def read_console_log(
        self, host: str, instance_id: str, placement_epoch: int, tail_bytes: int
    ) -> bytes:
        """The end of an instance's console, from its host. Raises Unavailable, TooMuch."""
        return await self._session(host).questions.console_log(instance_id, placement_epoch, tail_bytes)

    async def read_diagnostics(self, host: str, instance_id: str, placement_epoch: int) -> Diagnostics:
        """An instance's counters, from its host. Raises WrongState where the guest is off, Unavailable, TooMuch."""
        questions = self._session(host).questions
        wanted = DiagnosticsWanted(
            question=questions.new(), instance_id=instance_id, placement_epoch=placement_epoch
        )
        return await questions.answer(wanted, Diagnostics)

    async def set_password(
        self, host: str, instance_id: str, placement_epoch: int, request_id: str, user: str, password: str
    ) -> None:
        """Have a guest's agent set a password, and end the task that the request began with what became of it.

        Raises WrongState where the guest has no agent or its agent refuses, Unavailable, TooMuch.
        """
        await self._passwords.set(
            self._session(host),
            instance_id,
            placement_epoch,
            request_id=request_id,
            user=user,
            password=password,
        )

    async def open_console(self, stream: Stream) -> None:
        """One console, for the API server at the other end of the stream; returns when it is over.

        Raises InvalidRequest for what no API server says, and as `Tunnels.open` where there will be no console.
        """
        line = frames.api_side(stream)
        wanted = await line.head("wanted")
        session = self._session(wanted.host)
        tunnel = await session.tunnels.open(
            wanted.instance_id,
            wanted.placement_epoch,
            ConsoleKind(wanted.kind),
            take_over=wanted.take_over,
        )
        why = ConsoleEnd.UNSPECIFIED
        try:
            await frames.say_opened(line)
            why = await relay.join(
                line, tunnel, clock=self._around.clock, watches=(session.tunnels.until_lost,)
            )
        except StreamClosed:
            pass  # nobody is there to look at it
        finally:
            tunnel.over.set()
            log.info("console.over", host=wanted.host, instance=wanted.instance_id, why=why.name)

    def _session(self, host: str) -> HostSession:
        session = self._granted.get(host)
        if session is None:
            raise Unavailable(f"host {host} has no session here", reason=Reason.HOST_UNAVAILABLE, host=host)
        return session

    def read_plan_state(self, host: str) -> PlanState | None:
        """How far a host has got with its network plans; None where it is told none. Raises Unavailable where it has no session here."""
        return self._session(host).plan_state()

    def read_progress(self, instance_ids: Iterable[str]) -> Mapping[str, str]:
        """How far instances' steps are, for people; those without a word are left out."""
        said = {
            instance_id: text
            for session in self._granted.values()
            for instance_id, text in session.progress.items()
        }
        return {instance_id: said[instance_id] for instance_id in instance_ids if instance_id in said}

    # ------------------------------------------------------------------ for hosts

    async def serve_tunnel(self, host: str, cert_serial: str, stream: Stream) -> None:
        """A console that a host has dialled, because it was asked to; returns when it is over.

        Raises PermissionDenied where this is not the host, or not the session, that was asked; NotFound where nobody waits for it.
        """
        line = frames.host_side(stream)
        try:
            async with within(self._settings.hello_s):
                hello = await line.head("hello")
        except TimeoutError:
            raise InvalidRequest("a tunnel begins with a hello", field="hello") from None
        session = self._granted.get(host)
        if session is None or session.epoch != hello.epoch or not session.is_by(cert_serial):
            raise PermissionDenied("this is not the session that was asked for a console", host=host)
        if not await session.tunnels.serve(hello.question, line):
            raise NotFound("nobody waits for this console", host=host)

    async def fetch_image(
        self, host: str, cert_serial: str, image_id: str, offset_bytes: int
    ) -> AsyncIterator[bytes]:
        """An image's bytes for a host that an instance using it is assigned to.

        Raises PermissionDenied, NotFound (also for an image that exists, but not for this host), Unavailable.
        """
        image = await self._image_for(host, cert_serial, image_id)
        async for data in self._blobs.read(image.sha256, offset_bytes):
            yield data

    async def upload_image(
        self, host: str, cert_serial: str, offer: ImageOffer, chunks: AsyncIterator[bytes]
    ) -> None:
        """Take the image that an instance's latest action has a host hand in: see `Uploads.take`."""
        await self._uploads.take(host, cert_serial, offer, chunks)

    async def _image_for(self, host: str, cert_serial: str, image_id: str) -> ImageRef:
        approved = (await self._store.get(HOST.at(host))).value(HOST.at(host))
        if approved is None or decode(Host, approved).cert_serial != cert_serial:
            raise PermissionDenied("this host is not approved with this certificate", host=host)
        assigned = await self._store.list(ASSIGNMENT.under(host))
        for _, assignment in parsed(Assignment, assigned):
            guest = assignment.guest
            for image in (*guest.images(), *(each.image for each in guest.volume_images)):
                if image.id == image_id and assignment.want is not Want.ABSENT:
                    return image
        raise NotFound(f"no instance on host {host} uses image {image_id}", host=host, image=image_id)

    # ------------------------------------------------------------------ what the store says

    def _on_orders(self, kind: type[Assignment] | type[Tombstone], moved: Sequence[Moved[bytes]]) -> None:
        for each in moved:
            sessions = self._here.get(_host_in(each.key))
            if not sessions:
                continue
            if each.after is None:
                # An assignment that is gone orders nothing (R4); a tombstone that is gone may have been the last.
                for session in sessions:
                    session.release_confirmed()
            else:
                change = Change(kind, each.after.value, each.after.mod_revision)
                for session in sessions:
                    session.changed(change)

    def _on_instances(self, moved: Sequence[Moved[Watched]]) -> None:
        if self._networks is not None:
            for each in moved:
                after = None if each.after is None else each.after.value.placed
                self._networks.bindings.instance_moved(_named_in(each.key), after)

    def _on_plans(self, hosts: Iterable[str]) -> None:
        for host in hosts:
            for session in self._here.get(host, ()):
                session.plan_changed()

    def _on_inventories(self, moved: Sequence[Moved[Host]]) -> None:
        for each in moved:
            for session in self._here.get(_host_in(each.key), ()):
                session.inventory_changed(None if each.after is None else each.after.value)
            if self._networks is not None:
                self._networks.host_moved(_host_in(each.key))

    def _on_sessions(self, moved: Sequence[Moved[Session]]) -> None:
        for each in moved:
            if self._networks is not None:
                self._networks.session_moved(_host_in(each.key))
            if each.after is not None:
                for session in self._here.get(_host_in(each.key), ()):
                    session.session_changed(each.after.value, each.after.mod_revision)


def _host_in(key: str) -> str:
    """The host's name in a key of its own: the second part, for every such row."""
    return key.split("/")[1]


def _named_in(key: str) -> str:
    """The last part of a key: an instance's id."""
    return key.rsplit("/", 1)[1]


def _watched(data: bytes) -> Watched:
    """What is kept of an instance: all of one that somebody may have to look at, because it has a task, is on its way out or between two
    hosts, or in a state that ends by itself; of the others, where their ports on tenant networks are.
    """
    instance = decode(Instance, data)
    is_looked_at = (
        instance.task is not TaskState.NONE
        or instance.want is Want.ABSENT
        or instance.move is not None
        or instance.vm_state in TIMED_STATES
    )
    return Watched(instance if is_looked_at else None, placed(instance))


async def _turn_away(stream: Stream, why: str) -> None:
    try:
        async with within(1.0):
            await stream.send(pack_from_conductor(Goodbye(reason=why, retry_after_ms=30_000)))
    except (StreamClosed, TimeoutError):
        pass  # it will find another conductor all the same
    finally:
        await stream.close()
