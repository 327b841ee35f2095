"""The only place that talks to libvirt's library: a few threads for its blocking calls, one for its events.

libvirt's asyncio event loop is not used: it adds readers from whichever thread makes a call, and its drain can hang for ever.
The default loop in a thread of its own is solid; what it says is handed to asyncio by `call_soon_threadsafe`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

import libvirt
import structlog

from fabric.deadlines import within
from hostd.core.faults import FaultCode
from hostd.driver.base import DriverError, driver_error
from hostd.threads import DaemonThreads

_P = ParamSpec("_P")
_T = TypeVar("_T")

_log = structlog.get_logger(__name__)

CALL_DEADLINE_S: Final = 30.0
_OPEN_DEADLINE_S: Final = 20.0
_KEEPALIVE_INTERVAL_S: Final = 5
_KEEPALIVE_COUNT: Final = 3
_WORKERS: Final = 8

_CONNECTION_CODES: Final = frozenset(
    {
        libvirt.VIR_ERR_NO_CONNECT,
        libvirt.VIR_ERR_INVALID_CONN,
        libvirt.VIR_ERR_RPC,
        libvirt.VIR_ERR_AUTH_FAILED,
        libvirt.VIR_ERR_AUTH_UNAVAILABLE,
    }
)
_CODES: Final = {
    libvirt.VIR_ERR_NO_DOMAIN: FaultCode.DOMAIN_MISSING,
    libvirt.VIR_ERR_XML_ERROR: FaultCode.DOMAIN_INVALID,
    libvirt.VIR_ERR_XML_DETAIL: FaultCode.DOMAIN_INVALID,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED: FaultCode.DOMAIN_INVALID,
    libvirt.VIR_ERR_OPERATION_TIMEOUT: FaultCode.HYPERVISOR_TIMEOUT,
    libvirt.VIR_ERR_NO_MEMORY: FaultCode.HYPERVISOR_FAILED,
}


def fault_of(error: libvirt.libvirtError, otherwise: FaultCode) -> FaultCode:
    """What a libvirt error means to us; `otherwise` is the failure of the step it came from."""
    code = error.get_error_code()
    # A socket that closes under a call is an "internal error" of the RPC part.
    if code in _CONNECTION_CODES or error.get_error_domain() == libvirt.VIR_FROM_RPC:
        return FaultCode.HYPERVISOR_UNAVAILABLE
    return _CODES.get(code, otherwise)


class _EventThread:
    """libvirt's event loop. Its registration is for the process and for ever, so there is one, started at first use."""

    _lock = threading.Lock()
    _started = False

    @classmethod
    def ensure(cls) -> None:
        with cls._lock:
            if cls._started:
                return
            # Without a handler the library prints every error to stderr, domain names and paths with it.
            libvirt.registerErrorHandler(lambda _context, _error: None, None)
            libvirt.virEventRegisterDefaultImpl()
            threading.Thread(target=cls._run, name="libvirt-events", daemon=True).start()
            cls._started = True

    @staticmethod
    def _run() -> None:
        while True:
            with contextlib.suppress(libvirt.libvirtError):
                libvirt.virEventRunDefaultImpl()


REBOOT: Final = -1
"""Stands among VIR_DOMAIN_EVENT_* for the reboot of a guest, which libvirt tells by an event of its own."""


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """A domain's lifecycle event as libvirt gives it: its UUID, VIR_DOMAIN_EVENT_* (or REBOOT) and the detail's number."""

    instance_id: str
    event: int
    detail: int


class Connection:
    """A connection to one libvirtd, from asyncio. Not open until `open`, which may be called again after a loss."""

    def __init__(self, uri: str, *, call_deadline_s: float = CALL_DEADLINE_S) -> None:
        self._uri = uri
        self._call_deadline_s = call_deadline_s
        self._open_deadline_s = min(_OPEN_DEADLINE_S, call_deadline_s)
        self._workers = DaemonThreads(_WORKERS, "libvirt-call")
        self._opening: asyncio.Future[libvirt.virConnect] | None = None
        self._connect: libvirt.virConnect | None = None
        self._listeners: list[asyncio.Queue[Lifecycle | None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    async def open(self) -> None:
        """Connect, letting go of an earlier connection. Raises DriverError (HYPERVISOR_UNAVAILABLE, HYPERVISOR_TIMEOUT).

        A libvirtd that hangs takes the call and says nothing, for ever: libvirt's keepalive begins only afterwards. So an attempt that
        came to nothing in time is waited for again, not made again: else each would take a thread, and all of them succeed at the end.
        """
        self._loop = asyncio.get_running_loop()
        await self._disconnect()
        _EventThread.ensure()
        if self._opening is None:
            self._opening = asyncio.wrap_future(self._workers.submit(self._open_blocking))
        opening = self._opening
        try:
            self._connect = await self._in_time(
                FaultCode.HYPERVISOR_UNAVAILABLE, self._open_deadline_s, asyncio.shield(opening)
            )
        finally:
            if opening.done():
                self._opening = None

    async def close(self) -> None:
        """Disconnect and end every listener. A call that hangs is left behind: neither this nor the process's end waits for it."""
        await self._disconnect()
        if self._opening is not None:
            self._opening.add_done_callback(_close_late)
            self._opening = None
        self._workers.end()

    async def call(
        self,
        otherwise: FaultCode,
        function: Callable[[libvirt.virConnect], _T],
        *,
        deadline_s: float | None = None,
    ) -> _T:
        """Run `function` with the connection in a thread, within the deadline.

        Raises DriverError: with `otherwise` for a failure that libvirt has no better word for; HYPERVISOR_TIMEOUT where the
        call did not return in time. It then still runs in its thread, until keepalive gives libvirtd up.
        """
        connect = self._connect
        if connect is None:
            raise driver_error(FaultCode.HYPERVISOR_UNAVAILABLE)
        return await self._in_thread(
            otherwise, self._call_deadline_s if deadline_s is None else deadline_s, partial(function, connect)
        )

    def listen(self) -> asyncio.Queue[Lifecycle | None]:
        """A queue of lifecycle events from now on; None ends it when the connection does."""
        queue: asyncio.Queue[Lifecycle | None] = asyncio.Queue()
        if self._connect is None:
            queue.put_nowait(None)
        else:
            self._listeners.append(queue)
        return queue

    def unlisten(self, queue: asyncio.Queue[Lifecycle | None]) -> None:
        """Stop filling the queue."""
        with contextlib.suppress(ValueError):
            self._listeners.remove(queue)

    def _open_blocking(self) -> libvirt.virConnect:
        connect = libvirt.open(self._uri)
        with contextlib.suppress(libvirt.libvirtError):
            # Not every driver speaks over a socket (test:///default does not).
            connect.setKeepAlive(_KEEPALIVE_INTERVAL_S, _KEEPALIVE_COUNT)
        lifecycle, reboot = libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, libvirt.VIR_DOMAIN_EVENT_ID_REBOOT
        try:
            connect.registerCloseCallback(self._on_close, None)
            connect.domainEventRegisterAny(None, lifecycle, self._on_lifecycle, None)
            connect.domainEventRegisterAny(None, reboot, self._on_reboot, None)
        except libvirt.libvirtError:
            _close(connect)
            raise
        return connect

    async def _disconnect(self) -> None:
        connect, self._connect = self._connect, None
        self._end_listeners()
        if connect is not None:
            # While the event thread still runs: a close after its end would wait for ever on a dead peer.
            with contextlib.suppress(DriverError):
                await self._in_thread(
                    FaultCode.HYPERVISOR_UNAVAILABLE, self._open_deadline_s, partial(_close, connect)
                )

    def _on_lifecycle(
        self, _connect: libvirt.virConnect, domain: libvirt.virDomain, event: int, detail: int, _opaque: Any
    ) -> None:
        self._hand_over(partial(self._tell, Lifecycle(domain.UUIDString(), event, detail)))

    def _on_reboot(self, _connect: libvirt.virConnect, domain: libvirt.virDomain, _opaque: Any) -> None:
        self._hand_over(partial(self._tell, Lifecycle(domain.UUIDString(), REBOOT, 0)))

    def _on_close(self, connect: libvirt.virConnect, reason: int, _opaque: Any) -> None:
        self._hand_over(partial(self._lost, connect, reason))

    def _hand_over(self, act: Callable[[], None]) -> None:
        """From libvirt's thread to the loop's; a loop that has ended hears nothing."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(act)

    def _tell(self, event: Lifecycle) -> None:
        for queue in self._listeners:
            queue.put_nowait(event)

    def _lost(self, connect: libvirt.virConnect, reason: int) -> None:
        # A late word about a connection that was replaced since must not end the new one.
        if connect is self._connect:
            _log.warning("hypervisor.lost", reason=reason)
            self._end_listeners()

    def _end_listeners(self) -> None:
        for queue in self._listeners:
            queue.put_nowait(None)
        self._listeners.clear()

    async def _in_thread(self, otherwise: FaultCode, deadline_s: float, function: Callable[[], _T]) -> _T:
        return await self._in_time(otherwise, deadline_s, asyncio.wrap_future(self._workers.submit(function)))

    @staticmethod
    async def _in_time(otherwise: FaultCode, deadline_s: float, result: asyncio.Future[_T]) -> _T:
        try:
            async with within(deadline_s):
                return await result
        except TimeoutError:
            _log.warning("hypervisor.timeout", deadline_s=deadline_s)
            raise driver_error(FaultCode.HYPERVISOR_TIMEOUT) from None
        except libvirt.libvirtError as error:
            code = fault_of(error, otherwise)
            if code is not FaultCode.DOMAIN_MISSING:
                _log.info("hypervisor.refused", fault=code, words=error.get_error_message())
            raise driver_error(code) from error


def _close_late(opened: asyncio.Future[libvirt.virConnect]) -> None:
    """Let go of a connection that came when nobody waited for it any more."""
    if not opened.cancelled() and opened.exception() is None:
        threading.Thread(target=_close, args=(opened.result(),), name="libvirt-close", daemon=True).start()


def _close(connect: libvirt.virConnect) -> None:
    """Close for good: each callback holds the connection too, and its socket would stay."""
    for callback in list(connect.domainEventCallbackID):
        with contextlib.suppress(libvirt.libvirtError):
            connect.domainEventDeregisterAny(callback)
    with contextlib.suppress(libvirt.libvirtError):
        connect.unregisterCloseCallback()
    with contextlib.suppress(libvirt.libvirtError):
        connect.close()
