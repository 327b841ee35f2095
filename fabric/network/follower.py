"""Keeps a `NetworkPicture` of what the global store has, and says whose plans a change may have touched."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from fabric.clock import Clock
from fabric.model.binding import PortBinding, RouterGateway
from fabric.network.core.picture import HostRef, NetworkPicture
from fabric.store import keys
from fabric.store.base import Store
from fabric.store.codec import decode
from fabric.store.picture import Change, Pace, Picture

V = TypeVar("V")

ROWS: Final[tuple[keys.Key[Any], ...]] = (
    keys.NETWORK,
    keys.SUBNET,
    keys.SECURITY_GROUP,
    keys.PORT,
    keys.ROUTER,
    keys.FLOATING_IP,
    keys.PORT_BINDING,
    keys.ROUTER_GATEWAY,
)
"""What a picture is made of, one watch each."""

_ASKING: Final = Pace(contact_s=2.0, stale_after_s=8.0)
_QUIET: Final = Pace(contact_s=30.0, stale_after_s=120.0)
"""All are of one store: it is enough that one of them asks whether it is there."""

Moved = Callable[[type, Sequence[Change[Any]], frozenset[HostRef]], None]
"""Told of a kind's changes and of the hosts that they may mean something to. Must not wait."""


class NetworkFollower:
    """`run` must be running. Survives the store being away for any time: then the picture is as it was, and not fresh."""

    def __init__(self, store: Store, *, clock: Clock, on_change: Moved) -> None:
        self.picture = NetworkPicture()
        self._on_change = on_change
        self._rows = [self._following(store, row, clock, is_asking=row is ROWS[0]) for row in ROWS]

    @property
    def is_fresh(self) -> bool:
        """Whether the picture may be acted on: everything has been listed, and the store answers."""
        return self._rows[0].is_fresh and all(each.revision for each in self._rows)

    @property
    def revision(self) -> int:
        """The store's revision that the picture is of; what it shows is no older where something has changed."""
        return max(each.revision for each in self._rows)

    async def run(self) -> None:
        """Follow until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for each in self._rows:
                tasks.create_task(each.run())

    def _following(self, store: Store, row: keys.Key[V], clock: Clock, *, is_asking: bool) -> Picture[V]:
        return Picture(
            store,
            row.under(),
            lambda _, data: decode(row.record, data),
            clock=clock,
            on_change=lambda changes: self._take(row.record, changes),
            pace=_ASKING if is_asking else _QUIET,
        )

    def _take(self, kind: type[V], changes: Sequence[Change[V]]) -> None:
        touched = set[HostRef]()
        for each in changes:
            touched |= self.picture.put(kind, _id_in(each), None if each.after is None else each.after.value)
        self._on_change(kind, changes, frozenset(touched))


def _id_in(change: Change[Any]) -> str:
    """By what the picture knows a record."""
    held = change.before if change.after is None else change.after
    assert held is not None
    match held.value:
        case PortBinding(port_id=found) | RouterGateway(router_id=found):
            return found
        case record:
            return str(record.id)
