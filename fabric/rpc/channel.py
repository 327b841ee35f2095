"""How every client of ours connects: one set of options, so that no dead peer goes unnoticed for longer than 15 s."""

from __future__ import annotations

import grpc
import grpc.aio

from fabric.rpc.stream import MAX_MESSAGE_BYTES
from fabric.rpc.tls import TlsFiles, client_credentials

KEEPALIVE_MS = 10_000
PING_TIMEOUT_MS = 5_000

KEEPALIVE: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
    # keepalive_timeout_ms alone leaves a black-holed connection standing for a minute (measured).
    ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
)

CLIENT_OPTIONS: tuple[tuple[str, int], ...] = (
    *KEEPALIVE,
    # Whether a call may be repeated is known to its caller, not to the transport.
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Channels to one address share nothing: one that is stuck must not hold up another.
    ("grpc.use_local_subchannel_pool", 1),
)


def channel(endpoint: str, tls: TlsFiles | None) -> grpc.aio.Channel:
    """A channel to `host:port`; without TLS only for tests on loopback."""
    if tls is None:
        return grpc.aio.insecure_channel(endpoint, options=CLIENT_OPTIONS)
    return grpc.aio.secure_channel(endpoint, client_credentials(tls), options=CLIENT_OPTIONS)
