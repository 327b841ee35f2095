"""Ports of tenant networks that their servers do not have: what is written to give one back.

A port is bound in one store and plugged in by a write to the other, and no transaction spans both. What makes it safe, whatever dies in
between: before a port is bound to a server that is there, `port-left/<port>` is written in the server's cell, for later; the write that
plugs the port in takes it away, comparing it. Whoever finds it there when its time has come takes it over first (`taken`), so that nobody
plugs the port in any more; and then writes the server's index row (`given_back`), so that nobody binds the port any more who read the row
before the work was written.
"""

from __future__ import annotations

from dataclasses import replace

from fabric.model.instance import Location, PortLeft
from fabric.network.core.releases import Release
from fabric.scheduler.core.change import Change
from fabric.scheduler.core.picture import Seen
from fabric.store import keys


def taken(left: PortLeft, revision: int) -> Change:
    """In the server's cell: the work is ours, and everybody else's that was still on its way is void. Needed for work that was for later:
    by what is for now nobody plugs anything in.
    """
    key = keys.PORT_LEFT.at(left.port_id)
    return Change(unchanged={key: revision}, put={key: replace(left, not_before_ms=0)})


def given_back(location: Seen[Location], port_id: str, release: Release | None, *, op_id: str) -> Change:
    """In the global store: the server does not hold the port. `release` is what giving it back takes, None where it was never bound."""
    if location.value is None:
        raise ValueError("a server that is not in the index holds no port")
    key = keys.LOCATION.at(location.value.instance_id)
    rest = tuple(each for each in location.value.port_ids if each != port_id)
    row = replace(location.value, port_ids=rest, op_id=op_id)
    part = release or Release()
    return Change(
        unchanged={**part.unchanged, key: location.revision}, put={**part.put, key: row}, delete=part.delete
    )
