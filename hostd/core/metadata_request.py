"""The metadata service's decisions: who may have what, from a request's first lines. Pure.

Who asks is proven by the way the answer takes (a pinned address behind a filtered tap), never by what the request says. A request
that claims to come through a proxy is refused, as EC2's IMDSv2 does: it was not the guest's own software that wrote it.
"""

from __future__ import annotations

import hashlib
import hmac
import http
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

from fabric.model.instance import Guest
from hostd.core.metadata import TOKEN_PATH, answer

MAX_HEAD_BYTES: Final = 8192
_MAX_TOKEN_S: Final = 21_600
_TTL_HEADER: Final = "x-aws-ec2-metadata-token-ttl-seconds"
_TOKEN_HEADER: Final = "x-aws-ec2-metadata-token"  # noqa: S105 - a header's name
_PROXY_HEADERS: Final = frozenset({"x-forwarded-for", "forwarded", "x-forwarded-host", "via"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The head of an HTTP/1 request. Header names are lower case."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What goes back. `body` may hold secrets: it is not shown."""

    status: http.HTTPStatus
    body: bytes = field(default=b"", repr=False)
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()

    def encode(self, *, head_only: bool = False) -> bytes:
        """The bytes on the wire; the connection closes after them."""
        lines = [
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(self.body)}",
            "Connection: close",
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        return head if head_only else head + self.body


def parse(head: bytes) -> Request | None:
    """Read a head that ends with an empty line; None for what is not HTTP/1."""
    try:
        first, *rest = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        method, target, version = first.split(" ")
        if version not in {"HTTP/1.0", "HTTP/1.1"} or not target.startswith("/"):
            return None
        headers = {}
        for line in rest:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                return None
            headers[name.lower()] = value.strip()
    except ValueError:
        return None
    return Request(method=method, path=unquote(target.partition("?")[0]), headers=headers)


def respond(
    request: Request | None, guest: Guest | None, *, now_s: float, secret: bytes, random_seed: bytes
) -> Response:
    """The answer to the guest that asks; `guest` None where the asker is nobody's. `secret` signs tokens."""
    if request is None:
        return Response(status=http.HTTPStatus.BAD_REQUEST)
    if _PROXY_HEADERS & request.headers.keys():
        return Response(status=http.HTTPStatus.FORBIDDEN)
    if guest is None:
        return Response(status=http.HTTPStatus.NOT_FOUND)
    if request.method == "PUT" and request.path == TOKEN_PATH:
        return _issue_token(request, guest, now_s=now_s, secret=secret)
    if request.method not in {"GET", "HEAD"}:
        return Response(status=http.HTTPStatus.METHOD_NOT_ALLOWED, headers=(("Allow", "GET, HEAD"),))
    token = request.headers.get(_TOKEN_HEADER)
    if token is not None and not _is_valid(token, guest, now_s=now_s, secret=secret):
        return Response(status=http.HTTPStatus.UNAUTHORIZED)
    body = answer(guest, request.path, random_seed=random_seed)
    if body is None:
        return Response(status=http.HTTPStatus.NOT_FOUND)
    kind = "application/json" if request.path.endswith(".json") else "text/plain; charset=utf-8"
    return Response(status=http.HTTPStatus.OK, body=body, content_type=kind)


def _issue_token(request: Request, guest: Guest, *, now_s: float, secret: bytes) -> Response:
    """A token as IMDSv2 gives them: for clients that insist. Signed, so that nothing is kept."""
    text = request.headers.get(_TTL_HEADER, "")
    # Its length first: a guest may send thousands of digits, which are no number to Python either.
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and 1 <= int(text) <= _MAX_TOKEN_S):
        return Response(status=http.HTTPStatus.BAD_REQUEST)
    expiry = int(now_s) + int(text)
    token = f"{expiry}.{_sign(expiry, guest, secret)}"
    return Response(status=http.HTTPStatus.OK, body=token.encode(), headers=((_TTL_HEADER, text),))


def _is_valid(token: str, guest: Guest, *, now_s: float, secret: bytes) -> bool:
    expiry, _, signature = token.partition(".")
    if not expiry.isascii() or not expiry.isdigit() or len(expiry) > 15 or int(expiry) < now_s:
        return False
    return hmac.compare_digest(signature.encode(), _sign(int(expiry), guest, secret).encode())


def _sign(expiry: int, guest: Guest, secret: bytes) -> str:
    return hmac.new(secret, f"{guest.id}.{expiry}".encode(), hashlib.sha256).hexdigest()
