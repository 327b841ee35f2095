"""What a weigher is: a preference among hosts that all fit, in two forms that must agree to the last bit."""

from __future__ import annotations

from typing import ClassVar, Protocol

from fabric.scheduler.core.picture import HostPicture, HostRow, Rows, Weights


class Weigher(Protocol):
    """Gives each host a number from 0 to 1, more being better, by that host's own facts alone.

    Alone, on purpose: where the reference normalises over the hosts that are left (so that one host's weight changes when another
    drops out), here a claim changes the weight of one host only, and placing a batch needs one pass over all hosts instead of one
    per server. `name` is what settings call it.
    """

    name: ClassVar[str]

    def weights(self, hosts: HostPicture, rows: Rows) -> Weights:
        """The numbers of these rows."""
        ...

    def weight(self, host: HostRow) -> float:
        """The number of this host: the same formula in the same order, so that both forms round alike (IEEE 754)."""
        ...
