"""What this host answers when it is asked about its guests: console logs, counters, passwords, and consoles themselves.

Nothing of it is journaled: whoever asked waits, and asks again. A question about a placement that is not here is answered like one about
a guest that is not here.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final, TypeVar

import structlog

from fabric.model.session import (
    Answer,
    ConsoleLog,
    ConsoleLogWanted,
    Diagnostics,
    DiagnosticsWanted,
    PasswordSet,
    PasswordWanted,
    Question,
    TunnelRefused,
    TunnelWanted,
)
from fabric.model.states import PowerState
from fabric.observability.failpoints import Failpoints
from hostd.console.tunnels import Tunnels
from hostd.core.faults import FaultCode, as_fault_code
from hostd.driver.base import Driver, DriverError, driver_error
from hostd.images.base import DiskError, Disks

_log = structlog.get_logger(__name__)

Done = TypeVar("Done")

LONGEST_TAIL_BYTES: Final = 100 * 1024
AGENT_TIMEOUT_S: Final = 10.0
"""How long a guest's agent may take to set a password, after it has shown that it is there."""

SET_PASSWORD: Final = "guest-set-user-password"  # noqa: S105 - the name of a command

_ON: Final = frozenset({PowerState.RUNNING, PowerState.PAUSED})


class Answers:
    """See the module."""

    def __init__(self, driver: Driver, disks: Disks, tunnels: Tunnels, failpoints: Failpoints) -> None:
        self._driver = driver
        self._disks = disks
        self._tunnels = tunnels
        self._failpoints = failpoints

    async def answer(self, question: Question) -> Answer | None:
        """The answer; None for a console that was opened, once it is over."""
        match question:
            case ConsoleLogWanted():
                return await self._console_log(question)
            case DiagnosticsWanted():
                return await self._diagnostics(question)
            case PasswordWanted():
                return await self._password(question)
            case TunnelWanted():
                return await self._tunnel(question)

    async def _console_log(self, wanted: ConsoleLogWanted) -> ConsoleLog:
        tail_bytes = max(0, min(LONGEST_TAIL_BYTES, wanted.tail_bytes))
        try:
            data = await self._disks.console_log(wanted.instance_id, wanted.placement_epoch, tail_bytes)
        except (DiskError, OSError) as error:
            _log.warning("console.unread", instance=wanted.instance_id, reason=str(error))
            return ConsoleLog(question=wanted.question, fault_code=FaultCode.CONSOLE_UNAVAILABLE)
        return ConsoleLog(question=wanted.question, data=data)

    async def _diagnostics(self, wanted: DiagnosticsWanted) -> Diagnostics:
        async def read() -> Diagnostics:
            await self._must_be_on(wanted.instance_id, wanted.placement_epoch)
            return await self._driver.diagnostics(wanted.instance_id)

        found, fault = await _tried(read, "diagnostics", wanted.instance_id)
        return replace(found or Diagnostics(), question=wanted.question, fault_code=fault)

    async def _password(self, wanted: PasswordWanted) -> PasswordSet:
        async def change() -> None:
            await self._must_be_on(wanted.instance_id, wanted.placement_epoch)
            arguments = {
                "username": wanted.user,
                "password": base64.b64encode(wanted.password.encode()).decode(),
                "crypted": False,
            }
            await self._driver.agent(wanted.instance_id, SET_PASSWORD, arguments, timeout_s=AGENT_TIMEOUT_S)
            await self._failpoints.reach("hostd.password.set")

        _, fault = await _tried(change, "password", wanted.instance_id)
        return PasswordSet(question=wanted.question, fault_code=fault)

    async def _tunnel(self, wanted: TunnelWanted) -> TunnelRefused | None:
        async def serve() -> None:
            await self._must_be_on(wanted.instance_id, wanted.placement_epoch)
            await self._tunnels.serve(wanted)

        _, fault = await _tried(serve, "console", wanted.instance_id)
        return TunnelRefused(question=wanted.question, fault_code=fault) if fault else None

    async def _must_be_on(self, instance_id: str, placement_epoch: int) -> None:
        """Raise DriverError unless that very placement's guest runs, or is held in memory."""
        domain = await self._driver.observe(instance_id)
        if domain is None or not domain.ours or domain.placement_epoch != placement_epoch:
            raise driver_error(FaultCode.DOMAIN_MISSING)
        if domain.power not in _ON:
            raise driver_error(FaultCode.GUEST_OFF)


async def _tried(work: Callable[[], Awaitable[Done]], what: str, instance_id: str) -> tuple[Done | None, str]:
    """What the work came to, and the fault it ended with, empty for none. Its words are logged, never those that were asked with."""
    try:
        return await work(), ""
    except DriverError as failed:
        _log.info("question.failed", what=what, instance=instance_id, fault=failed.code)
        return None, as_fault_code(failed.code)
    except Exception as failed:  # noqa: BLE001 - whoever asked is told, and the session of all other guests goes on
        _log.warning("question.failed", what=what, instance=instance_id, error=type(failed).__name__)
        return None, FaultCode.HOST_FAILED
