from __future__ import annotations

import grpc
import pytest

from fabric.client.errors import from_rpc_error
from fabric.errors import (
    AlreadyExists,
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
from tests.unit.client.fake_api import Broken

ERRORS: tuple[FabricError, ...] = (
    InvalidRequest("at least 64", field="flavor.ram_mib", limit=64),
    Unauthenticated("who"),
    PermissionDenied("no"),
    NotFound("no"),
    AlreadyExists("taken"),
    WrongState("cannot start while ACTIVE", instance="i-1"),
    Conflict("other body", reason=Reason.REQUEST_ID_MISMATCH),
    QuotaExceeded("full", resource="instances", limit=10, used=10, asked=1),
    NoCapacity("0 of 3 hosts fit"),
    TooMuch("often", retry_after_s=2.5),
    Unavailable("away", reason=Reason.CELL_UNAVAILABLE, cell="cell1"),
)


@pytest.mark.parametrize("error", ERRORS, ids=lambda it: type(it).__name__)
def test_an_error_arrives_as_it_was_raised(error: FabricError) -> None:
    found = from_rpc_error(Broken(error), "api.test:7443")

    assert type(found) is type(error)
    assert (found.message, found.reason, found.facts) == (error.message, error.reason, error.facts)
    assert getattr(found, "field", None) == getattr(error, "field", None)
    assert getattr(found, "retry_after_s", None) == getattr(error, "retry_after_s", None)


class Silent(Broken):
    """What gRPC says of itself, without a word from a server."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(Unavailable("not used"))
        self._code, self._text = code, text

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._text

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:  # type: ignore[override]  # as gRPC has it, not as its stubs
        return ()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("ipv4:10.0.0.5:1: Failed to connect: Connection refused", "nothing listens at api.test:7443"),
        ("Ssl handshake failed: CERTIFICATE_VERIFY_FAILED", "certificate"),
        ("Ssl handshake failed: WRONG_VERSION_NUMBER", "does not speak TLS"),
        ("DNS resolution failed for api.test", "is not known"),
        ("socket closed", "cannot be reached"),
    ],
)
def test_an_api_out_of_reach_is_told_in_words_of_ours(said: str, told: str) -> None:
    found = from_rpc_error(Silent(grpc.StatusCode.UNAVAILABLE, said), "api.test:7443")

    assert isinstance(found, Unavailable)
    assert told in found.message
    assert "10.0.0.5" not in found.message


def test_a_missed_deadline_is_unavailable_with_its_reason() -> None:
    found = from_rpc_error(Silent(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"), "api.test:7443")

    assert isinstance(found, Unavailable)
    assert found.reason is Reason.DEADLINE_EXCEEDED
