"""Running other programs from asyncio, with a deadline, and never leaving one behind."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Final

from fabric.deadlines import within


class ProgramFailed(Exception):
    """A program could not be run, took too long or said no. `words` is the end of its stderr, for the log only."""

    def __init__(self, program: str, problem: str, words: str = "") -> None:
        super().__init__(f"{program} {problem}: {words}" if words else f"{program} {problem}")
        self.program = program
        self.problem = problem
        self.words = words


async def run(*command: str, stdin: bytes = b"", timeout_s: float = 30.0) -> bytes:
    """Run a program to its end and give its stdout. Raises ProgramFailed.

    Cancelled or too late, the program is killed and waited for before this returns.
    """
    program = command[0].rpartition("/")[2]
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise ProgramFailed(program, "cannot be run", str(error)) from error
    try:
        async with within(timeout_s):
            output, words = await process.communicate(stdin)
    except TimeoutError:
        raise ProgramFailed(program, f"did not end in {timeout_s:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        raise ProgramFailed(
            program, f"ended with {process.returncode}", words.decode(errors="replace")[-2000:].strip()
        )
    return output


_THREAD_STACK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Confinement:
    """What a program that reads foreign bytes may use: a user without rights, memory, processor time.

    Memory is counted in addresses, so threads must not reserve what they never touch: by default each takes 8 MiB of stack and 64 MiB of
    malloc's arenas, and qemu-img begins up to 64.
    """

    user: int | None
    memory_bytes: int = 1 << 30
    cpu_s: int = 8

    def command(self, *command: str) -> tuple[str, ...]:
        """The command, confined (prlimit(1), setpriv(1)). `user` None keeps the user: for those who are not root."""
        limits = (
            "prlimit",
            f"--as={self.memory_bytes}",
            f"--stack={_THREAD_STACK_BYTES}",
            f"--cpu={self.cpu_s}",
            "--core=0",
            "--",
            "env",
            "MALLOC_ARENA_MAX=1",
        )
        if self.user is None:
            return (*limits, *command)
        drop = (
            "setpriv",
            f"--reuid={self.user}",
            f"--regid={self.user}",
            "--clear-groups",
            "--no-new-privs",
            "--inh-caps=-all",
            "--",
        )
        return (*limits, *drop, *command)
