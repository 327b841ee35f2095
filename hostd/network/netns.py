"""A network namespace to act in: the one we are in, or a named one (ip-netns(8))."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
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

    @property
    def identity(self) -> str:
        """What tells it from every other namespace of the machine that is there now. Raises OSError."""
        return self._path or f"net:{Path('/proc/self/ns/net').stat().st_ino}"

    def command(self, *command: str) -> tuple[str, ...]:
        """The command, run in there."""
        return ("nsenter", f"--net={self._path}", "--", *command) if self._path else command

    async def run(self, *command: str, stdin: str = "") -> bytes:
        """Run a program in there. Raises ProgramFailed."""
        return await run(*self.command(*command), stdin=stdin.encode())

    async def listen(self, address: str, port: int, *, interface: str) -> socket.socket:
        """A TCP socket listening in there, reachable by one interface only. Raises OSError."""

        def make() -> socket.socket:
            six = ":" in address
            made = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_STREAM)
            try:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
                # What is said here must not travel further than the next hop, as EC2's IMDSv2 has it.
                if six:
                    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 1)
                    made.bind((address, port, 0, socket.if_nametoindex(interface)))
                else:
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
        """Do `work`, which may block, in a thread that is in the namespace, and in nothing else afterwards: it ends with it.

        Cancelled, it waits for the work to end: whoever comes next may count on it.
        """

        def enter_and_work() -> _T:
            if self._path:
                with Path(self._path).open("rb") as namespace:
                    setns(namespace.fileno(), CLONE_NEWNET)
            return work()

        thread = ThreadPoolExecutor(1, thread_name_prefix="netns")
        working = asyncio.get_running_loop().run_in_executor(thread, enter_and_work)
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            await asyncio.wait({working})
            raise
        finally:
            # Waiting for a thread that works would hold up the loop.
            thread.shutdown(wait=working.done())


_FOLDER = Path("/run/netns")


async def add_namespace(name: str) -> bool:
    """Have a namespace of that name (ip-netns(8)); True where it is new. Raises ProgramFailed or OSError."""
    if is_namespace(name):
        return False
    if (_FOLDER / name).exists():
        # The file of one that somebody was making, or that lost its mount.
        await run("ip", "netns", "delete", name)
    await run("ip", "netns", "add", name)
    return True


def is_namespace(name: str) -> bool:
    """Whether there is one: its file is a mount, and so of another device than its folder."""
    try:
        return (_FOLDER / name).stat().st_dev != _FOLDER.stat().st_dev
    except FileNotFoundError:
        return False


def namespaces(prefix: str) -> list[str]:
    """The names that begin so, of namespaces or of what was to become one."""
    if not _FOLDER.is_dir():
        return []
    return sorted(path.name for path in _FOLDER.iterdir() if path.name.startswith(prefix))


async def remove_namespace(name: str) -> None:
    """Take a namespace away, and end what lives in it. There being none is success. Raises ProgramFailed or OSError."""
    if is_namespace(name):
        for pid in (await run("ip", "netns", "pids", name)).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    if (_FOLDER / name).exists():
        await run("ip", "netns", "delete", name)
