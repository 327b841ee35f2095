"""Where tenant networks touch hosts: which host a port is on, and which one a router leads out from.

Written by conductors, each about the hosts of its own cell, into the global store, because a network spans cells.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PortBinding:
    """A port of a server that has a host: of its own cell's records the part that hosts of every cell need.

    `tunnel_address` is the host's, so that nobody has to look it up in another cell's store; empty where the host has none.
    """

    port_id: str
    network_id: str
    instance_id: str
    cell: str
    host: str
    tunnel_address: str = ""
    placement_epoch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterGateway:
    """The one host from which a router leads out, for all that has no floating IP."""

    router_id: str
    cell: str
    host: str
    tunnel_address: str
