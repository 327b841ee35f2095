"""etcd's methods by path, bytes for keys, and the channel options that make a dead peer noticed.

The paths are etcd's own; the messages are ours (protos/fabric/etcd/v3/wire.proto says why).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

from fabric.pb.etcd.v3 import wire_pb2 as pb

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)

TARGET_MOD_REVISION = 2
EVENT_DELETE = 1
PROGRESS_WATCH_ID = -1

MANY_BYTES = 256 << 20

# A member that has lost its leader turns the call away at once instead of letting it run into its timeout.
REQUIRE_LEADER = (("hasleader", "true"),)

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # A silent peer is noticed after 15 s. All are needed: keepalive_timeout_ms has no effect by itself in grpcio 1.85.
    # etcd hangs up ("too_many_pings") on pings more often than every 5 s, and on any without a call under way: so a
    # standby without a watch is not pinged, and its death shows when it is first used.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 0),
    # Whether a call is sent again is ours to decide: see faults.py.
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A whole prefix may come back inside one transaction.
    ("grpc.max_receive_message_length", MANY_BYTES),
    ("grpc.max_send_message_length", MANY_BYTES),
    # Two stores on one address stay two connections: closing one must not touch the other.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True)
class Method(Generic[Q, A]):
    """One RPC: where it is called and what comes back."""

    path: str
    request: type[Q]
    answer: type[A]


RANGE = Method("/etcdserverpb.KV/Range", pb.RangeRequest, pb.RangeResponse)
TXN = Method("/etcdserverpb.KV/Txn", pb.TxnRequest, pb.TxnResponse)
COMPACT = Method("/etcdserverpb.KV/Compact", pb.CompactionRequest, pb.CompactionResponse)
LEASE_GRANT = Method("/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantRequest, pb.LeaseGrantResponse)
LEASE_REVOKE = Method("/etcdserverpb.Lease/LeaseRevoke", pb.LeaseRevokeRequest, pb.LeaseRevokeResponse)
STATUS = Method("/etcdserverpb.Maintenance/Status", pb.StatusRequest, pb.StatusResponse)
WATCH = Method("/etcdserverpb.Watch/Watch", pb.WatchRequest, pb.WatchResponse)
LEASE_KEEP_ALIVE = Method(
    "/etcdserverpb.Lease/LeaseKeepAlive", pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse
)


def interval(prefix: bytes) -> tuple[bytes, bytes]:
    """The half-open interval of keys that begin with `prefix`, as etcd's (key, range_end)."""
    if not prefix:
        return b"\0", b"\0"  # etcd's words for "every key"
    end = bytearray(prefix)
    while end and end[-1] == 0xFF:
        end.pop()
    if not end:
        return prefix, b"\0"
    end[-1] += 1
    return prefix, bytes(end)


def version_of(text: str) -> tuple[int, int, int]:
    """`3.5.16` or `3.6.0-rc.1` as numbers that compare."""
    numbers = [int(part) for part in text.partition("-")[0].split(".") if part.isdecimal()]
    major, minor, patch = (*numbers, 0, 0, 0)[:3]
    return major, minor, patch


def progress_answers_are_in_step(version: tuple[int, int, int]) -> bool:
    """Whether an answer to a progress *request* never runs ahead of events still on their way.

    etcd before 3.4.25 and 3.5.8 sent it past the queue of events; taking such a revision for seen would lose them.
    """
    return version >= (3, 5, 8) or (3, 4, 25) <= version < (3, 5, 0)
