"""The host's network as a port: bridge, NAT, DHCP, metadata and one tap per guest interface.

Idempotent: the whole wanted set is computed and converged to; what carries our mark and is not wanted goes, others are never touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from fabric.model.instance import Guest
from fabric.model.network_plan import NetworkPlan
from hostd.driver.base import Interface


class NetworkError(Exception):
    """A network step failed. `code` is from hostd/core/faults.py."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """A placement that must be wired: its taps, filters, DHCP entries and metadata."""

    guest: Guest
    placement_epoch: int


class Wires(Protocol):
    """The data plane of this host."""

    async def prepare(self) -> None:
        """Have the bridge, NAT, DHCP and metadata servers of the host's guest network. Safe to call at any time."""
        ...

    async def follow(self, plan: NetworkPlan) -> None:
        """Have all that the plan says of tenant networks, and nothing of them that it does not say, but what a wired guest still uses.

        Converges by difference: what is as it should be is not touched. The plan is kept, and holds after a restart of the daemon or of the
        machine until another is followed. Raises NetworkError; then it is to be followed again. One that nothing could be made of is
        refused: the one before holds.
        """
        ...

    async def plug(self, wiring: Wiring) -> tuple[Interface, ...]:
        """Wire every port of the guest: filters first, then the tap, then DHCP and metadata.

        Ports on tenant networks (`vni` not 0) are filtered as the followed plan says; one that has no filter yet is waited for, for some
        seconds. Raises NetworkError: with NETWORK_PLAN_MISSING where no such plan came.
        """
        ...

    async def tell(self, wiring: Wiring) -> None:
        """Let the metadata service speak of a placement's guest as it is now. Wires nothing: who is not wired here stays so.

        Quick. Raises NetworkError.
        """
        ...

    async def unplug(self, instance_id: str, placement_epoch: int) -> None:
        """Take away everything of the instance up to this placement epoch; absent already is success."""
        ...

    async def plugged(self) -> Mapping[str, int]:
        """Which instances have wires here, with their placement epoch."""
        ...

    async def wired(self, instance_id: str) -> frozenset[str]:
        """The MACs of the instance's ports that are wired here, as they were last asked for. Quick. Raises NetworkError."""
        ...

    async def close(self) -> None:
        """Stop what only this process serves (the metadata server); guests' traffic goes on."""
        ...


class Routing(Protocol):
    """The routers of a host's tenant networks: what `Wires` have done by when it comes to them."""

    async def converge(self, plan: NetworkPlan, bridges: Mapping[str, str], *, told: bool) -> None:
        """Have the plan's routers, and no others. One that cannot be made stands in no other's way.

        `bridges` has the bridge of each of its networks, by id; they are there and up. A leg is a port of its network's bridge that learns
        nothing, is flooded no unicast, and has its MAC pinned there (`bridge fdb … master static`). Its name begins with none of the
        bridge's own ports' prefixes, so what is in the bridge beside them is never touched by anybody else. Routers advertise themselves
        (RFC 4861) in their IPv6 subnets; DHCP of both families is the service namespace's, and so are advertisements in networks of which
        no IPv6 subnet has a router.

        Until this process was `told` the plan, and does not only know it from before, no address appears in an external network: while this
        host was away it may have become another's.

        Converges by difference. Raises ProgramFailed, OSError or ValueError.
        """
        ...

    def distrust(self) -> None:
        """Have everything looked at anew the next time."""
        ...

    async def close(self) -> None:
        """Stop what only this process says; packets go on."""
        ...

    async def dismantle(self) -> None:
        """Remove all routers, and what is theirs. Raises ProgramFailed or OSError."""
        ...
