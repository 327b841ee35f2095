"""What a checker is told: everything that was written, everything that physically happened, and what clients saw.

The same events come from a simulation (as they happen) and from real processes (afterwards: the stores' watches from revision 1, the
hosts' domain logs, the client's own notes).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wrote:
    """One key changed in a store. None stands for absence. `by` is the process that wrote it, where that is known."""

    store: str
    revision: int
    key: str
    before: bytes | None
    after: bytes | None
    by: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """A domain began to run on a host.

    Where it can be observed: `permit_age_s` is how long ago the host had sent the newest of its beats (or hellos) that was answered,
    and `has_given_up` whether it had said ERROR of this very order in this session.
    """

    host: str
    instance_id: str
    placement_epoch: int
    permit_age_s: float | None = None
    has_given_up: bool = False


@dataclass(frozen=True, slots=True)
class Stopped:
    """A domain no longer runs on a host; its disks are still there. `why` is for people."""

    host: str
    instance_id: str
    why: str


@dataclass(frozen=True, slots=True)
class Destroyed:
    """A host removed a copy for good: its definition or its disks."""

    host: str
    instance_id: str
    placement_epoch: int


@dataclass(frozen=True, slots=True)
class Made:
    """A host made a root disk, with nothing on it but the image."""

    host: str
    instance_id: str
    placement_epoch: int


@dataclass(frozen=True, slots=True)
class VolumeMade:
    """A host made a volume's disk, empty or of an image."""

    host: str
    volume_id: str


@dataclass(frozen=True, slots=True)
class VolumeRemoved:
    """A host removed a volume's disk for good."""

    host: str
    volume_id: str


@dataclass(frozen=True, slots=True)
class PowerLost:
    """A whole host went off: everything on it stopped, by nobody's decision."""

    host: str


@dataclass(frozen=True, slots=True)
class Called:
    """A client asked for something. `call` is unique to the attempt; retries share `request_id`."""

    call: int
    method: str
    project_id: str
    request_id: str
    instance_id: str = ""


@dataclass(frozen=True, slots=True)
class Returned:
    """The call was answered. `error` is the reason of a definite refusal; an answer that never came has no event (I16)."""

    call: int
    instance_id: str = ""
    error: str = ""


Event = (
    Wrote | Started | Stopped | Destroyed | Made | VolumeMade | VolumeRemoved | PowerLost | Called | Returned
)
