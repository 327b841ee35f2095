"""Programs that hostd runs: their failures are said, their deadlines kept, and none is left."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid

import pytest

from hostd.processes import Confinement, ProgramFailed, run
from tests.conformance.private_libvirt import processes_mentioning

FOREVER = (sys.executable, "-c", "import time; time.sleep(600)")


async def test_output_is_returned_and_input_given() -> None:
    assert await run("cat", stdin=b"hello") == b"hello"


async def test_a_failure_names_the_program_and_keeps_its_words() -> None:
    with pytest.raises(ProgramFailed) as failed:
        await run("sh", "-c", "echo no such thing >&2; exit 3")

    assert (failed.value.program, failed.value.problem, failed.value.words) == (
        "sh",
        "ended with 3",
        "no such thing",
    )


async def test_a_program_that_is_not_there_is_said() -> None:
    with pytest.raises(ProgramFailed, match="cannot be run"):
        await run("/nonexistent/program")


async def test_one_that_takes_too_long_is_ended() -> None:
    word = str(uuid.uuid4())
    with pytest.raises(ProgramFailed, match="did not end"):
        await run(*FOREVER, word, timeout_s=0.2)

    assert processes_mentioning(word) == []


async def test_a_cancelled_call_leaves_no_program() -> None:
    word = str(uuid.uuid4())
    task = asyncio.create_task(run(*FOREVER, word))
    async with asyncio.timeout(10):
        while not processes_mentioning(word):
            await asyncio.sleep(0.02)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert processes_mentioning(word) == []


@pytest.mark.owns_machine
async def test_a_confined_program_has_no_rights_and_little_room() -> None:
    confined = Confinement(1_900_000_000, memory_bytes=1 << 29)

    said = (await run(*confined.command("sh", "-c", "id -u; id -G; ulimit -v; ulimit -t"))).decode().split()
    caps = (
        (await run(*confined.command("grep", "-E", "^(CapEff|NoNewPrivs)", "/proc/self/status")))
        .decode()
        .split()
    )

    assert said == ["1900000000", "1900000000", str((1 << 29) // 1024), "8"]
    assert caps == ["CapEff:", "0" * 16, "NoNewPrivs:", "1"]
    with pytest.raises(ProgramFailed):
        await run(*confined.command("cat", "/etc/shadow"))
    assert os.access("/etc/shadow", os.R_OK)


MANY_THREADS = """\
import threading
everybody = threading.Barrier(64)
threads = [threading.Thread(target=everybody.wait, args=(60,)) for _ in range(64)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print("all")
"""


async def test_a_confined_program_has_room_for_its_threads() -> None:
    """qemu-img begins a thread for each request under way, and was aborted when the default stacks and arenas of those filled its 1 GiB.

    About one in twelve conversions of a compressed image ended so, and a host then called a good image rejected.
    """
    confined = Confinement(None, memory_bytes=384 << 20).command(sys.executable, "-c", MANY_THREADS)

    assert await run(*confined) == b"all\n"
