"""Named places where a test may end, break or delay a process: `FABRIC_FAIL=hostd.spawn.defined:kill`.

A failpoint stands just after something durable or irreversible was done and before anybody was told: where a crash is hardest to get
right. The grammar is `NAME:ACTION[@N]`, several joined by commas:

- `kill`: the process ends at once, with no last words, as after `kill -9`;
- `stop`: the process is stopped, as by SIGSTOP, until somebody lets it go on;
- `fail`: Unavailable is raised there;
- `delay=SECONDS`: it waits there;
- `@N`: at the Nth time the place is reached, counted from 1; without it, every time.

Handed to shells as a port: production has `NO_FAILPOINTS`, which does nothing, a simulation has its own.
"""

from __future__ import annotations

import asyncio
import enum
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from fabric.errors import InvalidRequest, Unavailable

VARIABLE: Final = "FABRIC_FAIL"
_SIGKILL: Final = 9
_SIGSTOP: Final = 19
_GRAMMAR: Final = re.compile(r"([a-z][a-z0-9_.]*):(kill|stop|fail|delay=(\d+(?:\.\d+)?))(?:@([1-9]\d*))?")


class Failpoints(Protocol):
    """Where a shell says how far it has come."""

    async def reach(self, name: str) -> None:
        """The place of this name (`process.flow.past_fact`) is reached. May never return, or raise Unavailable."""
        ...


class _NoFailpoints:
    async def reach(self, name: str) -> None:
        """Go on."""


NO_FAILPOINTS: Final[Failpoints] = _NoFailpoints()


class FailAction(enum.StrEnum):
    """What happens at a failpoint."""

    KILL = "kill"
    STOP = "stop"
    FAIL = "fail"
    DELAY = "delay"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One failpoint that is set. `visit` 0 means every time."""

    name: str
    action: FailAction
    delay_s: float = 0.0
    visit: int = 0


def parse_failures(text: str) -> tuple[Failure, ...]:
    """What a FABRIC_FAIL says. Raises InvalidRequest, naming the part that is wrong."""
    return tuple(_parse(part.strip()) for part in text.split(",") if part.strip())


def _parse(part: str) -> Failure:
    match = _GRAMMAR.fullmatch(part)
    if match is None:
        raise InvalidRequest(
            f"{part!r} is not NAME:kill|stop|fail|delay=SECONDS, with @N for the Nth time", field=VARIABLE
        )
    name, action, seconds, visit = match.groups()
    return Failure(
        name=name,
        action=FailAction(action.partition("=")[0]),
        delay_s=float(seconds or 0),
        visit=int(visit or 0),
    )


class SetFailpoints:
    """Failpoints of a real process, set when it starts."""

    def __init__(self, failures: Iterable[Failure]) -> None:
        self._failures: dict[str, list[Failure]] = {}
        for failure in failures:
            self._failures.setdefault(failure.name, []).append(failure)
        self._visits: Counter[str] = Counter()

    async def reach(self, name: str) -> None:
        if name not in self._failures:
            return
        self._visits[name] += 1
        for failure in self._failures[name]:
            if failure.visit in {0, self._visits[name]}:
                await _act(failure)


async def _act(failure: Failure) -> None:
    match failure.action:
        case FailAction.KILL:
            os.kill(os.getpid(), _SIGKILL)
        case FailAction.STOP:
            os.kill(os.getpid(), _SIGSTOP)
        case FailAction.FAIL:
            raise Unavailable(f"the failpoint {failure.name} is set to fail")
        case FailAction.DELAY:
            await asyncio.sleep(failure.delay_s)


def failpoints_from(environment: dict[str, str] | os._Environ[str]) -> Failpoints:
    """The failpoints that an environment sets; usually none."""
    text = environment.get(VARIABLE, "")
    return SetFailpoints(parse_failures(text)) if text else NO_FAILPOINTS
