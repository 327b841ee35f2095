"""What servers and hosts of tests that are not about consoles say when they are asked for one."""

from __future__ import annotations

from fabric.api.placed import Whereabouts
from fabric.errors import Unavailable
from fabric.model.console import ConsoleKind
from fabric.model.network_plan import PlanState
from fabric.model.session import Diagnostics
from fabric.rpc.frames import Line
from fabric.rpc.stream import Stream


class NoGuests:
    """The part of an API server's conductors that is about guests."""

    async def diagnostics(self, where: Whereabouts) -> Diagnostics:
        raise Unavailable("there are no guests in this test")

    async def set_password(self, where: Whereabouts, *, request_id: str, user: str, password: str) -> None:
        raise Unavailable("there are no guests in this test")

    async def open_console(self, where: Whereabouts, kind: ConsoleKind, *, take_over: bool) -> Line:
        raise Unavailable("there are no guests in this test")


class NoConsoles:
    """The part of a conductor that is about guests, and what else few tests ask it."""

    def read_plan_state(self, host: str) -> PlanState | None:
        return None

    async def serve_tunnel(self, host: str, cert_serial: str, stream: Stream) -> None:
        raise Unavailable("there are no consoles in this test")

    async def read_diagnostics(self, host: str, instance_id: str, placement_epoch: int) -> Diagnostics:
        raise Unavailable("there are no guests in this test")

    async def set_password(
        self, host: str, instance_id: str, placement_epoch: int, request_id: str, user: str, password: str
    ) -> None:
        raise Unavailable("there are no guests in this test")

    async def open_console(self, stream: Stream) -> None:
        raise Unavailable("there are no consoles in this test")


class NoTunnels:
    """The part of a host's dialer that is about consoles."""

    async def tunnel(self, endpoint: str) -> Stream:
        raise Unavailable("there are no consoles in this test")
