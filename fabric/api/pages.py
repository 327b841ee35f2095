"""Pages of lists: where the next one begins, as an opaque token bound to the question it belongs to.

A page begins after a key, not at a number: what is added or removed meanwhile neither repeats nor hides a row. A token used with
another question, or made up, is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from fabric.errors import InvalidRequest, Reason

V = TypeVar("V")

DEFAULT_SIZE = 100
_DIGEST_BYTES = 8


class Pages:
    """Cuts sorted rows into pages."""

    def cut(self, rows: Sequence[V], request: Message, *, key: Callable[[V], str]) -> tuple[list[V], str]:
        """This page and the token of the next, empty at the end. `rows` are sorted by `key`. Raises InvalidRequest."""
        question = _question(request)
        after = _read(request.page_token, question)  # type: ignore[attr-defined]  # every List request has them
        size = request.page_size or DEFAULT_SIZE  # type: ignore[attr-defined]  # as above
        rest = [row for row in rows if after is None or key(row) > after]
        page = list(rest[:size])
        token = _write(key(page[-1]), question) if len(rest) > size else ""
        return page, token


def _question(request: Message) -> bytes:
    """What the list is of: everything in the request but which page."""
    asked = type(request)()
    asked.CopyFrom(request)
    asked.ClearField("page_token")
    asked.ClearField("page_size")
    body = request.DESCRIPTOR.full_name.encode() + asked.SerializeToString(deterministic=True)
    return hashlib.sha256(body).digest()[:_DIGEST_BYTES]


def _write(after: str, question: bytes) -> str:
    data = after.encode()
    check = hashlib.sha256(question + data).digest()[:_DIGEST_BYTES]
    return base64.urlsafe_b64encode(question + check + data).decode().rstrip("=")


def _read(token: str, question: bytes) -> str | None:
    if not token:
        return None
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        asked, check, data = (
            raw[:_DIGEST_BYTES],
            raw[_DIGEST_BYTES : 2 * _DIGEST_BYTES],
            raw[2 * _DIGEST_BYTES :],
        )
        if asked == question and check == hashlib.sha256(question + data).digest()[:_DIGEST_BYTES]:
            return data.decode()
    except (binascii.Error, ValueError):
        pass
    raise InvalidRequest(
        "page_token does not belong to this list: begin without one",
        field="page_token",
        reason=Reason.PAGE_TOKEN_INVALID,
    )
