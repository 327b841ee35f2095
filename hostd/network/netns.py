"""A network namespace to act in: the one we are in, or a named one (ip-netns(8))."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from hostd.processes import run
from hostd.syscalls import CLONE_NEWNET, setns

_T = TypeVar("_T")


class Namespace:
    """Where the host's data plane is. `name` empty is this process's own namespace, as on a production host."""

    def __init__(self, name: str = "") -> None:
        self._path = f"/run/netns/{name}" if name else ""

    def command(self, *command: str) -> tuple[str, ...]:
        """The command, run in there."""
        return ("nsenter", f"--net={self._path}", "--", *command) if self._path else command

    async def run(self, *command: str, stdin: str = "") -> bytes:
        """Run a program in there. Raises ProgramFailed."""
        return await run(*self.command(*command), stdin=stdin.encode())

    async def listen(self, address: str, port: int, *, interface: str) -> socket.socket:
        """A TCP socket listening in there, reachable by one interface only. Raises OSError."""

        def make() -> socket.socket:
            made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
                # What is said here must not travel further than the next hop, as EC2's IMDSv2 has it.
                made.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
                made.bind((address, port))
                made.listen(128)
                made.setblocking(False)
            except OSError:
                made.close()
                raise
            return made

        return await self.inside(make)

    async def set_kernel(self, settings: dict[str, str]) -> None:
        """Write files below /proc/sys, which shows each reader the values of its own namespace. Raises OSError."""

        def write() -> None:
            for name, value in settings.items():
                Path("/proc/sys", name).write_text(value, encoding="ascii")

        await self.inside(write)

    async def inside(self, work: Callable[[], _T]) -> _T:
        """Do `work`, which may block, in a thread that is in the namespace, and in nothing else afterwards: it ends with it."""

        def enter_and_work() -> _T:
            if self._path:
                with Path(self._path).open("rb") as namespace:
                    setns(namespace.fileno(), CLONE_NEWNET)
            return work()

        with ThreadPoolExecutor(1, thread_name_prefix="netns") as thread:
            return await asyncio.get_running_loop().run_in_executor(thread, enter_and_work)
