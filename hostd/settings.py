"""What a host daemon is told when it starts: read from its settings file, handed to constructors, never global."""

from __future__ import annotations

import msgspec


class Timers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often, and how long. Seconds of the boot clock."""

    beat_s: float = 2.0
    """Between two beats."""
    silence_s: float = 10.0
    """Beats unacknowledged for so long end the session, and another conductor is dialled."""
    greeting_s: float = 10.0
    """How long a conductor may take to grant a session."""
    lasting_s: float = 30.0
    """A session that lasts so long makes the next dial begin with the preferred conductor again."""
    poll_s: float = 10.0
    """Between two looks at every domain: events may be lost."""
    audit_s: float = 60.0
    """Between two audits of what the host has and holds."""
    hypervisor_retry_s: float = 2.0
    """Between two attempts to reach a hypervisor that is away."""
    press_again_s: float = 10.0
    """Between two presses of a guest's power button."""
    soft_reboot_s: float = 90.0
    """How long a guest may take to reboot itself before its power is cut."""
    transient_s: float = 30.0
    """How long a fault that may pass is tried again before it is reported."""


class HostSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the daemon itself needs, whatever its hardware."""

    host: str
    """The host's name, as in its certificate: for its order of conductors and its logs; no message carries it."""
    conductors: tuple[str, ...]
    """The cell's conductors, each `name:port`."""
    agent_version: str = "0.1.0"
    """Reported to people."""
    spawn_concurrency: int = 4
    """How many steps towards running guests may be under way at once."""
    timers: Timers = Timers()
    """How often, and how long."""
