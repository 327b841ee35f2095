"""The state folder of a fabric, as a whole: whose it is, before anything in it is believed or removed.

It is named by hand, by somebody with root's rights, and removed with everything in it. So a fabric marks the folder before it writes
there, never takes one that has other things in it, and removes none without the mark.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import msgspec

from fabric.errors import InvalidRequest
from fabric.server.dev.topology import Paths


class _Claim(msgspec.Struct):
    """What a topology of any version says of the folder it is in."""

    state: str


def make(state: Path) -> None:
    """Have a folder for a new fabric. Raises InvalidRequest where something else is in it."""
    require_own(state)
    state.mkdir(mode=0o711, parents=True, exist_ok=True)
    _mark(state)


def require_own(state: Path) -> None:
    """Refuse a folder that is there and is not a fabric's. An empty one may become one. Raises InvalidRequest."""
    if not state.exists() or _is_own(state):
        return
    try:
        stranger = min((it.name for it in state.iterdir()), default=None)
    except OSError as error:
        raise InvalidRequest(f"{state} cannot be looked into: {error.strerror}", field="state") from None
    if stranger is not None:
        raise InvalidRequest(
            f"{state} is not a fabric's, and is left as it is: {stranger!r} is in it."
            " A fabric takes a folder that is new or empty, and is removed with it",
            field="state",
        )


def remove(state: Path) -> None:
    """Remove as much as can be. The mark goes last: a removal that was interrupted can be gone on with.

    Raises:
        InvalidRequest: it is not a fabric's.
    """
    require_own(state)
    if not state.exists():
        return
    mark = Paths(state).mark
    with contextlib.suppress(OSError):
        _mark(state)
        for it in state.iterdir():
            if it == mark:
                continue
            if it.is_dir() and not it.is_symlink():
                shutil.rmtree(it, ignore_errors=True)
            else:
                it.unlink(missing_ok=True)
        if list(state.iterdir()) == [mark]:
            mark.unlink()
            state.rmdir()


def _mark(state: Path) -> None:
    Paths(state).mark.write_text(
        "This folder is removed, with everything in it, by `fabric dev down`.\n", encoding="ascii"
    )


def _is_own(state: Path) -> bool:
    """By its mark, or by a topology that names it: earlier versions made no mark."""
    paths = Paths(state)
    if paths.mark.is_file():
        return True
    try:
        return msgspec.json.decode(paths.topology.read_bytes(), type=_Claim).state == str(state)
    except (OSError, msgspec.MsgspecError):
        return False
