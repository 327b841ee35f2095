"""Finding what is free to be taken: addresses, MACs, VNIs, places in a quota. Reading only.

Whoever takes what was found compares its key as absent in the transaction that needs it. So nothing is reserved ahead, nothing can leak,
and a race for the same one is lost by all but one, who look again with another seed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Sequence
from urllib.parse import unquote

from fabric.errors import NoCapacity, QuotaExceeded, Reason
from fabric.model.network import FixedAddress, Subnet
from fabric.model.quota import NetworkLimits
from fabric.network.core import choice, ranges
from fabric.network.core.ranges import Interval
from fabric.network.core.subnets import pools_of, version_of
from fabric.store.base import Store
from fabric.store.keys import ADDRESS, NETWORK_USE, PORT_MAC, VNI


class Holdings:
    """What is held in one store."""

    def __init__(self, store: Store, limits: NetworkLimits) -> None:
        self._store = store
        self._limits = limits

    async def free_address(
        self, subnets: Sequence[Subnet], *, seed: str, besides: Collection[str] = ()
    ) -> FixedAddress:
        """One of the first of these subnets that has any; never one whose key is of `besides`.

        Raises:
            NoCapacity: all of their pools are taken.
            Unavailable: as the store has it.
        """
        for subnet in subnets:
            found = await self._free_in(subnet, seed=seed, besides=besides)
            if found is not None:
                return found
        names = ", ".join(each.name or each.id for each in subnets)
        raise NoCapacity(f"no address is free in {names}", reason=Reason.ADDRESSES_EXHAUSTED)

    async def free_mac(self, network_id: str, *, seed: str, besides: Collection[str] = ()) -> str:
        """A MAC that nobody on the network has; never one whose key is of `besides`. Raises NoCapacity, Unavailable."""
        found = await self._free(
            (choice.MACS,),
            seed=seed,
            besides=besides,
            prefix=PORT_MAC.under(network_id),
            key=lambda number: PORT_MAC.at(network_id, choice.mac_text(number)),
            number=choice.mac_number,
        )
        if found is None:
            raise NoCapacity("the network has no MAC left", reason=Reason.ADDRESSES_EXHAUSTED)
        return choice.mac_text(found)

    async def free_vni(self, *, seed: str) -> int:
        """A VXLAN network identifier that no network has. Raises NoCapacity, Unavailable."""
        found = await self._free(
            (choice.VNIS,), seed=seed, prefix=VNI.under(), key=lambda number: VNI.at(str(number)), number=int
        )
        if found is None:
            raise NoCapacity("there is no VNI left for a network", reason=Reason.ADDRESSES_EXHAUSTED)
        return found

    async def free_slot(self, project_id: str, kind: str, *, seed: str, besides: Collection[str] = ()) -> int:
        """A place among what the project may have of a kind; 0 where it may have any number.

        Args:
            project_id: whose.
            kind: a field of NetworkLimits.
            seed: of who asks.
            besides: keys that are as good as taken.

        Raises:
            QuotaExceeded: it has all that it may have.
            Unavailable: as the store has it.
        """
        limit: int = getattr(self._limits, kind)
        if limit < 0:
            return 0
        places = (Interval(1, limit),) if limit else ()
        prefix = NETWORK_USE.under(project_id, kind)
        found = await self._free(
            places,
            seed=seed,
            besides=besides,
            prefix=prefix,
            key=lambda number: NETWORK_USE.at(project_id, kind, str(number)),
            number=int,
        )
        if found is not None:
            return found
        used = len((await self._store.list(prefix)).entries.keys() | _below(prefix, besides))
        words = kind.replace("_", " ")
        raise QuotaExceeded(
            f"the project may have {limit} {words}: {used} are there, 1 more was asked for",
            resource=kind,
            limit=limit,
            used=used,
            asked=1,
        )

    async def _free_in(self, subnet: Subnet, *, seed: str, besides: Collection[str]) -> FixedAddress | None:
        version = version_of(subnet)
        found = await self._free(
            pools_of(subnet),
            seed=f"{seed}/{subnet.id}",
            besides=besides,
            prefix=ADDRESS.under(subnet.id),
            key=lambda number: ADDRESS.at(subnet.id, ranges.text(number, version)),
            number=lambda word: int(ipaddress.ip_address(word)),
        )
        if found is None:
            return None
        return FixedAddress(subnet_id=subnet.id, address=ranges.text(found, version))

    async def _free(
        self,
        among: Sequence[Interval],
        *,
        seed: str,
        besides: Collection[str] = (),
        prefix: str,
        key: Callable[[int], str],
        number: Callable[[str], int],
    ) -> int | None:
        """One whose key is absent. `number` reads what a key has behind `prefix`."""
        tried = {key(each): each for each in choice.probes(among, seed=seed)}
        seen = await self._store.get(*tried)
        for name, each in tried.items():
            if name not in seen.entries and name not in besides:
                return each
        if len(tried) == ranges.size(among):
            return None
        held = (await self._store.list(prefix)).entries.keys() | _below(prefix, besides)
        return choice.pick(among, (number(unquote(name[len(prefix) :])) for name in held), seed=seed)


def _below(prefix: str, keys: Collection[str]) -> frozenset[str]:
    return frozenset(key for key in keys if key.startswith(prefix))
