"""What a router says on its own: that an address has arrived, and to IPv6 guests that it is there.

Nothing here has to run for packets to be routed: guests go on using a router of which they hear nothing for half an hour.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import Iterable, Mapping
from typing import Final

import structlog

from hostd.core.announcements import (
    INTERVAL_S,
    ROUTER_SOLICITATION,
    Advertisement,
    arrival,
    router_advertisement,
)
from hostd.core.router_table import OUTSIDE
from hostd.network.netns import Namespace

_log = structlog.get_logger(__name__)

_AGAIN_S: Final = 1.0
"""After which an arrival is told once more: one frame may be lost."""
_GAP_S: Final = 0.05
"""Those who ask meanwhile are answered together, so that nobody keeps us busy by asking."""
_AT_ONCE: Final = 256
_ALL_NODES: Final = "ff02::1"
_ICMP6_FILTER: Final = 1
_PKTINFO: Final = struct.Struct("=16sI")


class Speaker:
    """One router's. Methods raise OSError; what cannot be said later is logged."""

    def __init__(self, namespace: Namespace, *, interval_s: float = INTERVAL_S) -> None:
        self._namespace = namespace
        self._interval_s = interval_s
        self._said: tuple[Advertisement, ...] = ()
        self._messages: Mapping[int, bytes] = {}
        self._socket: socket.socket | None = None
        self._answering: asyncio.TimerHandle | None = None
        # Of its own: who asks all the time must not keep those in the other networks from hearing that their router is there.
        self._repeating: asyncio.TimerHandle | None = None
        self._arrivals: set[tuple[asyncio.TimerHandle, socket.socket]] = set()

    async def arrived(self, announced: Iterable[tuple[str, str]]) -> None:
        """Tell the external network where these addresses are, now and once more: (MAC, address)."""
        frames = [frame for mac, address in sorted(announced) for frame in arrival(mac, address)]
        if not frames:
            return

        def tell() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
            try:
                made.setblocking(False)
                made.bind((OUTSIDE, 0))
                _send_all(made, frames)
            except OSError:
                made.close()
                raise
            return made

        made = await self._namespace.inside(tell)

        def again() -> None:
            self._arrivals.discard(entry)
            with made:
                _send_all(made, frames)

        entry = (asyncio.get_running_loop().call_later(_AGAIN_S, again), made)
        self._arrivals.add(entry)

    async def advertise(self, said: tuple[Advertisement, ...]) -> None:
        """Say this from now on, and now: to all, and to whoever asks. The interfaces must be there."""
        self._fall_silent()
        self._said = said
        if not said:
            return
        self._messages, made = await self._namespace.inside(self._open)
        self._socket = made
        asyncio.get_running_loop().add_reader(made, self._asked)
        self._say_to_all()

    def close(self) -> None:
        """Say no more."""
        self._fall_silent()
        for timer, made in self._arrivals:
            timer.cancel()
            made.close()
        self._arrivals.clear()

    # -------------------------------------------------------------- advertisements

    def _open(self) -> tuple[Mapping[int, bytes], socket.socket]:
        messages = {socket.if_nametoindex(each.device): router_advertisement(each) for each in self._said}
        made = socket.socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMPV6)
        try:
            made.setblocking(False)
            # A bit for each type that is not let through (RFC 3542, 3.2).
            wanted = [0xFFFFFFFF] * 8
            wanted[ROUTER_SOLICITATION >> 5] &= ~(1 << (ROUTER_SOLICITATION & 31))
            made.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, struct.pack("=8I", *wanted))
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            # Or nobody believes that it comes from the link.
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
        except OSError:
            made.close()
            raise
        return messages, made

    def _asked(self) -> None:
        """Somebody does. Answered in a moment, with all the others."""
        assert self._socket is not None
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        self._answering = loop.call_later(_GAP_S, self._answer)

    def _answer(self) -> None:
        made = self._socket
        assert made is not None
        asking: set[int] = set()
        with contextlib.suppress(BlockingIOError):
            for _ in range(_AT_ONCE):
                _, ancillary, _, _ = made.recvmsg(64, socket.CMSG_SPACE(_PKTINFO.size))
                asking |= {
                    _PKTINFO.unpack(data)[1]
                    for level, kind, data in ancillary
                    if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)
                }
        self._say(made, asking)
        asyncio.get_running_loop().add_reader(made, self._asked)

    def _say_to_all(self) -> None:
        assert self._socket is not None
        self._say(self._socket, self._messages)
        self._repeating = asyncio.get_running_loop().call_later(self._interval_s, self._say_to_all)

    def _say(self, made: socket.socket, devices: Iterable[int]) -> None:
        for index in devices:
            if index in self._messages:
                try:
                    made.sendto(self._messages[index], (_ALL_NODES, 0, 0, index))
                except OSError as failed:
                    _log.warning("router.not_advertised", device=index, why=failed.strerror)

    def _fall_silent(self) -> None:
        for timer in (self._answering, self._repeating):
            if timer is not None:
                timer.cancel()
        self._answering = self._repeating = None
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        self._said, self._messages = (), {}


def _send_all(made: socket.socket, frames: Iterable[bytes]) -> None:
    """Send, unless the interface has just gone: then there is nobody to tell."""
    for frame in frames:
        try:
            made.send(frame)
        except OSError as failed:
            if failed.errno not in {errno.ENETDOWN, errno.ENXIO, errno.ENODEV, errno.ENOBUFS, errno.EAGAIN}:
                raise
            _log.warning("router.not_announced", why=failed.strerror)
