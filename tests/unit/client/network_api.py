"""The API's own handlers of networks and what belongs to them, over a store in memory: there is nothing here to be faked."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from fabric.model.network import Network, NetworkPort
from fabric.store.base import Txn
from fabric.store.codec import decode, encode
from fabric.store.keys import NETWORK, NETWORK_NAME, PORT
from fabric.store.memory import MemoryStore
from tests.unit.api.network_world import OWN, NetworkWorld

WHO = replace(OWN, system_admin=True)
"""Somebody who may do everything, so that every verb can be tried."""


class NetworkApi:
    """Answers methods by their names in snake case. It begins with the hosts' own network."""

    def __init__(self) -> None:
        self._store = MemoryStore()
        world = NetworkWorld(self._store)
        handlers = (
            world.networks,
            world.subnets,
            world.ports,
            world.routers,
            world.floating_ips,
            world.groups,
            world.traces,
        )
        self._methods = {
            name: getattr(handler, name) for handler in handlers for name in dir(handler) if name[0] != "_"
        }
        local = Network(id="00000000-0000-4000-8000-00000000000a", name="nebula_net", mtu=1450)
        asyncio.run(self._add(local))

    def has(self, method: str) -> bool:
        return method in self._methods

    def call(self, method: str, request: Any) -> Any:
        """Answer, or raise an error of ours."""
        return asyncio.run(self._methods[method](request, WHO))

    def bind(self, port_id: str, instance_id: str) -> None:
        """Make a port a server's, as the handlers of servers do."""
        asyncio.run(self._bind(PORT.at(WHO.project_id, port_id), instance_id))

    async def _bind(self, key: str, instance_id: str) -> None:
        port = decode(NetworkPort, (await self._store.get(key)).value(key) or b"")
        await self._store.commit(Txn(put={key: encode(replace(port, instance_id=instance_id))}))

    async def _add(self, network: Network) -> None:
        put = {NETWORK.at(network.id): encode(network), NETWORK_NAME.at(network.name): encode(network.id)}
        await self._store.commit(Txn(put=put))
