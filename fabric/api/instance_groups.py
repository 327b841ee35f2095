"""Security groups of servers: of all their ports on tenant networks that are filtered, at once (as in the reference).

A server's lock holds for them too. It is in the server's record, in its cell, and the ports are in the global store: no transaction
compares both, so the record is read just before, each time that a change is decided. A lock that is written just then comes after it.
"""

from __future__ import annotations

from dataclasses import replace

from fabric.api.catalogue import Catalogue
from fabric.api.cells import Cells
from fabric.api.draft import Draft
from fabric.api.named import Found, named_by
from fabric.api.network_desk import Desk, seen_at
from fabric.api.port_parts import join, membership
from fabric.api.records import found
from fabric.api.security_groups import ensure_default
from fabric.errors import NotFound, WrongState
from fabric.lifecycle.core import refuse_locked, still_placed
from fabric.model.identity import Principal
from fabric.model.instance import Instance, Location
from fabric.model.network import NetworkPort
from fabric.model.security_group import SecurityGroup
from fabric.pb.compute.v1 import instance_service_pb2 as pb
from fabric.store.keys import INSTANCE, LOCATION, OVER, PORT

GROUPS_LIMIT = 16
"""Groups of one port, as many as may be named for it."""


class InstanceGroups:
    """The RPCs, as functions of a request and who asks. Done once for each request_id; they return the global store's revision."""

    def __init__(self, catalogue: Catalogue, cells: Cells, desk: Desk) -> None:
        self._catalogue = catalogue
        self._cells = cells
        self._desk = desk

    async def add(self, request: pb.AddInstanceSecurityGroupRequest, principal: Principal) -> int:
        """Put the server's ports into a group. Raises InvalidRequest, NotFound, WrongState where it has none."""

        async def decide(draft: Draft) -> str:
            location = await self._opened(draft, "add-security-group", request.instance, principal)
            ports, group = await self._looked_up(location, request.security_group)
            for each in ports:
                port = each.value
                if group.value.id in port.security_group_ids:
                    continue
                if len(port.security_group_ids) >= GROUPS_LIMIT:
                    raise WrongState(
                        f"port {port.id} is in {GROUPS_LIMIT} groups, the most that one may be in"
                    )
                join(draft, [group], port)
                self._write(draft, each, (*port.security_group_ids, group.value.id))
            return group.value.id

        return (await self._desk.make(decide, request, principal)).revision

    async def remove(self, request: pb.RemoveInstanceSecurityGroupRequest, principal: Principal) -> int:
        """Take the server's ports out of a group. Raises InvalidRequest, NotFound, WrongState where none is in it."""

        async def decide(draft: Draft) -> str:
            location = await self._opened(draft, "remove-security-group", request.instance, principal)
            ports, group = await self._looked_up(location, request.security_group)
            members = [each for each in ports if group.value.id in each.value.security_group_ids]
            if not members:
                raise WrongState(f"no port of the server is in group {group.value.name}")
            for member in members:
                draft.free(membership(group.value.id, member.value))
                rest = tuple(each for each in member.value.security_group_ids if each != group.value.id)
                self._write(draft, member, rest)
            return group.value.id

        return (await self._desk.make(decide, request, principal)).revision

    def _write(self, draft: Draft, seen: Found[NetworkPort], group_ids: tuple[str, ...]) -> None:
        port = seen.value
        after = replace(port, security_group_ids=group_ids, update_time_ms=self._desk.clock.now_ms())
        draft.write(PORT.at(port.project_id, port.id), after, seen=seen.mod_revision)

    async def _opened(self, draft: Draft, action: str, server: str, principal: Principal) -> Location:
        """The server's index row, which is compared: its ports stay. Raises NotFound, Unavailable, WrongState where it is locked."""
        known = await self._catalogue.location(server, principal)
        key = LOCATION.at(known.instance_id)
        row = seen_at(await self._desk.store.get(key), LOCATION, key)
        if row is None:
            raise _no_server(server)
        draft.read(key, row.mod_revision)
        refuse_locked(await self._record(row.value, action), action, is_admin=principal.system_admin)
        return row.value

    async def _record(self, location: Location, action: str) -> Instance:
        """The server's record. Raises WrongState where it is still to be placed, as every other change of it does."""
        keys = INSTANCE.at(location.instance_id), OVER.at(location.instance_id)
        seen = await self._cells[location.cell].get(*keys)
        record = found(seen, INSTANCE, location.instance_id)
        if record is not None:
            return record
        if keys[1] in seen.entries:
            raise _no_server(location.instance_id)
        raise still_placed(location.instance_id, action)

    async def _looked_up(
        self, location: Location, group: str
    ) -> tuple[list[Found[NetworkPort]], Found[SecurityGroup]]:
        """The server's ports that are filtered, and the group."""
        keys = [PORT.at(location.project_id, each) for each in location.port_ids]
        seen = await self._desk.store.get(*keys)
        held = [port for each in keys if (port := seen_at(seen, PORT, each)) is not None]
        ports = [each for each in held if each.value.port_security]
        if not ports:
            raise WrongState(
                "the server has no port that security groups filter: it is on its host's own network, or nothing is filtered",
                instance=location.instance_id,
            )
        await ensure_default(self._desk, location.project_id)
        named = await named_by("security_group", self._desk.groups.get(location.project_id, group))
        return ports, named


def _no_server(word: str) -> NotFound:
    return NotFound(f"there is no server {word}", kind="server", name=word)
