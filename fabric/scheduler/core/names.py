"""A server's name is changed in its cell, and its index row follows: one name for each, however many were given at once.

The row is read before the record, and compared when it is written: whoever writes an older name than the record's has read the row before
the later name was brought to it, and is refused.
"""

from __future__ import annotations

from dataclasses import replace

from fabric.model.instance import Instance, Location
from fabric.scheduler.core.change import Change
from fabric.scheduler.core.picture import Seen
from fabric.store import keys


def brought(location: Seen[Location], instance: Instance | None, *, op_id: str) -> Change:
    """In the global store: the index row with the record's name. Empty where there is nothing to do, or no server any more."""
    row = location.value
    if row is None or instance is None or row.name == instance.request.guest.name:
        return Change()
    key = keys.LOCATION.at(row.instance_id)
    return Change(
        unchanged={key: location.revision},
        put={key: replace(row, name=instance.request.guest.name, op_id=op_id)},
    )
