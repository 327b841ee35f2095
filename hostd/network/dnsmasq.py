"""A DHCP server, of the host's bridge or of a tenant's network: a dnsmasq, which outlives hostd, so that guests keep their leases.

A daemon that starts finds the one that runs by its command, word for word; another command is another
server, and is replaced. One that ends is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog

from fabric.deadlines import within
from hostd.core.dhcp import Files, Serving, command, is_in_the_way
from hostd.network.netns import Namespace

_log = structlog.get_logger(__name__)

_RESTART_PAUSE_S: Final = 1.0
_STOP_TIMEOUT_S: Final = 5.0


class Dnsmasq:
    """dnsmasq in a namespace, with its files in `folder`. Methods raise OSError."""

    def __init__(self, namespace: Namespace, folder: Path, *, user: str = "nobody") -> None:
        self._namespace = namespace
        self._folder = folder
        self._user = user
        self._wanted: tuple[str, ...] = ()
        self._command: tuple[str, ...] = ()
        self._holders: dict[str, str] = {}
        """Whose each wanted address is: addresses to MACs."""
        self._watched: int | None = None
        self._pid = 0
        self._restart: asyncio.TimerHandle | None = None

    async def ensure(self, serving: Serving) -> None:
        """Have the server run, and serve this. It is started anew only when that changed; without a range there is none."""
        if not serving.ranges:
            # It would not start; there is nobody to serve either.
            running = self._find()
            self.release()
            if running:
                await self._end(running)
            return
        written = self._write(serving)
        self._wanted = self._namespace.command(*command(serving, self._files(), self._user))
        self._holders = dict(serving.holders)
        running = self._find()
        # What has changed is read by starting anew, which takes some hundredths of a second, and not by a hang-up: on one dnsmasq 2.90
        # has crashed. And an address that a guest of before still holds would be refused to its next one for as long as the old lease
        # lasts; a lease is forgotten only by a server that starts without it.
        if running and (written or not _same(self._command, self._wanted)):
            await self._end(running)
            running = 0
        # No server is there that has read others: whoever comes after us, should we die, goes by the files.
        for path in written:
            _publish(path)
        if not running:
            self._start()
        else:
            self._watch(running)

    async def stop(self) -> None:
        """End the server and remove its files."""
        running = self._find()
        self.release()
        if running:
            await self._end(running)
        for path in (*(Path(each) for each in self._paths()), self._pid_file):
            path.unlink(missing_ok=True)

    def release(self) -> None:
        """Stop looking after the server; it runs on."""
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        if self._watched is not None:
            asyncio.get_running_loop().remove_reader(self._watched)
            os.close(self._watched)
            self._watched = None

    @property
    def _pid_file(self) -> Path:
        return self._folder / "dnsmasq.pid"

    def _paths(self) -> tuple[str, str, str]:
        return (
            str(self._folder / "dnsmasq.hosts"),
            str(self._folder / "dnsmasq.options"),
            str(self._folder / "dnsmasq.leases"),
        )

    def _files(self) -> Files:
        hosts, options, leases = self._paths()
        return Files(hosts=hosts, options=options, leases=leases)

    def _write(self, serving: Serving) -> list[Path]:
        """Write what is to be read beside what is read now; gives the files that differ."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o755)
        if self._user != "root":
            _require_searchable(self._folder, self._user)
        hosts, options, _ = self._paths()
        # Options first: a host line must never be read without them.
        texts = {Path(options): serving.options, Path(hosts): serving.hosts}
        return [path for path, text in texts.items() if _stage(path, text)]

    def _forget_others(self) -> None:
        """Take leases that stand in the way of wanted ones out of the file; no server may run meanwhile."""
        lines = self._lease_lines()
        kept = [line for line in lines if not is_in_the_way(line, self._holders)]
        if len(kept) < len(lines):
            _replace(self._files().leases, "".join(f"{line}\n" for line in kept))
            _log.info("dhcp.leases_forgotten", count=len(lines) - len(kept))

    def _lease_lines(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return Path(self._files().leases).read_text(encoding="utf-8", errors="replace").splitlines()
        return []

    def _find(self) -> int:
        """The server that runs with our files, 0 where there is none; its command is in `_command` then."""
        if self._watched is not None:
            return self._pid
        ours = f"--dhcp-hostsfile={self._files().hosts}"
        for pid in self._candidates():
            words = _command_of(pid)
            if ours in words:
                self._command = words
                return pid
        return 0

    def _candidates(self) -> Iterator[int]:
        """The one that the pid file names, then all: a daemon may have died between the start and the file."""
        with contextlib.suppress(OSError, ValueError):
            yield int(self._pid_file.read_text(encoding="ascii"))
        yield from (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())

    def _start(self) -> None:
        self._forget_others()
        process = subprocess.Popen(
            self._wanted,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        # It is not Popen's to wait for or to warn about: it is watched here, and may outlive us.
        process.returncode = 0
        self._command = self._wanted
        _replace(str(self._pid_file), f"{process.pid}\n")
        _log.info("dhcp.started", pid=process.pid)
        self._watch(process.pid)

    def _watch(self, pid: int) -> None:
        if self._watched is not None and self._pid == pid:
            return
        self.release()
        try:
            self._watched = os.pidfd_open(pid)
        except ProcessLookupError:
            self._schedule_restart()
            return
        self._pid = pid
        asyncio.get_running_loop().add_reader(self._watched, self._ended)

    def _ended(self) -> None:
        _reap(self._pid)
        _log.warning("dhcp.ended", pid=self._pid)
        self.release()
        self._schedule_restart()

    def _schedule_restart(self) -> None:
        self._restart = asyncio.get_running_loop().call_later(_RESTART_PAUSE_S, self._start)

    async def _end(self, pid: int) -> None:
        self.release()
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            if await _gone(pid):
                return


def _require_searchable(folder: Path, user: str) -> None:
    """Raise PermissionError where a server that gave up root could not find its files: it would drop every lease, and say nothing."""
    for above in folder.resolve().parents:
        if not above.stat().st_mode & stat.S_IXOTH:
            raise PermissionError(
                f"{above} must be searchable by {user}, as whom the DHCP server reads {folder}"
            )


async def _gone(pid: int) -> bool:
    """Wait for a process to end, reaping it where it is our child; False where it does not."""
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(watched, ended.set)
    try:
        async with within(_STOP_TIMEOUT_S):
            await ended.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(watched)
        os.close(watched)
    _reap(pid)
    return True


def _reap(pid: int) -> None:
    """Collect the process if it has ended and is our child."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _command_of(pid: int) -> tuple[str, ...]:
    """A process's words. None for one that is gone, and for a moment for one that becomes another program."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ()
    return tuple(word.decode(errors="replace") for word in words.split(b"\0")[:-1])


def _same(running: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    """Whether it is the wanted server, already or still on its way through nsenter, which then makes way for it."""
    inner = wanted[wanted.index("dnsmasq") :]
    return running[-len(inner) :] == inner


def _replace(path: str, text: str) -> None:
    """Write a file whole, readable to a server that gave up root."""
    if _stage(Path(path), text):
        _publish(Path(path))


def _stage(path: Path, text: str) -> bool:
    """Write beside a file what it is to say; False where it says so already."""
    with contextlib.suppress(FileNotFoundError):
        if path.read_text(encoding="ascii") == text:
            return False
    part = _part_of(path)
    part.write_text(text, encoding="ascii")
    part.chmod(0o644)
    return True


def _publish(path: Path) -> None:
    """Let a file say what was written beside it."""
    _part_of(path).replace(path)


def _part_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")
