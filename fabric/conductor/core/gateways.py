"""Which host a router leads out from: one, in one cell, and another only when that one is lost.

A host keeps what it has while its session is anything but lost, because moving a gateway ends the connections through it. Who is chosen
has a guest behind the router if there is such a host, and else is whoever a hash of both says, so that routers spread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from fabric.model.binding import RouterGateway
from fabric.model.host import Host, Session, SessionState
from fabric.model.network import PHYSICAL_NETWORK, Network, Router

KEEPING = frozenset({SessionState.JOIN, SessionState.UP, SessionState.DRAIN})
"""Sessions with which a host stays a gateway: its daemon may be restarting, its packets are not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A host of this cell, as it is known; `is_behind`: one of its guests is behind the router."""

    host: Host
    session: Session | None
    is_behind: bool = False


def gateway_of(
    router: Router | None,
    network: Network | None,
    now: RouterGateway | None,
    candidates: Sequence[Candidate],
    *,
    cell: str,
) -> RouterGateway | None:
    """The gateway that the router is to have, as far as this cell has a say: what there is already, or another, or none.

    Args:
        router: None where it is gone.
        network: what it leads to; None where that is not known.
        now: its gateway.
        candidates: this cell's hosts.
        cell: this one.
    """
    if now is not None and now.cell != cell:
        return now
    if router is None or not router.external_network_id:
        return None
    if network is None:
        return now
    physical = network.physical_network or PHYSICAL_NETWORK
    able = [
        each
        for each in candidates
        if each.host.tunnel_address and physical in each.host.physical_networks and each.session is not None
    ]
    for each in able:
        if now is not None and each.host.name == now.host and _state(each) in KEEPING:
            return _gateway(router, each.host)
    # Only a cell with a guest behind the router takes one that nobody has.
    if now is None and not any(each.is_behind for each in candidates):
        return None
    ready = [each for each in able if _state(each) is SessionState.UP]
    if not ready:
        return None
    return _gateway(router, min(ready, key=lambda each: _rank(router, each)).host)


def _state(candidate: Candidate) -> SessionState:
    return SessionState.UNSPECIFIED if candidate.session is None else candidate.session.state


def _rank(router: Router, candidate: Candidate) -> tuple[bool, bytes]:
    both = f"{router.id}/{candidate.host.name}".encode()
    return (not candidate.is_behind, blake2b(both, digest_size=8).digest())


def _gateway(router: Router, host: Host) -> RouterGateway:
    return RouterGateway(
        router_id=router.id, cell=host.cell, host=host.name, tunnel_address=host.tunnel_address
    )
