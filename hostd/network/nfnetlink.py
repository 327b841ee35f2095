"""Asking the kernel's netfilter over netlink. Blocking: call it in a thread that is in the right network namespace."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from hostd.core.connections import Connection
from hostd.core.ctnetlink import (
    CT_NEW,
    NFT_GETGEN,
    NFT_NEWGEN,
    NLMSG_DONE,
    NLMSG_ERROR,
    connection,
    delete_request,
    dump_request,
    error_of,
    generation,
    message,
    messages,
)

_NETLINK_NETFILTER: Final = 12
_TIMEOUT_S: Final = 20.0
_READ_BYTES: Final = 1 << 17
_AT_ONCE: Final = 64
"""Deletions in one write; the answers to all of them must fit into the socket's buffer."""


def ruleset_generation() -> int:
    """How often this namespace's nftables have been changed, by anybody. Raises OSError."""
    with _socket() as netlink:
        netlink.send(message(NFT_GETGEN, 0, 1))
        for kind, body in _answers(netlink, 1):
            if kind == NFT_NEWGEN:
                return generation(body)
    raise OSError(errno.EPROTO, "the kernel gave no generation of its nftables")


def leads_bridges_through_inet() -> bool:
    """Whether this namespace's bridges can have their packets see the hooks of `inet` (br_netfilter)."""
    return Path("/proc/sys/net/bridge/bridge-nf-call-iptables").exists()


def forget(zones: Iterable[int], choose: Callable[[Iterable[Connection]], Iterator[Connection]]) -> int:
    """Have the connections of `zones` that `choose` picks forgotten, and give their number. Raises OSError."""
    wanted = frozenset(zones)
    with _socket() as netlink:
        chosen: list[Connection] = []
        for zone in sorted(wanted):
            chosen += choose(_connections(netlink, zone))
        left = iter(chosen)
        while batch := list(islice(left, _AT_ONCE)):
            _delete(netlink, batch)
    return len(chosen)


def _connections(netlink: socket.socket, zone: int) -> Iterator[Connection]:
    sequence = 1000 + zone
    netlink.send(dump_request(sequence, zone))
    for kind, body in _answers(netlink, sequence):
        if kind == CT_NEW and (found := connection(body)) is not None and found.zone == zone:
            yield found


def _delete(netlink: socket.socket, batch: list[Connection]) -> None:
    netlink.send(b"".join(delete_request(number, it) for number, it in enumerate(batch)))
    open_requests = set(range(len(batch)))
    while open_requests:
        for kind, sequence, body in _read(netlink):
            if kind == NLMSG_ERROR:
                open_requests.discard(sequence)
                code = error_of(body)
                # It ended by itself meanwhile.
                if code not in {0, errno.ENOENT}:
                    raise OSError(code, f"cannot forget a connection: {os.strerror(code)}")


def _answers(netlink: socket.socket, sequence: int) -> Iterator[tuple[int, bytes]]:
    """The answers to the request, up to the last. A request for one thing ends with it, one for many with NLMSG_DONE."""
    while True:
        for kind, answered, body in _read(netlink):
            if answered != sequence:
                continue
            if kind == NLMSG_ERROR:
                code = error_of(body)
                raise OSError(code, f"netlink: {os.strerror(code)}")
            if kind == NLMSG_DONE:
                return
            yield kind, body


def _read(netlink: socket.socket) -> list[tuple[int, int, bytes]]:
    try:
        return list(messages(netlink.recv(_READ_BYTES)))
    except ValueError as error:
        raise OSError(errno.EPROTO, str(error)) from error


def _socket() -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    try:
        made.settimeout(_TIMEOUT_S)
        made.bind((0, 0))
    except OSError:
        made.close()
        raise
    return made
