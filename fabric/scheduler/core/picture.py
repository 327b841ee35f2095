"""All hosts of all cells as columns: one contiguous array per fact, so that a filter is one comparison over every host at once.

Rows are never compared by position: whatever is chosen depends on the hosts' facts and names only. Facts come from four records per
host, each with the revision it was read at; older news than what is known changes nothing, so watches, re-reads and our own
commits may arrive in any order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from fabric.model.host import CellCapacity, Host, Resources, Session, SessionState, Use
from fabric.network.addresses import slot_limit

T = TypeVar("T")
Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]
Rows = npt.NDArray[np.intp]
Weights = npt.NDArray[np.float64]
Hashes = npt.NDArray[np.uint64]

_FIRST_ROWS = 64
_NUMBERS = (
    "free_vcpus",
    "free_ram_mib",
    "free_disk_gib",
    "capacity_vcpus",
    "capacity_ram_mib",
    "free_slots",
    "instances",
    "zone",
    "cell",
)
_FLAGS = ("exists", "is_up", "is_cell_enabled", "is_cell_reachable", "has_tunnel")


def ring_place(name: str) -> int:
    """Where a name stands on the ring of 2^64 that breaks ties."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")


@dataclass(frozen=True, slots=True)
class Seen(Generic[T]):
    """A record as it was read: `revision` is what a write compares (0: absent), `known` orders news about it."""

    value: T | None = None
    revision: int = 0
    known: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRow:
    """One host's facts as a value: what the scalar forms of filters and weighers look at."""

    name: str
    cell: str
    zone: str
    is_up: bool
    is_cell_enabled: bool
    is_cell_reachable: bool
    capacity: Resources
    free: Resources
    free_slots: int
    instances: int
    traits: frozenset[str]
    has_tunnel: bool = False

    def with_guest(self, resources: Resources, *, takes_slot: bool = True) -> HostRow:
        """The host after one more guest was put on it."""
        return replace(
            self,
            free=self.free - resources,
            free_slots=self.free_slots - takes_slot,
            instances=self.instances + 1,
        )


@dataclass(slots=True)
class _Known:
    """What is known of one host, by record."""

    host: Seen[Host]
    session: Seen[Session]
    use: Seen[Use]
    is_alive: bool = False
    slot_limit: int = 0


@dataclass(slots=True)
class _CellFacts:
    is_enabled: bool = False
    is_reachable: bool = False


class HostPicture:
    """The columns, and the records behind them. Changed by news only; decisions read it and leave it as it is."""

    def __init__(self) -> None:
        self._count = 0
        self._rows: dict[tuple[str, str], int] = {}
        self._keys: list[tuple[str, str]] = []
        self._known: list[_Known] = []
        self._cells: dict[str, _CellFacts] = {}
        self._codes: dict[str, int] = {"": 0}
        self._numbers: dict[str, Numbers] = {name: np.zeros(_FIRST_ROWS, np.int64) for name in _NUMBERS}
        self._flags: dict[str, Mask] = {name: np.zeros(_FIRST_ROWS, np.bool_) for name in _FLAGS}
        self._traits: dict[str, Mask] = {}
        self._ring: Hashes = np.zeros(_FIRST_ROWS, np.uint64)

    # ------------------------------------------------------------------ columns, for the vector forms

    def __len__(self) -> int:
        """How many rows the columns have; some may be of hosts that do not exist (`exists`)."""
        return self._count

    @property
    def free_vcpus(self) -> Numbers:
        return self._numbers["free_vcpus"][: self._count]

    @property
    def free_ram_mib(self) -> Numbers:
        return self._numbers["free_ram_mib"][: self._count]

    @property
    def free_disk_gib(self) -> Numbers:
        return self._numbers["free_disk_gib"][: self._count]

    @property
    def capacity_vcpus(self) -> Numbers:
        return self._numbers["capacity_vcpus"][: self._count]

    @property
    def capacity_ram_mib(self) -> Numbers:
        return self._numbers["capacity_ram_mib"][: self._count]

    @property
    def free_slots(self) -> Numbers:
        return self._numbers["free_slots"][: self._count]

    @property
    def instances(self) -> Numbers:
        return self._numbers["instances"][: self._count]

    @property
    def zone(self) -> Numbers:
        """Codes; see `code`."""
        return self._numbers["zone"][: self._count]

    @property
    def cell(self) -> Numbers:
        """Codes; see `code`."""
        return self._numbers["cell"][: self._count]

    @property
    def exists(self) -> Mask:
        """Rows of hosts that have a record; the others are only mentioned by other records."""
        return self._flags["exists"][: self._count]

    @property
    def is_up(self) -> Mask:
        """Enabled, with a session that is UP and beats."""
        return self._flags["is_up"][: self._count]

    @property
    def is_cell_enabled(self) -> Mask:
        return self._flags["is_cell_enabled"][: self._count]

    @property
    def is_cell_reachable(self) -> Mask:
        return self._flags["is_cell_reachable"][: self._count]

    @property
    def has_tunnel(self) -> Mask:
        """Hosts that take part in tenant networks."""
        return self._flags["has_tunnel"][: self._count]

    @property
    def ring(self) -> Hashes:
        """Each host's place on the ring that breaks ties."""
        return self._ring[: self._count]

    def trait(self, name: str) -> Mask:
        """Which hosts have the trait; nobody has one that was never heard of."""
        column = self._traits.get(name)
        return np.zeros(self._count, np.bool_) if column is None else column[: self._count]

    def code(self, name: str) -> int:
        """The number a zone or cell is written as in the columns; -1, which no host has, for one never heard of."""
        return self._codes.get(name, -1)

    def rows_named(self, host: str) -> list[int]:
        """The rows of the hosts of that name: one in each cell at most."""
        return [row for cell in self._cells if (row := self._rows.get((cell, host))) is not None]

    def key(self, row: int) -> tuple[str, str]:
        """The (cell, host) of a row."""
        return self._keys[row]

    # ------------------------------------------------------------------ values, for the scalar forms and for claims

    def row(self, cell: str, name: str) -> HostRow:
        """One host's facts. Raises KeyError for a host without a record."""
        return self.row_at(self._rows[cell, name])

    def row_at(self, row: int) -> HostRow:
        """The facts of a row. Raises KeyError for a host without a record."""
        cell, name = self._keys[row]
        host = self._known[row].host.value
        if host is None:
            raise KeyError(f"no record of host {name} in cell {cell}")
        number = {column: int(self._numbers[column][row]) for column in _NUMBERS}
        flag = {column: bool(self._flags[column][row]) for column in _FLAGS}
        return HostRow(
            name=name,
            cell=cell,
            zone=host.zone,
            is_up=flag["is_up"],
            is_cell_enabled=flag["is_cell_enabled"],
            is_cell_reachable=flag["is_cell_reachable"],
            capacity=host.capacity,
            free=Resources(
                vcpus=number["free_vcpus"],
                ram_mib=number["free_ram_mib"],
                disk_gib=number["free_disk_gib"],
            ),
            free_slots=number["free_slots"],
            instances=number["instances"],
            traits=frozenset(host.traits),
            has_tunnel=flag["has_tunnel"],
        )

    def host(self, cell: str, name: str) -> Seen[Host]:
        """The host's record and its revision; absent where there is none."""
        row = self._rows.get((cell, name))
        return Seen() if row is None else self._known[row].host

    def session(self, cell: str, name: str) -> Seen[Session]:
        """The host's session and its revision; absent where there is none."""
        row = self._rows.get((cell, name))
        return Seen() if row is None else self._known[row].session

    def use(self, cell: str, name: str) -> Seen[Use]:
        """What is claimed of the host and its revision; absent where there is none."""
        row = self._rows.get((cell, name))
        return Seen() if row is None else self._known[row].use

    @property
    def cells(self) -> tuple[str, ...]:
        """Every cell ever heard of, by name."""
        return tuple(sorted(self._cells))

    def is_enabled(self, cell: str) -> bool:
        """Whether the operator has the cell take servers."""
        return cell in self._cells and self._cells[cell].is_enabled

    def is_reachable(self, cell: str) -> bool:
        """Whether the cell's store answers, and its hosts have been listed."""
        return cell in self._cells and self._cells[cell].is_reachable

    def capacity(self, cell: str, *, now_ms: int) -> CellCapacity:
        """What the cell can take now, over its hosts that are up."""
        rows = np.flatnonzero(
            (self.cell == self.code(cell)) & self.exists & self.is_up & (self.free_slots > 0)
        )
        columns = (self.free_vcpus[rows], self.free_ram_mib[rows], self.free_disk_gib[rows])
        # A host overcommitted by a smaller inventory has less than nothing free, which nobody else has to make good.
        some = [column.clip(min=0) for column in columns]
        total = [int(column.sum()) for column in some]
        largest = [int(column.max(initial=0)) for column in some]
        hosts = [self._known[row].host.value for row in rows]
        return CellCapacity(
            cell=cell,
            hosts=len(rows),
            free=Resources(vcpus=total[0], ram_mib=total[1], disk_gib=total[2]),
            largest=Resources(vcpus=largest[0], ram_mib=largest[1], disk_gib=largest[2]),
            zones=tuple(sorted({host.zone for host in hosts if host is not None})),
            update_time_ms=now_ms,
        )

    # ------------------------------------------------------------------ news

    def set_cell(
        self, cell: str, *, is_enabled: bool | None = None, is_reachable: bool | None = None
    ) -> None:
        """Take in what is known of a cell; None leaves a fact as it is."""
        facts = self._cells.setdefault(cell, _CellFacts())
        if is_enabled is not None:
            facts.is_enabled = is_enabled
        if is_reachable is not None:
            facts.is_reachable = is_reachable
        rows = self.cell == self._code(cell)
        self.is_cell_enabled[rows] = facts.is_enabled
        self.is_cell_reachable[rows] = facts.is_reachable

    def forget_order(self, cell: str) -> None:
        """The cell's store was set back: its revisions begin anew, and whatever it says next is newer than what is known."""
        for (of, _), row in self._rows.items():
            if of == cell:
                known = self._known[row]
                known.host = replace(known.host, known=0)
                known.session = replace(known.session, known=0)
                known.use = replace(known.use, known=0)

    def set_host(self, cell: str, name: str, news: Seen[Host]) -> bool:
        """Take in a host's record; False when it is no news."""
        row = self._row(cell, name)
        if news.known <= self._known[row].host.known:
            return False
        before = self._known[row].host.value
        self._known[row].host = news
        self._known[row].slot_limit = 0 if news.value is None else slot_limit(news.value)
        for trait in before.traits if before else ():
            self._traits[trait][row] = False
        for trait in news.value.traits if news.value else ():
            self._trait_column(trait)[row] = True
        self._refresh(row)
        return True

    def set_session(self, cell: str, name: str, news: Seen[Session]) -> bool:
        """Take in a host's session; False when it is no news."""
        row = self._row(cell, name)
        if news.known <= self._known[row].session.known:
            return False
        self._known[row].session = news
        self._refresh(row)
        return True

    def set_use(self, cell: str, name: str, news: Seen[Use]) -> bool:
        """Take in what is claimed of a host; False when it is no news."""
        row = self._row(cell, name)
        if news.known <= self._known[row].use.known:
            return False
        self._known[row].use = news
        self._refresh(row)
        return True

    def set_alive(self, cell: str, name: str, *, is_alive: bool) -> None:
        """Take in whether the host's session beats: a hint, which keeps guests away from a host that is just dying."""
        row = self._row(cell, name)
        self._known[row].is_alive = is_alive
        self._refresh(row)

    # ------------------------------------------------------------------ inside

    def _refresh(self, row: int) -> None:
        """Make a row's columns say what its records say."""
        known = self._known[row]
        host, session = known.host.value, known.session.value
        self._flags["exists"][row] = host is not None
        self._flags["is_up"][row] = (
            host is not None
            and host.enabled
            and known.is_alive
            and session is not None
            and session.state is SessionState.UP
        )
        self._flags["has_tunnel"][row] = host is not None and host.tunnel_address != ""
        capacity = Resources() if host is None else host.capacity
        use = known.use.value or Use(host=self._keys[row][1])
        free = capacity - use.taken
        for column, number in (
            ("free_vcpus", free.vcpus),
            ("free_ram_mib", free.ram_mib),
            ("free_disk_gib", free.disk_gib),
            ("capacity_vcpus", capacity.vcpus),
            ("capacity_ram_mib", capacity.ram_mib),
            ("free_slots", _free_slots(known.slot_limit, use)),
            ("instances", use.instances),
            ("zone", 0 if host is None else self._code(host.zone)),
        ):
            self._numbers[column][row] = number

    def _row(self, cell: str, name: str) -> int:
        found = self._rows.get((cell, name))
        if found is not None:
            return found
        row = self._count
        if row == len(self._ring):
            self._grow()
        self._count += 1
        self._rows[cell, name] = row
        self._keys.append((cell, name))
        self._known.append(_Known(Seen(), Seen(), Seen()))
        self._ring[row] = ring_place(f"{cell}/{name}")
        self._numbers["cell"][row] = self._code(cell)
        facts = self._cells.setdefault(cell, _CellFacts())
        self._flags["is_cell_enabled"][row] = facts.is_enabled
        self._flags["is_cell_reachable"][row] = facts.is_reachable
        return row

    def _grow(self) -> None:
        for columns in (self._numbers, self._flags, self._traits):
            for name, column in columns.items():
                columns[name] = np.concatenate([column, np.zeros_like(column)])
        self._ring = np.concatenate([self._ring, np.zeros_like(self._ring)])

    def _code(self, name: str) -> int:
        return self._codes.setdefault(name, len(self._codes))

    def _trait_column(self, trait: str) -> Mask:
        return self._traits.setdefault(trait, np.zeros(len(self._ring), np.bool_))

    def rows(self) -> Iterator[HostRow]:
        """Every host that has a record."""
        return (self.row_at(int(row)) for row in np.flatnonzero(self.exists))


def _free_slots(limit: int, use: Use) -> int:
    """How many address slots a claim could take: slots beyond a limit that was lowered meanwhile block none below it."""
    return limit - sum(1 for slot in use.slots if slot < limit)
