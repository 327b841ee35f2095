"""What an operator may set of a conductor; the defaults are the host protocol's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fabric.lifecycle.table import TIMERS


@dataclass(frozen=True, slots=True, kw_only=True)
class ConductorSettings:
    """All times in seconds."""

    cell: str
    """The cell whose hosts come here, and whose store this is."""
    endpoint: str
    """`host:port` at which the API reaches this conductor; stored with each session."""
    lease_s: float = 10.0
    """How long a host counts as alive without its conductor saying so."""
    silence_s: float = 10.0
    """A host that says nothing for so long has lost its session. With `lease_s`, unreachable is known within about 22 s."""
    permit_s: float = 60.0
    """How long an acknowledged beat permits starting guests (R5)."""
    resync_s: float = 30.0
    """How often each host is told everything again, whatever was told before."""
    shelve_offload_s: float = 0.0
    """How long a shelved server keeps its host; -1 for until somebody frees it."""
    resize_confirm_s: float = 0.0
    """After how long a resize is confirmed by itself; 0 for never."""
    sweep_s: float = 2.0
    """How often hosts that are gone and deadlines that have passed are looked for."""
    sweep_records_s: float = 600.0
    """How often records that have served their time are removed."""
    upload_bytes_per_s: float = 256 * 1024.0 * 1024.0
    """How fast a host may hand an image in."""
    hello_s: float = 10.0
    """How long a new stream may stay silent."""
    console_s: float = 10.0
    """How long a host may take to answer a question: a console's log, counters, a console's tunnel."""
    password_s: float = 20.0
    """How long a host may take to have a guest's agent set a password."""

    @property
    def timers_s(self) -> Mapping[str, float]:
        """What the lifecycle's timers are set to, by the name of the setting."""
        return {timer.setting: getattr(self, timer.setting) for timer in TIMERS if timer.setting}
