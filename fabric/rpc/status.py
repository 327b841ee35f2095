"""The one table between our errors and gRPC's statuses, in both directions.

A status carries exactly one ErrorInfo (domain `cellfabric`, reason from `fabric.errors.Reason`), and beside it the standard detail that
fits: BadRequest names the field, QuotaFailure the limit, PreconditionFailure the state, RetryInfo how long to wait (google.rpc, AIP-193).
Only errors of ours pass: anything else becomes INTERNAL with an id that finds it in the log, because exception texts carry secrets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from fabric.errors import (
    AlreadyExists,
    Ambiguous,
    Bug,
    Conflict,
    FabricError,
    InvalidRequest,
    NoCapacity,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    Reason,
    TooMuch,
    Unauthenticated,
    Unavailable,
    WrongState,
)

DOMAIN: Final = "cellfabric"
"""`ErrorInfo.domain` of every error of ours."""

DETAILS_KEY: Final = "grpc-status-details-bin"
"""The trailer in which a google.rpc.Status travels."""

RETRY_S: Final = 1.0
"""What to wait when a dependency is away and nobody knows better."""

CODE: Final[Mapping[type[FabricError], grpc.StatusCode]] = MappingProxyType(
    {
        InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
        Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
        PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
        NotFound: grpc.StatusCode.NOT_FOUND,
        AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
        WrongState: grpc.StatusCode.FAILED_PRECONDITION,
        Conflict: grpc.StatusCode.ABORTED,
        QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
        NoCapacity: grpc.StatusCode.RESOURCE_EXHAUSTED,
        TooMuch: grpc.StatusCode.RESOURCE_EXHAUSTED,
        Unavailable: grpc.StatusCode.UNAVAILABLE,
        Ambiguous: grpc.StatusCode.UNAVAILABLE,
        Bug: grpc.StatusCode.INTERNAL,
    }
)
"""What each error is to gRPC."""

_CODE_BY_REASON: Final[Mapping[Reason, grpc.StatusCode]] = MappingProxyType(
    {Reason.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED}
)
"""Reasons that gRPC has a code of its own for."""

_EXHAUSTED: Final[Mapping[Reason, type[FabricError]]] = MappingProxyType(
    {
        Reason.QUOTA_EXCEEDED: QuotaExceeded,
        Reason.NO_VALID_HOST: NoCapacity,
        Reason.ADDRESSES_EXHAUSTED: NoCapacity,
    }
)
"""What has run out, by its reason; any other is too much at once."""

_CODES: Final = MappingProxyType({code.value[0]: code for code in grpc.StatusCode})
_BUILT_IN: Final[Mapping[grpc.StatusCode, tuple[type[FabricError], Reason]]] = MappingProxyType(
    {
        grpc.StatusCode.UNAUTHENTICATED: (Unauthenticated, Reason.CREDENTIALS_INVALID),
        grpc.StatusCode.PERMISSION_DENIED: (PermissionDenied, Reason.PERMISSION_DENIED),
        grpc.StatusCode.NOT_FOUND: (NotFound, Reason.RESOURCE_NOT_FOUND),
        grpc.StatusCode.RESOURCE_EXHAUSTED: (TooMuch, Reason.TOO_LARGE),
        grpc.StatusCode.UNAVAILABLE: (Unavailable, Reason.STORE_UNAVAILABLE),
        grpc.StatusCode.DEADLINE_EXCEEDED: (Unavailable, Reason.DEADLINE_EXCEEDED),
        grpc.StatusCode.CANCELLED: (Unavailable, Reason.DEADLINE_EXCEEDED),
    }
)
"""What gRPC itself says, without a detail of ours, as an error of ours."""


def code_of(error: FabricError) -> grpc.StatusCode:
    """The gRPC code of an error, by its reason where that has one, else by its class."""
    by_reason = _CODE_BY_REASON.get(error.reason)
    if by_reason is not None:
        return by_reason
    return next((CODE[kind] for kind in type(error).__mro__ if kind in CODE), grpc.StatusCode.INTERNAL)


def to_status(error: FabricError, *, error_id: str = "") -> status_pb2.Status:
    """The status that a caller gets. A `Bug` says nothing but its id: what broke is in the log under it."""
    code = code_of(error)
    if code is grpc.StatusCode.INTERNAL:
        return internal(error_id)
    status = status_pb2.Status(code=code.value[0], message=error.message)
    facts = dict(error.facts)
    if isinstance(error, InvalidRequest):
        facts["field"] = error.field
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=facts))
    match error:
        case InvalidRequest():
            bad = error_details_pb2.BadRequest()
            bad.field_violations.add(field=error.field, description=error.message)
            status.details.add().Pack(bad)
        case QuotaExceeded():
            quota = error_details_pb2.QuotaFailure()
            quota.violations.add(subject=facts.get("resource", ""), description=error.message)
            status.details.add().Pack(quota)
        case WrongState():
            precondition = error_details_pb2.PreconditionFailure()
            precondition.violations.add(
                type=error.reason, subject=facts.get("instance", ""), description=error.message
            )
            status.details.add().Pack(precondition)
        case TooMuch(retry_after_s=float() | int() as after_s):
            status.details.add().Pack(_retry(after_s))
        case Unavailable():
            status.details.add().Pack(_retry(RETRY_S))
        case _:
            pass
    return status


def internal(error_id: str) -> status_pb2.Status:
    """The status of something that should not have happened: an id, and no word about what."""
    status = status_pb2.Status(
        code=grpc.StatusCode.INTERNAL.value[0],
        message=f"internal error {error_id}: please report it with this id",
    )
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(reason=Reason.INTERNAL, domain=DOMAIN, metadata={"error_id": error_id})
    )
    return status


def from_status(code: int, message: str, details: bytes = b"") -> FabricError:
    """The error behind a status, for clients: the inverse of `to_status`.

    Args:
        code: gRPC's number of the status code.
        message: the status message.
        details: the serialized google.rpc.Status from the trailer DETAILS_KEY, or nothing where the peer sent none.
    """
    known = _CODES.get(code, grpc.StatusCode.UNKNOWN)
    info, field, after_s = _details(details)
    try:
        reason = Reason(info.reason) if info.domain == DOMAIN else None
    except ValueError:  # a newer server knows reasons that we do not
        reason = None
    facts: dict[str, str | int] = {name: value for name, value in info.metadata.items() if name != "field"}
    if reason is None:
        kind, reason = _BUILT_IN.get(known, (Bug, Reason.INTERNAL))
        return _made(kind, message, reason, facts, after_s)
    if known is grpc.StatusCode.INVALID_ARGUMENT:
        return _with_facts(InvalidRequest(message, field=field, reason=reason), facts)
    kind = _class_of(known, reason)
    return _made(kind, message, reason, facts, after_s)


def error_of(failed: grpc.aio.AioRpcError) -> FabricError:
    """The error behind a call of gRPC's that failed."""
    return from_status(
        failed.code().value[0], failed.details() or "", details_of(failed.trailing_metadata() or ())
    )


def details_of(trailing: Iterable[tuple[str, str | bytes]]) -> bytes:
    """The serialized google.rpc.Status in a call's trailing metadata; nothing where the peer sent none."""
    return next((value for key, value in trailing if key == DETAILS_KEY and isinstance(value, bytes)), b"")


def _class_of(code: grpc.StatusCode, reason: Reason) -> type[FabricError]:
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return _EXHAUSTED.get(reason, TooMuch)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Unavailable
    return next((kind for kind, its in CODE.items() if its is code), Bug)


def _made(
    kind: type[FabricError],
    message: str,
    reason: Reason,
    facts: Mapping[str, str | int],
    after_s: float | None,
) -> FabricError:
    if kind is TooMuch:
        return _with_facts(TooMuch(message, reason=reason, retry_after_s=after_s), facts)
    return _with_facts(kind(message, reason=reason), facts)


def _with_facts(error: FabricError, facts: Mapping[str, str | int]) -> FabricError:
    error.facts.update({name: str(value) for name, value in facts.items()})
    return error


def _details(data: bytes) -> tuple[error_details_pb2.ErrorInfo, str, float | None]:
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    after_s: float | None = None
    try:
        status = status_pb2.Status.FromString(data)
        for detail in status.details:
            detail.Unpack(info)
            detail.Unpack(bad)
            if detail.Unpack(retry):
                after_s = retry.retry_delay.ToNanoseconds() / 1e9
    except DecodeError:  # a proxy on the way may write what it likes there
        return error_details_pb2.ErrorInfo(), "", None
    field = bad.field_violations[0].field if bad.field_violations else ""
    return info, field, after_s


def _retry(after_s: float) -> error_details_pb2.RetryInfo:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromNanoseconds(round(after_s * 1e9))
    return retry
