"""A bridge with bare ends: what is sent into one end comes out of another, or does not. No guest's IP stack says a word of its own.

Whether a packet was dropped is not a matter of waiting. Behind what was sent, a marker is sent from an end that nothing filters, as
an ARP request, which everybody may be sent. All of it is handled by one processor, in order; so when the marker is there, what is
not there never comes.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from itertools import count
from pathlib import Path

from tests.conformance.namespaces import a_namespace, inside, ip
from tests.integration.network.frames import arp

_ETH_P_ALL = 3
_MARKER_MAC = "02:00:00:00:ff:02"
_PATIENCE_S = 10.0


@dataclass
class End:
    """The far side of a tap: whatever a guest could send is sent here, whatever it would be given is read."""

    tap: str
    wire: socket.socket

    def send(self, *frames: bytes) -> None:
        for frame in frames:
            self.wire.send(frame)

    def read_until(self, last: bytes) -> list[bytes]:
        """What arrives before the frame `last`, which must come."""
        frames: list[bytes] = []
        while (frame := self._next(_PATIENCE_S)) != last:
            if frame is None:
                raise AssertionError(f"{self.tap} was not given the marker")
            frames.append(frame)
        return frames

    def read(self) -> list[bytes]:
        """What has arrived, for an end that no marker reaches."""
        frames: list[bytes] = []
        while (frame := self._next(0)) is not None:
            frames.append(frame)
        return frames

    def _next(self, patience_s: float) -> bytes | None:
        while select.select([self.wire], [], [], patience_s)[0]:
            frame, where = self.wire.recvfrom(65536)
            if where[2] != socket.PACKET_OUTGOING:
                return frame
        return None


@dataclass
class Lan:
    """A host with bridges, each with an end for markers, and the ends that tests are about."""

    host: str
    ends_in: str
    ends: dict[str, End] = field(default_factory=dict)
    _bridges: dict[str, tuple[End, list[End]]] = field(default_factory=dict)
    _markers: Iterator[int] = field(default_factory=count)

    def add_bridge(self, bridge: str) -> None:
        ip(
            "link",
            "add",
            bridge,
            "type",
            "bridge",
            "forward_delay",
            "0",
            "mcast_snooping",
            "0",
            netns=self.host,
        )
        ip("link", "set", bridge, "up", netns=self.host)
        marker = self._end(f"m{len(self._bridges)}", bridge)
        self._bridges[bridge] = (marker, [])
        self.up(marker.tap)

    def add_end(self, tap: str, bridge: str) -> End:
        """A tap of the bridge, down: `up` it when it is filtered."""
        end = self.ends[tap] = self._end(tap, bridge)
        self._bridges[bridge][1].append(end)
        return end

    def _end(self, tap: str, bridge: str) -> End:
        far = f"e-{tap}"[:15]
        ip("link", "add", tap, "type", "veth", "peer", "name", far, "netns", self.ends_in, netns=self.host)
        ip("link", "set", tap, "master", bridge, netns=self.host)

        def listen() -> socket.socket:
            # Neither asks nor answers by itself.
            _quiet(far)
            ip("link", "set", far, "arp", "off", "up", netns=self.ends_in)
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            wire.bind((far, _ETH_P_ALL))
            return wire

        return End(tap, inside(self.ends_in, listen))

    def up(self, *taps: str) -> None:
        """Up, and forwarding: the bridge hears of it from the kernel a moment later."""
        for tap in taps:
            ip("link", "set", tap, "up", netns=self.host)
        waiting = time.monotonic() + _PATIENCE_S
        for tap in taps:
            while "state forwarding" not in ip("-d", "link", "show", "dev", tap, netns=self.host):
                assert time.monotonic() < waiting, f"{tap} does not forward"
                time.sleep(0.01)

    def close(self) -> None:
        for marker, ends in self._bridges.values():
            for end in (marker, *ends):
                end.wire.close()

    def settle(self, *, deaf: tuple[str, ...] = ()) -> dict[str, list[bytes]]:
        """What each end was given since the last time: all that was sent before is through, or dropped.

        `deaf` are given no markers; the others' go the same way, so what came is there with them.
        """
        given: dict[str, list[bytes]] = {}
        for marker, ends in self._bridges.values():
            number = str(IPv4Address(next(self._markers)))
            last = arp(_MARKER_MAC, _MARKER_MAC, number, number)
            marker.send(last)
            given |= {end.tap: end.read_until(last) for end in ends if end.tap not in deaf}
            given |= {end.tap: end.read() for end in ends if end.tap in deaf}
        return given


def _quiet(interface: str) -> None:
    Path(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6").write_text("1", encoding="ascii")


@contextlib.contextmanager
def a_lan() -> Iterator[Lan]:
    before = os.sched_getaffinity(0)
    with a_namespace("fw-host") as host, a_namespace("fw-ends") as ends_in:
        lan = Lan(host, ends_in)
        inside(host, lambda: _quiet("default"))
        os.sched_setaffinity(0, {min(before)})
        try:
            yield lan
        finally:
            os.sched_setaffinity(0, before)
            lan.close()
