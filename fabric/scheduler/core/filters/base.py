"""What a filter is: one reason to refuse a host, in two forms that must agree."""

from __future__ import annotations

from typing import ClassVar, Protocol

from fabric.scheduler.core.ask import Ask
from fabric.scheduler.core.picture import HostPicture, HostRow, Mask


class Filter(Protocol):
    """Refuses hosts. A filter holds no state and decides by its arguments alone.

    `reason` completes "12 hosts …" for people: `short of memory`.
    """

    reason: ClassVar[str]

    def passing(self, hosts: HostPicture, ask: Ask) -> Mask:
        """Which rows pass, all at once. Must not change a column."""
        ...

    def passes(self, host: HostRow, ask: Ask) -> bool:
        """Whether this host passes: the same rule on a value, for explaining, and for hosts that a batch has just changed."""
        ...


def name_of(rule: Filter) -> str:
    """What documents and stored decisions call it: the name of its class."""
    return type(rule).__name__
