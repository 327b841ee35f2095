"""Consoles: a guest's serial port and its screen, while somebody looks at them."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class ConsoleKind(enum.IntEnum):
    """Which console."""

    UNSPECIFIED = 0
    SERIAL = 1
    VNC = 2


class ConsoleEnd(enum.IntEnum):
    """Why a console has ended. Of these a host may say the first three."""

    UNSPECIFIED = 0
    GUEST_OFF = 1
    TAKEN_OVER = 2
    HOST_LOST = 3
    IDLE = 4
    TOO_LONG = 5
    REVOKED = 6
    MOVED = 7


SAID_BY_HOSTS = frozenset({ConsoleEnd.UNSPECIFIED, ConsoleEnd.GUEST_OFF, ConsoleEnd.TAKEN_OVER})
"""What a host may give as the reason; everything else is for its betters to find out."""

CHUNK_BYTES = 64 * 1024
"""No frame of a console carries more: what is under way is bounded by it at every hop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleTicket:
    """What a ticket opens: one console of one placement of a server, once, for the user who asked with that very token.

    The key that it is stored under is the SHA-256 of the secret, which is stored nowhere.
    """

    instance_id: str
    instance_name: str
    cell: str
    host: str
    placement_epoch: int
    kind: ConsoleKind
    user_id: str
    project_id: str
    token_id: str
    expire_time_ms: int
