"""Mutants of ports of tenant networks that come to servers and go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from fabric.api import instance_ports
from fabric.api.core import devices
from fabric.api.preparing_interfaces import InterfacePreparing
from fabric.conductor.core import flow
from fabric.scheduler import port_ends, reconciler
from hostd.network.followed import FollowedPlan
from tests.sim.mutant import Mutant, Swap


def _kept_for_ever() -> tuple[Swap, ...]:
    """A server that ends keeps its ports."""

    async def none(*_: Any, **__: Any) -> dict[str, Any]:
        return {}

    return ((reconciler, "held_ports", none),)


def _never_let_go() -> tuple[Swap, ...]:
    """What a guest has let go of stays bound."""
    return ((flow, "leave_ports", lambda *_: None),)


def _given_back_anyway() -> tuple[Swap, ...]:
    """A port is given back without a look at whether its server has it."""
    return ((port_ends, "tenant_ports_of", lambda _: ()),)


def _bound_twice() -> tuple[Swap, ...]:
    """A port is bound whoever has it."""
    return ((instance_ports, "check_unbound", lambda _: None),)


def _nothing_promised() -> tuple[Swap, ...]:
    """A port is bound, and who dies then leaves it so."""

    async def careless(*_: Any) -> Any:
        class Nothing:
            revision = 0

            async def call_in(self) -> None:
                return None

        return Nothing()

    return ((InterfacePreparing, "_promise", careless), (devices, "joining", _unpromised(devices.joining)))


def _unpromised(right: Any) -> Any:
    def joining(port: Any, promise: int) -> Any:
        beside = right(port, promise)

        def write(seen: Any, now: Any, now_ms: int, op_id: str) -> Any:
            wrote = beside.write(
                replace(seen, revisions=dict.fromkeys(seen.revisions, promise)), now, now_ms, op_id
            )
            return replace(wrote, unchanged={}, delete=())

        return replace(beside, write=write)

    return joining


def _begun_unfiltered() -> tuple[Swap, ...]:
    """A guest is wired before its host has been told what to filter."""

    async def at_once(*_: Any) -> None:
        return None

    return ((FollowedPlan, "until_it_filters", at_once),)


PORT_MUTANTS: Final = (
    Mutant(
        name="guests_begin_unfiltered",
        without="a guest's ports are plugged in when its host's plan filters them",
        within=60,
        swaps=_begun_unfiltered,
    ),
    Mutant(
        name="ports_kept_for_ever",
        without="a server that ends gives its ports back",
        within=30,
        swaps=_kept_for_ever,
    ),
    Mutant(
        name="ports_never_let_go",
        without="a port that a guest has let go of is given back",
        within=60,
        swaps=_never_let_go,
    ),
    Mutant(
        name="ports_given_back_anyway",
        without="a port that its server has is not given back",
        within=0,
        swaps=_given_back_anyway,
        upheld_by="there is such work only while no record has the port: who plugs it in takes the work away in the same write",
    ),
    Mutant(
        name="ports_bound_twice",
        without="a port is bound to one server",
        within=400,
        swaps=_bound_twice,
    ),
    Mutant(
        name="ports_bound_without_a_promise",
        without="what is to be done should a bind not be finished is written first",
        within=60,
        swaps=_nothing_promised,
    ),
)
