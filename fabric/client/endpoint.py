"""Where an API is, and whether the way there is encrypted."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from fabric.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server's address."""

    host: str
    port: int
    tls: bool = True

    @property
    def target(self) -> str:
        """As gRPC and people write it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read `host:port`, `https://host:port`, or `http://` of this very machine.

        Tokens and passwords travel with every call, so plain text is for loopback addresses only.

        Raises:
            InvalidRequest: it is none of these.
        """
        scheme, _, rest = text.rpartition("://")
        host, colon, port = rest.rstrip("/").rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if scheme not in {"", "http", "https"} or not colon or not host or not _is_port(port):
            raise InvalidRequest(f"{text!r} is not an endpoint: write host:port", field="endpoint")
        if scheme == "http" and not _is_loopback(host):
            raise InvalidRequest(
                f"{text!r} would send the token in plain text: leave http:// out", field="endpoint"
            )
        return cls(host, int(port), tls=scheme != "http")


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < int(text) < 65536


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
