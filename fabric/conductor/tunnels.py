"""Consoles of one host's guests: asked for over its session, dialled by it, and handed to whoever asked.

A tunnel belongs to the session that it was asked over. It is known by the host's certificate and the number of the question, so a host can
only ever bring a console of its own guests, and only one that was asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from fabric.conductor.questions import Questions
from fabric.errors import InvalidRequest, TooMuch
from fabric.model.console import SAID_BY_HOSTS, ConsoleEnd, ConsoleKind
from fabric.model.session import TunnelRefused, TunnelWanted
from fabric.rpc.frames import Speech
from fabric.rpc.stream import StreamClosed

TUNNELS_LIMIT: Final = 64
"""Consoles that one host may have open at once."""


class Tunnel:
    """One console on its way through here: `speech` is the host's end, until `over` is set."""

    def __init__(self, speech: Speech, strike: Callable[[str], None]) -> None:
        self.over = asyncio.Event()
        self._speech = speech
        self._strike = strike

    async def send(self, data: bytes) -> None:
        await self._speech.send(data)

    async def receive(self) -> bytes | ConsoleEnd:
        """What the host says. It may give some reasons for the end, and not others. A host that hangs up, or says what no console says,
        is lost.
        """
        try:
            said = await self._speech.receive()
        except StreamClosed:
            return ConsoleEnd.HOST_LOST
        except InvalidRequest as malformed:
            self._strike(f"tunnel {malformed.message}")
            return ConsoleEnd.HOST_LOST
        return said if isinstance(said, bytes) or said in SAID_BY_HOSTS else ConsoleEnd.UNSPECIFIED

    async def end(self, why: ConsoleEnd) -> None:
        await self._speech.end(why)


class Tunnels:
    """The tunnels of one session."""

    def __init__(self, questions: Questions, strike: Callable[[str], None]) -> None:
        self._questions = questions
        self._strike = strike
        self._expected: dict[int, asyncio.Future[Tunnel]] = {}
        self._open: set[Tunnel] = set()
        self.lost = asyncio.Event()
        """Set when the session is over: every console that came through it is."""

    async def open(
        self, instance_id: str, placement_epoch: int, kind: ConsoleKind, *, take_over: bool
    ) -> Tunnel:
        """Have the host dial. Whoever gets the tunnel sets `over` at its end.

        Raises:
            TooMuch: too many consoles of this host are open.
            WrongState: somebody else has it, or the guest is off.
            Unavailable: the host does not come, or cannot.
        """
        if len(self._open) + len(self._expected) >= TUNNELS_LIMIT:
            raise TooMuch("too many consoles of this host are open", retry_after_s=5.0, limit=TUNNELS_LIMIT)
        wanted = TunnelWanted(
            question=self._questions.new(),
            instance_id=instance_id,
            placement_epoch=placement_epoch,
            kind=kind,
            take_over=take_over,
        )
        coming: asyncio.Future[Tunnel] = asyncio.get_running_loop().create_future()
        self._expected[wanted.question] = coming
        # A refusal is an error, so an answer never comes: what comes instead is the tunnel.
        refusing = asyncio.ensure_future(self._questions.answer(wanted, TunnelRefused))
        try:
            try:
                either: set[asyncio.Future[Any]] = {coming, refusing}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    refusing.result()
            finally:
                self._expected.pop(wanted.question, None)
                refusing.cancel()
                await asyncio.gather(refusing, return_exceptions=True)
        except BaseException:
            if coming.done():
                # It has come to somebody who has just gone: nobody else will ever say that it is over.
                coming.result().over.set()
            raise
        return coming.result()

    async def serve(self, question: int, speech: Speech) -> bool:
        """A tunnel has come: hold it until whoever asked for it is done. False where nobody did, or waits any more."""
        coming = self._expected.pop(question, None)
        if coming is None or coming.done():
            return False
        tunnel = Tunnel(speech, self._strike)
        self._open.add(tunnel)
        coming.set_result(tunnel)
        try:
            await tunnel.over.wait()
        finally:
            self._open.discard(tunnel)
        return True

    async def until_lost(self) -> ConsoleEnd:
        """Wait for the end of the session."""
        await self.lost.wait()
        return ConsoleEnd.HOST_LOST
