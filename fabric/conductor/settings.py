"""What an operator may set of a conductor; the defaults are the host protocol's."""

from __future__ import annotations

from dataclasses import dataclass


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
    sweep_s: float = 2.0
    """How often hosts that are gone and deadlines that have passed are looked for."""
    sweep_records_s: float = 600.0
    """How often records that have served their time are removed."""
    hello_s: float = 10.0
    """How long a new stream may stay silent."""
    console_s: float = 10.0
    """How long a host may take to answer with a console's log."""
