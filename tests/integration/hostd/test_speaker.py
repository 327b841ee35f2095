"""What routers say on their own, to whoever asks and to whoever does not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from typing import Any

from hostd.core.announcements import Advertisement
from hostd.network.netns import Namespace
from hostd.network.speaker import Speaker

LEGS = (1, 2)
INTERVAL_S = 0.2


class Pair(Namespace):
    """Where the speaker's socket is one end of a pair, and interfaces have numbers only."""

    def __init__(self) -> None:
        super().__init__()
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.theirs = theirs
        theirs.setblocking(False)

    async def inside(self, work: Callable[[], Any]) -> Any:
        return dict.fromkeys(LEGS, b""), self.theirs


class Recording(Speaker):
    """Notes to which interfaces it spoke."""

    def __init__(self, namespace: Namespace) -> None:
        super().__init__(namespace, interval_s=INTERVAL_S)
        self.spoken: list[set[int]] = []

    def _say(self, made: socket.socket, devices: Iterable[int]) -> None:
        self.spoken.append(set(devices))


async def test_who_asks_all_the_time_keeps_no_other_network_from_hearing_its_router() -> None:
    namespace = Pair()
    speaker = Recording(namespace)
    said = (Advertisement(device="leg1", mac="02:00:00:00:00:01", prefix="fd00::/64", mtu=1450),)
    await speaker.advertise(said)
    speaker.spoken.clear()

    try:
        async with asyncio.timeout(20):
            while set(LEGS) not in speaker.spoken:
                namespace.ours.send(b"a solicitation")
                await asyncio.sleep(INTERVAL_S / 4)
                assert len(speaker.spoken) < 40
    finally:
        speaker.close()
        namespace.ours.close()

    assert set() in speaker.spoken
