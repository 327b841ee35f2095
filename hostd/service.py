"""The daemon of one host: dials a conductor, keeps a session, and keeps every instance's order true, for as long as it runs.

It survives the loss of everything around it: conductors, the hypervisor, its own life. What is decided is decided in `hostd.core`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from types import MappingProxyType
from typing import Final

import structlog

from fabric.clock import Clock
from fabric.errors import FabricError, Unavailable
from fabric.model.image import ImageOffer
from fabric.model.instance import ImageRef
from fabric.model.session import Status
from fabric.observability.failpoints import NO_FAILPOINTS, Failpoints
from fabric.rpc.stream import StreamClosed
from hostd.commands.journal import Journal
from hostd.commands.queue import Queues
from hostd.commands.site import Mouth, Site
from hostd.console.answers import Answers
from hostd.console.tunnels import Tunnels
from hostd.core.dialling import Dialling, preference
from hostd.core.fencing import Fence
from hostd.core.reconcile import Patience
from hostd.driver.base import Driver
from hostd.hypervisor import HypervisorWatch
from hostd.images.base import Disks
from hostd.network.base import Wires
from hostd.plans import PlanFollower
from hostd.post import Post
from hostd.resources.audit import Audit
from hostd.rpc.base import Dialer
from hostd.session import Desk, Gate, Session, SessionOver
from hostd.settings import HostSettings, Timers
from hostd.volumes.base import Volumes

NOTHING_SHARED: Final[Mapping[str, Volumes]] = MappingProxyType({})
"""No directory for volumes that other hosts have too."""

_log = structlog.get_logger(__name__)

_FETCH_TRIES = 5
_COPIES_AT_ONCE = 2


def patience_from(timers: Timers) -> Patience:
    """The core's patience, as the settings have it."""
    return Patience(
        press_again_s=timers.press_again_s,
        soft_reboot_s=timers.soft_reboot_s,
        transient_s=timers.transient_s,
    )


class HostDaemon:
    """One host. `jitter` gives a number in [0, 1) at each call; `boot_id` is the kernel's, of this boot."""

    def __init__(
        self,
        settings: HostSettings,
        *,
        clock: Clock,
        journal: Journal,
        driver: Driver,
        disks: Disks,
        volumes: Volumes,
        shared: Mapping[str, Volumes] = NOTHING_SHARED,
        wires: Wires,
        dialer: Dialer,
        boot_id: str,
        jitter: Callable[[], float],
        failpoints: Failpoints = NO_FAILPOINTS,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._journal = journal
        self._driver = driver
        self._disks = disks
        self._volumes = volumes
        self._shared = shared
        self._wires = wires
        self._dialer = dialer
        self._boot_id = boot_id
        self._jitter = jitter
        self._failpoints = failpoints
        self._gate = Gate(Fence(epoch=0))
        self._post = Post(clock)
        self._plans = PlanFollower(wires, jitter=jitter, told=self._post.followed)
        self._endpoint = ""
        self._in_session = asyncio.Event()
        self._queues = Queues(self._site())
        self._watch = HypervisorWatch(
            driver,
            settings.timers,
            noticed=self._queues.noticed,
            compared=self._queues.compare,
            changed=self._hypervisor_changed,
        )
        tunnels = Tunnels(
            driver,
            clock=clock,
            dial=lambda: dialer.tunnel(self._endpoint),
            epoch=lambda: self._gate.fence.epoch,
        )
        self._answers = Answers(driver, disks, tunnels, failpoints)
        self._audit = Audit(
            driver,
            disks,
            wires,
            agent_version=settings.agent_version,
            directories=tuple(sorted(shared)),
            every_s=settings.timers.audit_s,
            guests=self._queues.guests,
            state=lambda: (self._watch.hypervisor, self._watch.fault),
            report=self._post.report,
        )

    @property
    def in_session(self) -> bool:
        """Whether a conductor has granted a session that still stands: what health checks ask."""
        return self._in_session.is_set()

    async def run(self) -> None:
        """Run until cancelled. Guests run on afterwards; what was promised is in the journal."""
        state = self._journal.open()
        if not state.trusted:
            # Nothing is started or destroyed before a whole snapshot has come, with or without a journal (R3).
            _log.warning("journal.untrusted", rows=len(state.rows))
        self._gate.fence = Fence(epoch=state.epoch)
        try:
            async with asyncio.TaskGroup() as tasks:
                self._queues.begin(state.rows, tasks, is_trusted=state.trusted)
                tasks.create_task(self._watch.run(), name="hypervisor")
                tasks.create_task(self._audit.run(), name="audit")
                tasks.create_task(self._plans.run(), name="plans")
                tasks.create_task(self._hold_sessions(), name="sessions")
        finally:
            await self._wires.close()
            await self._driver.close()
            self._journal.close()

    def _site(self) -> Site:
        return Site(
            driver=self._driver,
            disks=self._disks,
            volumes=self._volumes,
            shared=self._shared,
            wires=self._wires,
            journal=self._journal,
            clock=self._clock,
            fetch=self._fetch,
            hand_over=self._hand_over,
            fence=lambda: self._gate.fence,
            mouth=Mouth(
                say=self._say,
                unsay=self._post.unsay,
                released=self._post.released,
                show=self._post.show,
            ),
            slots=asyncio.Semaphore(self._settings.spawn_concurrency),
            makings=asyncio.Semaphore(self._settings.spawn_concurrency),
            copies=asyncio.Semaphore(_COPIES_AT_ONCE),
            reaches=defaultdict(lambda: asyncio.Semaphore(self._settings.spawn_concurrency)),
            patience=patience_from(self._settings.timers),
            failpoints=self._failpoints,
        )

    def _say(self, status: Status) -> None:
        self._post.say(status)
        self._audit.ring()

    def _hypervisor_changed(self) -> None:
        self._audit.ring()
        self._queues.wake()

    # ------------------------------------------------------------ sessions

    async def _hold_sessions(self) -> None:
        """Have a session whenever a conductor will give one."""
        settings, clock = self._settings, self._clock
        dialling = Dialling(preference(settings.host, settings.conductors))
        while True:
            endpoint = dialling.next(clock.boot_s())
            began_s = clock.boot_s()
            over = await self._one_session(endpoint)
            now_s = clock.boot_s()
            lasted = now_s - began_s >= settings.timers.lasting_s
            dialling = dialling.held() if lasted else dialling.failed()
            if over.retry_after_s > 0:
                dialling = dialling.asked(endpoint, until_s=now_s + over.retry_after_s)
            _log.info("session.over", conductor=endpoint, reason=over.reason)
            await asyncio.sleep(dialling.wait_s(self._jitter()))

    async def _one_session(self, endpoint: str) -> SessionOver:
        try:
            stream = await self._dialer.dial(endpoint)
            return await Session(stream, self._desk()).run(lambda: self._granted(endpoint))
        except (FabricError, StreamClosed) as error:
            return SessionOver(str(error) or "the stream has ended")
        except Exception:  # noqa: BLE001 - logged; the next session begins from what is durable
            _log.exception("session.failed", conductor=endpoint)
            return SessionOver("the session failed on this side")
        finally:
            self._in_session.clear()

    def _desk(self) -> Desk:
        return Desk(
            settings=self._settings,
            boot_id=self._boot_id,
            clock=self._clock,
            journal=self._journal,
            gate=self._gate,
            post=self._post,
            queues=self._queues,
            plans=self._plans,
            inventory=self._audit.inventory,
            answer=self._answers.answer,
            snapshot_taken=self._audit.orders_known,
            failpoints=self._failpoints,
        )

    def _granted(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._in_session.set()

    # ------------------------------------------------------------ what goes through a conductor

    async def _fetch(self, image: ImageRef) -> AsyncIterator[bytes]:
        """An image's bytes through whichever conductor has our session, going on where a broken transfer ended.

        Waits for a session, because without one nobody would relay. Raises Unavailable after several failures in a row.
        """
        offset, failures = 0, 0
        while offset < image.size_bytes:
            await self._in_session.wait()
            try:
                async for chunk in self._dialer.fetch_image(self._endpoint, image.id, offset):
                    offset += len(chunk)
                    failures = 0
                    yield chunk
                if offset < image.size_bytes:
                    raise Unavailable(f"the image ended after {offset} of {image.size_bytes} bytes")
            except FabricError as error:
                failures += 1
                _log.warning("image.interrupted", image=image.id, offset=offset, reason=error.message)
                if failures >= _FETCH_TRIES:
                    raise Unavailable(f"the image could not be fetched: {error.message}") from error
                await asyncio.sleep(0.2 * 2.0**failures * (0.5 + self._jitter()))

    async def _hand_over(
        self, offer: ImageOffer, read: Callable[[], AsyncIterator[bytes]], progress: Callable[[int], None]
    ) -> None:
        """Hand an image in through whichever conductor has our session. From its first byte: what is half there is nowhere."""
        await self._in_session.wait()
        sent = 0

        async def counted() -> AsyncIterator[bytes]:
            nonlocal sent
            progress(0)
            async for chunk in read():
                yield chunk
                sent += len(chunk)
                progress(99 * sent // max(offer.size_bytes, 1))

        await self._dialer.upload_image(self._endpoint, offer, counted())
        progress(100)
