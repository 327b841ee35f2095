"""A client that boots servers from volumes, plugs volumes and interfaces into them, and pulls them out, whatever state those are in."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fabric.model.identity import Principal
from fabric.pb.compute.v1 import instance_service_pb2 as pb
from fabric.pb.volume.v1 import volume_service_pb2
from tests.sim.clients import Client


@dataclass(slots=True)
class VolumeClient(Client):
    """One user, with a few servers and a few volumes. One who `boots` has others boot from them, one after the other."""

    boots: bool = False
    volumes: list[tuple[str, Principal]] = field(default_factory=list)

    async def run(self, is_over: Callable[[], bool]) -> None:
        """Work until it is over."""
        while not is_over():
            await asyncio.sleep(self.random.uniform(0.2, 2.0))
            draw = self.random.random()
            turn_over, act = (0.6, 0.8) if self.boots else (0.25, 0.5)
            if self.mine and self.random.random() < 0.25:
                await self._put_away()
            elif len(self.volumes) < 2 or draw < 0.06:
                await self._make_volume()
            elif not self.mine or draw < turn_over:
                await self._turn_over()
            elif draw < act:
                await self._act()
            elif draw < act + 0.04:
                await self._delete_volume()
            else:
                await self._plug()

    async def _turn_over(self) -> None:
        """End the oldest servers where there are a few, so that volumes come free, and make another; or two, which may want one volume."""
        while len(self.mine) > (1 if self.boots else 2):
            await self._delete(*self.mine.pop(0))
        is_race = self.boots and self.random.random() < 0.4
        await asyncio.gather(*(self._create() for _ in range(2 if is_race else 1)))

    def _boots_from(self, principal: Principal) -> dict[str, Any]:
        """From one of its volumes, whether another server has it or not; from a new one; or from the image."""
        named = [name for name, whose in self.volumes if whose == principal]
        draw = self.random.random()
        ends = self.random.random() < 0.3
        if named and draw < 0.75:
            return {"volume": self.random.choice(named), "delete_volume_on_termination": ends}
        if draw < 0.85:
            return {"image": "tiny", "boot_volume_gib": 1, "delete_volume_on_termination": ends}
        return {"image": "tiny"}

    def _has_made(self, instance: pb.Instance, principal: Principal) -> None:
        """What it boots from is known by its id from now on, also where it was made for it."""
        known = {name for name, _ in self.volumes}
        self.volumes += [
            (each.volume_id, principal)
            for each in instance.status.volumes
            if each.is_root and each.volume_id not in known
        ]

    async def _make_volume(self) -> None:
        principal = self.random.choice(self.principals)
        name = self._name()
        volume = volume_service_pb2.Volume(
            name=name,
            size_gib=self.random.choice([1, 2]),
            image=self.random.choice(["", "tiny", "tiny"]),
            directory=self.random.choice(["", "pool"]),
        )
        request = volume_service_pb2.CreateVolumeRequest(request_id=name, volume=volume)
        await self._retry("create-volume", "create_volume", request, principal)
        self.volumes.append((name, principal))

    async def _put_away(self) -> None:
        """Shelve a server with its volumes, for a while; then bring it back, or end it where it is, or leave it."""
        instance_id, principal = self.random.choice(self.mine)
        await self._do(pb.ShelveInstanceRequest(request_id=self._name(), instance=instance_id), principal)
        await asyncio.sleep(self.random.uniform(0.5, 6.0))
        draw = self.random.random()
        if draw < 0.6:
            await self._do(
                pb.UnshelveInstanceRequest(request_id=self._name(), instance=instance_id), principal
            )
        elif draw < 0.8:
            self.mine.remove((instance_id, principal))
            await self._delete(instance_id, principal)

    async def _delete_volume(self) -> None:
        name, principal = self.volumes.pop(self.random.randrange(len(self.volumes)))
        request = volume_service_pb2.DeleteVolumeRequest(request_id=self._name(), volume=name)
        await self._retry("delete-volume", "delete_volume", request, principal)

    async def _plug(self) -> None:
        """Plug something in, or pull out what is there; now and then what is not."""
        instance_id, principal = self.random.choice(self.mine)
        named = [name for name, whose in self.volumes if whose == principal]
        has, added = await self._devices(instance_id, principal)
        if self.random.random() < 0.1:
            has = named
        if has and self.random.random() < 0.4:
            await self._do(
                pb.DetachVolumeRequest(
                    request_id=self._name(), instance=instance_id, volume=self.random.choice(has)
                ),
                principal,
            )
        elif added and self.random.random() < 0.4:
            await self._do(
                pb.DetachInterfaceRequest(
                    request_id=self._name(), instance=instance_id, port=self.random.choice(added)
                ),
                principal,
            )
        elif named and self.random.random() < 0.7:
            await self._do(
                pb.AttachVolumeRequest(
                    request_id=self._name(),
                    instance=instance_id,
                    volume=self.random.choice(named),
                    delete_on_termination=self.random.random() < 0.3,
                ),
                principal,
            )
        else:
            await self._do(
                pb.AttachInterfaceRequest(request_id=self._name(), instance=instance_id, network="default"),
                principal,
            )

    async def _devices(self, instance_id: str, principal: Principal) -> tuple[list[str], list[str]]:
        """The volumes of a server and its added ports, as they are seen."""
        asked = pb.GetInstanceRequest(instance=instance_id)
        seen = await self._ask(self.random.choice(self.apis), "get", "get_instance", asked, principal)
        if not isinstance(seen, pb.GetInstanceResponse):
            return [], []
        status = seen.instance.status
        return [each.volume_id for each in status.volumes], [each.port_id for each in status.addresses[1:]]

    async def _do(self, request: Any, principal: Principal) -> None:
        words = re.findall("[A-Z][a-z]+", type(request).__name__)[:2]
        handler = "_".join(words).lower()
        await self._retry(handler.replace("_", "-"), handler, request, principal)

    def _name(self) -> str:
        self._asked += 1
        return f"{self.name}-{self._asked}"
