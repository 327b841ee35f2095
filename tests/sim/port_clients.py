"""A client whose servers are on its project's networks, and who plugs ports into them and pulls them out, whatever state those are in."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fabric.errors import NotFound
from fabric.model.identity import Principal
from fabric.pb.compute.v1 import instance_service_pb2 as pb
from fabric.pb.network.v1 import port_service_pb2
from tests.sim.clients import ATTEMPTS, Client

NETWORK = "office"
"""What every project's network is called."""


@dataclass(slots=True)
class PortClient(Client):
    """One user, with a few servers and a few ports on networks that have fewer addresses than are asked for."""

    ports: list[tuple[str, Principal]] = field(default_factory=list)

    async def run(self, is_over: Callable[[], bool]) -> None:
        """Work until it is over."""
        while not is_over():
            await asyncio.sleep(self.random.uniform(0.2, 2.0))
            draw = self.random.random()
            if not self.mine or draw < 0.14:
                await self._create()
            elif draw < 0.20:
                await self._make_port()
            elif draw < 0.26:
                await self._delete_one()
            elif draw < 0.31:
                await self._delete_port()
            elif draw < 0.45:
                await self._act()
            else:
                await self._plug()

    async def _create(self) -> None:
        principal = self.random.choice(self.principals)
        mine = [name for name, whose in self.ports if whose == principal]
        networks = [pb.RequestedNetwork(network=NETWORK)]
        if mine and self.random.random() < 0.4:
            networks.append(pb.RequestedNetwork(port=self.random.choice(mine)))
        if self.random.random() < 0.3:
            networks.append(pb.RequestedNetwork(network="default"))
        name = self._name()
        request = pb.CreateInstanceRequest(
            request_id=name, name=name, flavor="small", image="tiny", networks=networks
        )
        for _ in range(ATTEMPTS):
            twice = self.apis if self.random.random() < 0.2 else [self.random.choice(self.apis)]
            answers = await asyncio.gather(
                *(self._ask(api, "create", "create_instance", request, principal) for api in twice)
            )
            made = [each.instance.id for each in answers if isinstance(each, pb.CreateInstanceResponse)]
            if made:
                self.mine.append((made[0], principal))
                if self.random.random() < 0.1:
                    await self._delete(made[0], principal)
                return
            if any(each is not None for each in answers):
                return
            await asyncio.sleep(0.5)

    async def _delete_one(self) -> None:
        """Mostly one that nothing more is asked of."""
        gone = self.random.choice(self.mine)
        await self._delete(*gone)
        if self.random.random() < 0.8:
            self.mine.remove(gone)

    async def _make_port(self) -> None:
        principal = self.random.choice(self.principals)
        name = self._name()
        port = port_service_pb2.Port(name=name, network=NETWORK)
        request = port_service_pb2.CreatePortRequest(request_id=name, port=port)
        await self._retry("create-port", "create_port", request, principal)
        self.ports.append((name, principal))

    async def _delete_port(self) -> None:
        if self.ports:
            name, principal = self.random.choice(self.ports)
            request = port_service_pb2.DeletePortRequest(request_id=self._name(), port=name)
            await self._retry("delete-port", "delete_port", request, principal)

    async def _plug(self) -> None:
        """Plug a port in, or pull out what is there; now and then what is not."""
        instance_id, principal = self.random.choice(self.mine)
        asked = pb.GetInstanceRequest(instance=instance_id)
        seen = await self._ask(self.random.choice(self.apis), "get", "get_instance", asked, principal)
        has = (
            sorted({each.port_id for each in seen.instance.status.addresses})
            if isinstance(seen, pb.GetInstanceResponse)
            else []
        )
        if isinstance(seen, NotFound) and self.random.random() < 0.8:
            self.mine.remove((instance_id, principal))
            return
        mine = [name for name, whose in self.ports if whose == principal]
        if has and self.random.random() < 0.4:
            await self._do(
                pb.DetachInterfaceRequest(
                    request_id=self._name(), instance=instance_id, port=self.random.choice(has)
                ),
                principal,
            )
        elif mine and self.random.random() < 0.5:
            await self._do(
                pb.AttachInterfaceRequest(
                    request_id=self._name(), instance=instance_id, port=self.random.choice(mine)
                ),
                principal,
            )
        else:
            await self._do(
                pb.AttachInterfaceRequest(request_id=self._name(), instance=instance_id, network=NETWORK),
                principal,
            )

    async def _do(self, request: Any, principal: Principal) -> None:
        words = re.findall("[A-Z][a-z]+", type(request).__name__)[:2]
        handler = "_".join(words).lower()
        await self._retry(handler.replace("_", "-"), handler, request, principal)

    def _name(self) -> str:
        self._asked += 1
        return f"{self.name}-{self._asked}"
