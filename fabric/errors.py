"""Every error a caller can meet: one class per thing the caller can do about it.

    FabricError
    ├─ InvalidRequest     change the request; names the field
    ├─ Unauthenticated    say who you are, or again
    ├─ PermissionDenied   you may not; ask somebody who may
    ├─ NotFound           it is not there, or not yours to see
    ├─ AlreadyExists      the name is taken
    ├─ WrongState         the lifecycle forbids it now
    ├─ Conflict           somebody changed it first; read again and retry
    ├─ QuotaExceeded      the project's limit; ask for less, or for more quota
    ├─ NoCapacity         no host fits, no address is free; ask for less, or later
    ├─ TooMuch            too large or too often; slow down or split
    ├─ Unavailable        a dependency is away; retry as is
    │  └─ Ambiguous       a write whose fate is unknown; re-read before anything else (R12)
    └─ Bug                we broke our own rule; never retried, always reported

`fabric/rpc/status.py` maps these to gRPC statuses, in one table. Messages are for people and never carry a secret.
"""

from __future__ import annotations

import enum


class Reason(enum.StrEnum):
    """The closed list of machine-readable reasons (`ErrorInfo.reason`). Append only: clients branch on these."""

    FIELD_INVALID = "FIELD_INVALID"
    MESSAGE_MALFORMED = "MESSAGE_MALFORMED"
    IMAGE_REJECTED = "IMAGE_REJECTED"
    PAGE_TOKEN_INVALID = "PAGE_TOKEN_INVALID"  # noqa: S105 - a reason code, not a credential
    REQUEST_ID_MISMATCH = "REQUEST_ID_MISMATCH"
    CREDENTIALS_MISSING = "CREDENTIALS_MISSING"
    CREDENTIALS_INVALID = "CREDENTIALS_INVALID"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    RESOURCE_NOT_FOUND = "RESOURCE_NOT_FOUND"
    NAME_TAKEN = "NAME_TAKEN"
    NAME_AMBIGUOUS = "NAME_AMBIGUOUS"
    RESOURCE_IN_USE = "RESOURCE_IN_USE"
    WRONG_STATE = "WRONG_STATE"
    CHANGED_MEANWHILE = "CHANGED_MEANWHILE"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    NO_VALID_HOST = "NO_VALID_HOST"
    TOO_LARGE = "TOO_LARGE"
    RATE_LIMITED = "RATE_LIMITED"
    CELL_UNAVAILABLE = "CELL_UNAVAILABLE"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    HOST_UNAVAILABLE = "HOST_UNAVAILABLE"
    WATCH_COMPACTED = "WATCH_COMPACTED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    INTERNAL = "INTERNAL"
    ADDRESSES_EXHAUSTED = "ADDRESSES_EXHAUSTED"
    WATCH_TOO_SLOW = "WATCH_TOO_SLOW"
    STARTING = "STARTING"


class FabricError(Exception):
    """The root. `reason` is for machines, the message for people, `facts` for logs and ErrorInfo metadata."""

    reason: Reason = Reason.INTERNAL

    def __init__(self, message: str, *, reason: Reason | None = None, **facts: str | int) -> None:
        super().__init__(message)
        self.message = message
        if reason is not None:
            self.reason = reason
        self.facts = {name: str(value) for name, value in facts.items()}


class InvalidRequest(FabricError):
    """The request can never succeed as it is. `field` is the path of the field at fault, dotted as in the proto."""

    reason = Reason.FIELD_INVALID

    def __init__(self, message: str, *, field: str, reason: Reason | None = None, **facts: str | int) -> None:
        super().__init__(message, reason=reason, **facts)
        self.field = field


class Unauthenticated(FabricError):
    """No credentials, or none that are valid now. Says the same for unknown, expired and revoked."""

    reason = Reason.CREDENTIALS_INVALID


class PermissionDenied(FabricError):
    """A known principal without the role the method needs. `facts["needed"]` is a project's role, `system`, or `root`."""

    reason = Reason.PERMISSION_DENIED


class NotFound(FabricError):
    """Absent, or not the caller's to see: both give the same words."""

    reason = Reason.RESOURCE_NOT_FOUND


class AlreadyExists(FabricError):
    """Something of that name is there already."""

    reason = Reason.NAME_TAKEN


class WrongState(FabricError):
    """The lifecycle table forbids the action now; the message says what would be allowed."""

    reason = Reason.WRONG_STATE


class Conflict(FabricError):
    """Somebody else's write came first, or a request_id was used again with another body."""

    reason = Reason.CHANGED_MEANWHILE


class QuotaExceeded(FabricError):
    """The project's limit would be passed. Facts: resource, limit, used, asked."""

    reason = Reason.QUOTA_EXCEEDED


class NoCapacity(FabricError):
    """No host passes every filter: the message is the tally of reasons. Or no address is free."""

    reason = Reason.NO_VALID_HOST


class TooMuch(FabricError):
    """Too large, or too often; carries `retry_after_s` where waiting helps."""

    reason = Reason.RATE_LIMITED

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        reason: Reason | None = None,
        **facts: str | int,
    ) -> None:
        super().__init__(message, reason=reason, **facts)
        self.retry_after_s = retry_after_s


class Unavailable(FabricError):
    """A dependency cannot be reached, and nothing was changed; the same request may be sent again."""

    reason = Reason.STORE_UNAVAILABLE


class Ambiguous(Unavailable):
    """A write was sent and its answer lost: it may or may not have been applied (R12).

    Whoever catches this must re-read and compare before doing anything else. It is an `Unavailable`, so that a caller
    who gives up tells the client to retry with the same request_id, which is always safe.
    """


class Bug(FabricError):
    """An invariant of ours is broken."""

    reason = Reason.INTERNAL
