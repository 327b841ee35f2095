"""A tenant network's service namespace on a host: made, filled, served in, and taken away with all that is in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fabric.clock import Clock
from fabric.model.instance import Guest
from fabric.model.network import METADATA_ADDRESS
from hostd.core.dhcp import Serving
from hostd.core.overlay import SERVICE_INTERFACE
from hostd.core.tenant_services import (
    METADATA_ADDRESS6,
    NAMESPACE_SETTINGS,
    Surroundings,
    surroundings_change,
)
from hostd.network.dnsmasq import Dnsmasq
from hostd.network.metadata import MetadataServer
from hostd.network.netns import Namespace, add_namespace, is_namespace, remove_namespace


class TenantService:
    """One network's. `folder` is its DHCP server's. Methods raise ProgramFailed or OSError."""

    def __init__(self, name: str, folder: Path, clock: Clock, *, dhcp_user: str) -> None:
        self._name = name
        self._folder = folder
        self._namespace = Namespace(name)
        self._dnsmasq = Dnsmasq(self._namespace, folder, user=dhcp_user)
        self._guests: Mapping[str, Guest] = {}
        self._metadata = MetadataServer(
            self._namespace,
            SERVICE_INTERFACE,
            self._guest_at,
            clock,
            addresses=(METADATA_ADDRESS, METADATA_ADDRESS6),
        )
        self._made = False
        self._have: Surroundings | None = None
        self._serving: Serving | None = None

    async def make(self) -> bool:
        """Have the namespace, before its port is made; True where it is a new one."""
        if self._made and is_namespace(self._name):
            return False
        is_new = await add_namespace(self._name)
        if is_new:
            # What served, served in another one.
            await self._metadata.close()
            if self._folder.is_dir():
                await self._dnsmasq.stop()
            self.distrust()
        await self._namespace.set_kernel(dict(NAMESPACE_SETTINGS))
        self._made = True
        return is_new

    async def surround(self, want: Surroundings) -> bool:
        """Have the interface's addresses and neighbours; False where it had. Its port must be there."""
        if want == self._have:
            return False
        have, self._have = self._have, None
        if have is None:
            have = await self._look()
        if lines := surroundings_change(have, want):
            await self._namespace.run("ip", "-batch", "-", stdin="\n".join(lines) + "\n")
        self._have = want
        return True

    async def serve(self, serving: Serving, guests: Mapping[str, Guest]) -> bool:
        """Have DHCP and metadata served; `guests` is by address. False where nothing of DHCP is new."""
        self._guests = guests
        await self._metadata.ensure()
        if serving == self._serving:
            return False
        self._serving = None
        await self._dnsmasq.ensure(serving)
        self._serving = serving
        return True

    def tell(self, guest: Guest) -> None:
        """Let the metadata server speak of a guest as it is now."""
        self._guests = {
            address: guest if known.id == guest.id else known for address, known in self._guests.items()
        }

    def distrust(self) -> None:
        """Have everything looked at anew the next time."""
        self._have = None
        self._serving = None

    async def close(self) -> None:
        """Stop what only this process serves; DHCP goes on."""
        self._dnsmasq.release()
        await self._metadata.close()

    async def remove(self) -> None:
        """Take the namespace away, with what is in it, and its files."""
        await self._metadata.close()
        if self._folder.is_dir():
            await self._dnsmasq.stop()
        await remove_namespace(self._name)
        if self._folder.is_dir():
            shutil.rmtree(self._folder)

    def _guest_at(self, address: str) -> Guest | None:
        return self._guests.get(address)

    async def _look(self) -> Surroundings:
        at = ("show", "dev", SERVICE_INTERFACE)
        addresses: list[dict[str, Any]] = json.loads(
            await self._namespace.run("ip", "-json", "address", *at) or b"[]"
        )
        neighbours: list[dict[str, Any]] = json.loads(
            await self._namespace.run("ip", "-json", "neighbour", *at, "nud", "permanent") or b"[]"
        )
        return Surroundings(
            addresses=frozenset(
                f"{each['local']}/{each['prefixlen']}"
                for link in addresses
                for each in link.get("addr_info", ())
            ),
            neighbours=frozenset((each["dst"], each["lladdr"]) for each in neighbours if "lladdr" in each),
        )
