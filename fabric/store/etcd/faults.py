"""What an error of etcd or gRPC says about the fate of a request. One function over values.

The rule (R12): a write is Ambiguous unless we *know* that nothing was done. So what is listed here is what we know, and
everything else, `UNKNOWN "context deadline exceeded"` and `CANCELLED` with it, is unknown.
"""

from __future__ import annotations

import enum

import grpc

from fabric.errors import Bug, FabricError, NotFound, Reason, TooMuch, Unavailable


class Fate(enum.Enum):
    """What became of a request that was answered by an error."""

    NOTHING_DONE = enum.auto()
    """Turned away before anything was proposed to the cluster. May be sent again, elsewhere too."""
    REFUSED = enum.auto()
    """Turned away for what it is. Sending it again gives the same."""
    HISTORY_GONE = enum.auto()
    """The revision asked for is compacted, or lies ahead of a store that was set back. Nothing was done."""
    UNKNOWN = enum.auto()
    """Applied, not applied, or about to be."""


# These come from etcd's interceptors and admission checks, which run before a proposal is made, or from the local gRPC
# library about a connection that was never there. "leader changed", "request timed out" and "server stopped" also
# come as UNAVAILABLE but after a proposal may have gone out: they are left to UNKNOWN on purpose.
_BEFORE_PROPOSING = (
    (grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader"),
    (grpc.StatusCode.UNAVAILABLE, "etcdserver: not capable"),
    (grpc.StatusCode.UNAVAILABLE, "etcdserver: rpc not supported for learner"),
    (grpc.StatusCode.FAILED_PRECONDITION, "etcdserver: rpc not supported for learner"),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: too many requests"),
    (grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses"),
)

_HISTORY = ("required revision has been compacted", "required revision is a future revision")

_REFUSING = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
    }
)


def fate(code: grpc.StatusCode, details: str) -> Fate:
    """What an error says about the request it answers."""
    for known, words in _BEFORE_PROPOSING:
        if code is known and words in details:
            return Fate.NOTHING_DONE
    if code is grpc.StatusCode.OUT_OF_RANGE and any(words in details for words in _HISTORY):
        return Fate.HISTORY_GONE
    return Fate.REFUSED if code in _REFUSING else Fate.UNKNOWN


def refusal(code: grpc.StatusCode, details: str, store: str) -> FabricError:
    """What a caller is told about a request etcd refused for what it is."""
    if "requested lease not found" in details:
        return NotFound("the lease is gone", store=store)
    if "database space exceeded" in details:
        return Unavailable(
            f"store {store} is full and takes no writes: compact, defragment, then disarm its alarm",
            store=store,
        )
    too_large = (
        "request is too large" in details
        or "too many operations" in details
        or "message larger than max" in details
    )
    if too_large:
        return TooMuch(
            "more than the store takes in one request; split it", reason=Reason.TOO_LARGE, store=store
        )
    if code in {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED}:
        return Unavailable(f"store {store} does not let our certificate do this", store=store, code=code.name)
    return Bug(f"store {store} refuses our request as {code.name}", store=store, code=code.name)
