"""How to reach one etcd cluster, and how patient to be with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdSettings:
    """One cluster as a client sees it.

    The timeouts hang together: a caller hears Unavailable within `call_timeout_s` (2 s at most, failure model F2), so
    one try must leave room for another member, and waiting for a connection must end before that.
    """

    endpoints: tuple[str, ...]
    """Members as `host:port`; one that answers is enough."""
    ca_path: Path | None = None
    """Whom to believe. None means no TLS at all, which only a test on loopback should want."""
    cert_path: Path | None = None
    """Our certificate; its common name is the etcd user, where etcd's authentication is on."""
    key_path: Path | None = None
    prefix: str = ""
    """Put before every key on the way in and taken off on the way out: several stores may share a cluster."""
    try_timeout_s: float = 1.5
    """How long one member may take for one call before another is asked (or a write becomes Ambiguous)."""
    call_timeout_s: float = 1.9
    """How long a call may take with all its tries."""
    connect_wait_s: float = 0.9
    """How long a call waits for any member to be connected before it says Unavailable."""
    probe_s: float = 2.0
    """A watch that hears nothing for so long asks for a sign of life."""
    silence_s: float = 7.0
    """A watch that hears nothing for so long, though it asked, is taken up anew at another member."""
    avoid_s: float = 3.0
    """How long a member that failed is only used when there is no other."""
    page_size: int = 1000
    """Keys per answer when listing."""

    def __post_init__(self) -> None:
        if not self.endpoints:
            raise ValueError("endpoints: name at least one etcd member as host:port")
        for endpoint in self.endpoints:
            host, colon, port = endpoint.rpartition(":")
            if not (host and colon and port.isdecimal()):
                raise ValueError(f"endpoints: {endpoint!r} is not host:port")
        if (self.cert_path is None) != (self.key_path is None):
            raise ValueError("cert_path and key_path go together")
        if self.cert_path is not None and self.ca_path is None:
            raise ValueError("ca_path: a client certificate without TLS protects nothing")
        if not self.connect_wait_s <= self.try_timeout_s <= self.call_timeout_s:
            raise ValueError("timeouts: connect_wait_s <= try_timeout_s <= call_timeout_s must hold")
        if self.silence_s <= self.probe_s:
            raise ValueError("silence_s: must be longer than probe_s, or no answer can come in time")
