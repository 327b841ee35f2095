"""Durable files: what is visible under its name is whole, and stays so over a power cut."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import structlog

from hostd.core.faults import FaultCode, fault_text
from hostd.images.base import DiskError
from hostd.processes import ProgramFailed

T = TypeVar("T")

_log = structlog.get_logger(__name__)

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def publish(part: Path, target: Path, *, check: Callable[[], None] = lambda: None) -> None:
    """Make a finished file visible: synced, then renamed, then the folder synced. Blocks. `check` may raise to keep it from that."""
    _sync(part)
    check()
    part.replace(target)
    _sync(target.parent)


async def to_its_end(work: Callable[[], T]) -> T:
    """Do what blocks, in a thread. Cancelled, this waits for it: whoever comes next may use the same names, or files."""
    doing = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        await asyncio.wait({doing})
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_error(code: FaultCode, detail: str = "") -> DiskError:
    """A DiskError in the fixed words."""
    return DiskError(code, fault_text(code, detail))


@contextmanager
def disk_faults(step: str, otherwise: FaultCode = FaultCode.DISK_FAILED) -> Iterator[None]:
    """Turn what goes wrong with files and qemu-img into DiskErrors; paths and words of programs go to the log only."""
    try:
        yield
    except OSError as error:
        _log.warning("disk.failed", step=step, words=str(error))
        raise disk_error(FaultCode.DISK_FULL if error.errno in _FULL else otherwise) from error
    except ProgramFailed as error:
        _log.warning("disk.failed", step=step, program=error.program, words=str(error))
        full = "No space left on device" in error.words
        raise disk_error(FaultCode.DISK_FULL if full else otherwise) from error
