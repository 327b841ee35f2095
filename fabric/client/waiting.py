"""When a wait is over: a function of what was seen.

A read may be older than the caller's own write: another API server answered it. So what counts is only what is at least as new as the
`generation` that the write was answered with; until then nothing has been seen yet, least of all a failure.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from fabric.pb.compute.v1.instance_service_pb2 import Instance


class Verdict(enum.Enum):
    """What to make of one look."""

    GOING = enum.auto()
    DONE = enum.auto()
    FAILED = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often to look: soon at first, because most things are quick, and rarely when they turn out not to be."""

    first_s: float = 0.05
    factor: float = 1.4
    longest_s: float = 3.0

    def after(self, interval_s: float) -> float:
        """The next interval."""
        return min(self.longest_s, interval_s * self.factor)


def verdict(seen: Instance, *, state: str, generation: int) -> Verdict:
    """Whether a server has come to rest in `state`, or elsewhere.

    Args:
        seen: what was read.
        state: the state waited for, as people see it: ACTIVE, SHUTOFF, …
        generation: of the write whose outcome is waited for.
    """
    status = seen.status
    if status.generation < generation or status.task_state or status.state in {"BUILD", "UNKNOWN"}:
        return Verdict.GOING
    # A record is written in one piece: without a task, it says how the last action ended. Success takes an older fault away.
    ended_well = state == "ERROR" or not status.HasField("fault")
    return Verdict.DONE if status.state == state and ended_well else Verdict.FAILED


def verdict_of_delete(seen: Instance, *, generation: int) -> Verdict:
    """Whether a server that can still be read is on its way out, or has failed to go. Only one that is not found is gone; one that is kept
    for a while has gone as far as it was asked to.

    Args:
        seen: what was read.
        generation: the delete's own.
    """
    status = seen.status
    if status.state == "DELETED":
        return Verdict.DONE
    if status.generation < generation or status.task_state:
        return Verdict.GOING
    return {"ERROR": Verdict.FAILED, "SOFT_DELETED": Verdict.DONE}.get(status.state, Verdict.GOING)


def verdict_of_devices(seen: Instance, *, generation: int) -> Verdict:
    """Whether the server's host has dealt with a generation. How it ended, its fault says, and the devices that it then has."""
    status = seen.status
    is_told = generation <= status.generation == status.observed_generation
    return Verdict.DONE if is_told and not status.task_state else Verdict.GOING


def generation_of_delete(before: Instance, *, force: bool = False) -> int:
    """The generation that deleting `before` makes, or has made already."""
    status = before.status
    is_under_way = status.task_state == "deleting"
    is_kept = not force and (status.task_state == "soft_deleting" or status.state == "SOFT_DELETED")
    return status.generation + (0 if is_under_way or is_kept else 1)
