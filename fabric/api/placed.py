"""Where a server is, for what can only be asked of its host: consoles, counters, passwords."""

from __future__ import annotations

from dataclasses import dataclass

from fabric.api.catalogue import Catalogue
from fabric.api.cells import Cells
from fabric.errors import WrongState
from fabric.model.identity import Principal
from fabric.model.instance import Instance
from fabric.store import codec
from fabric.store.keys import INSTANCE, SESSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Whereabouts:
    """What a conductor must be told to ask a host about one placement of a server, and which conductor that is (`host:port`)."""

    conductor: str
    host: str
    instance_id: str
    placement_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A server on a host: its record, its cell, and how its host is asked about it."""

    record: Instance
    cell: str
    where: Whereabouts


async def find_placed(
    catalogue: Catalogue, cells: Cells, word: str, principal: Principal, *, what: str
) -> Placed:
    """The server by id or name. `what` it is wanted for goes into the error.

    Raises NotFound; WrongState for a server that is on no host; Unavailable where its cell cannot be reached.
    """
    location = await catalogue.location(word, principal)
    view = cells[location.cell]
    key = INSTANCE.at(location.instance_id)
    stored = (await view.get(key)).value(key)
    if stored is None:
        raise WrongState(
            f"the server has no {what} yet: it is still being placed", instance=location.instance_id
        )
    record = codec.decode(Instance, stored)
    held = await view.sessions.find(SESSION.at(record.host)) if record.host else None
    if held is None or not held.value.conductor:
        raise WrongState(f"the server has no {what}: it is on no host", instance=location.instance_id)
    where = Whereabouts(
        conductor=held.value.conductor,
        host=record.host,
        instance_id=record.id,
        placement_epoch=record.placement_epoch,
    )
    return Placed(record=record, cell=location.cell, where=where)
