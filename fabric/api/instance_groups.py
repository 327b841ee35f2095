"""Security groups of servers: of all their ports on tenant networks that are filtered, at once (as in the reference)."""

from __future__ import annotations

from dataclasses import replace

from fabric.api.catalogue import Catalogue
from fabric.api.draft import Draft
from fabric.api.named import Found, named_by
from fabric.api.network_desk import Desk, seen_at
from fabric.api.port_parts import join, membership
from fabric.api.security_groups import ensure_default
from fabric.errors import NotFound, WrongState
from fabric.model.identity import Principal
from fabric.model.network import NetworkPort
from fabric.model.security_group import SecurityGroup
from fabric.pb.compute.v1 import instance_service_pb2 as pb
from fabric.store.keys import LOCATION, PORT

GROUPS_LIMIT = 16
"""Groups of one port, as many as may be named for it."""


class InstanceGroups:
    """The RPCs, as functions of a request and who asks. Done once for each request_id; they return the global store's revision."""

    def __init__(self, catalogue: Catalogue, desk: Desk) -> None:
        self._catalogue = catalogue
        self._desk = desk

    async def add(self, request: pb.AddInstanceSecurityGroupRequest, principal: Principal) -> int:
        """Put the server's ports into a group. Raises InvalidRequest, NotFound, WrongState where it has none."""

        async def decide(draft: Draft) -> str:
            ports, group = await self._looked_up(draft, request.instance, request.security_group, principal)
            for found in ports:
                port = found.value
                if group.value.id in port.security_group_ids:
                    continue
                if len(port.security_group_ids) >= GROUPS_LIMIT:
                    raise WrongState(
                        f"port {port.id} is in {GROUPS_LIMIT} groups, the most that one may be in"
                    )
                join(draft, [group], port)
                self._write(draft, found, (*port.security_group_ids, group.value.id))
            return group.value.id

        return (await self._desk.make(decide, request, principal)).revision

    async def remove(self, request: pb.RemoveInstanceSecurityGroupRequest, principal: Principal) -> int:
        """Take the server's ports out of a group. Raises InvalidRequest, NotFound, WrongState where none is in it."""

        async def decide(draft: Draft) -> str:
            ports, group = await self._looked_up(draft, request.instance, request.security_group, principal)
            members = [each for each in ports if group.value.id in each.value.security_group_ids]
            if not members:
                raise WrongState(f"no port of the server is in group {group.value.name}")
            for found in members:
                draft.free(membership(group.value.id, found.value))
                rest = tuple(each for each in found.value.security_group_ids if each != group.value.id)
                self._write(draft, found, rest)
            return group.value.id

        return (await self._desk.make(decide, request, principal)).revision

    def _write(self, draft: Draft, found: Found[NetworkPort], group_ids: tuple[str, ...]) -> None:
        port = found.value
        after = replace(port, security_group_ids=group_ids, update_time_ms=self._desk.clock.now_ms())
        draft.write(PORT.at(port.project_id, port.id), after, seen=found.mod_revision)

    async def _looked_up(
        self, draft: Draft, server: str, group: str, principal: Principal
    ) -> tuple[list[Found[NetworkPort]], Found[SecurityGroup]]:
        """The server's ports that are filtered, and the group. The index row is compared: no port comes or goes meanwhile."""
        location = await self._catalogue.location(server, principal)
        key = LOCATION.at(location.instance_id)
        row = seen_at(await self._desk.store.get(key), LOCATION, key)
        if row is None:
            raise NotFound(f"there is no server {server}", kind="server", name=server)
        draft.read(key, row.mod_revision)
        keys = [PORT.at(location.project_id, each) for each in row.value.port_ids]
        seen = await self._desk.store.get(*keys)
        held = [found for each in keys if (found := seen_at(seen, PORT, each)) is not None]
        ports = [each for each in held if each.value.port_security]
        if not ports:
            raise WrongState(
                "the server has no port that security groups filter: it is on its host's own network, or nothing is filtered",
                instance=location.instance_id,
            )
        await ensure_default(self._desk, location.project_id)
        named = await named_by("security_group", self._desk.groups.get(location.project_id, group))
        return ports, named
