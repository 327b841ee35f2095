from __future__ import annotations

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from fabric import errors
from fabric.errors import (
    Ambiguous,
    Bug,
    FabricError,
    InvalidRequest,
    QuotaExceeded,
    Reason,
    TooMuch,
    Unavailable,
    WrongState,
)
from fabric.rpc.status import CODE, code_of, from_status, to_status

KINDS = sorted(CODE, key=lambda kind: kind.__name__)


def _made(kind: type[FabricError]) -> FabricError:
    if kind is InvalidRequest:
        return InvalidRequest("words", field="a.b", more=1)
    if kind is TooMuch:
        return TooMuch("words", retry_after_s=2.5, more=1)
    return kind("words", more=1)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in {Bug, Ambiguous}], ids=str)
def test_an_error_survives_the_wire(kind: type[FabricError]) -> None:
    error = _made(kind)
    status = to_status(error)

    back = from_status(status.code, status.message, status.SerializeToString())

    assert type(back) is kind
    assert (back.message, back.reason, back.facts) == (error.message, error.reason, {"more": "1"})
    if isinstance(back, InvalidRequest):
        assert back.field == "a.b"
    if isinstance(back, TooMuch):
        assert back.retry_after_s == 2.5


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_status_has_one_error_info_of_ours_and_never_unknown(kind: type[FabricError]) -> None:
    status = to_status(_made(kind), error_id="e1")

    infos = [detail for detail in status.details if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    assert len(infos) == 1
    assert status.code != grpc.StatusCode.UNKNOWN.value[0]
    info = error_details_pb2.ErrorInfo()
    infos[0].Unpack(info)
    assert info.domain == "cellfabric"
    assert Reason(info.reason)


def test_an_ambiguous_write_is_for_the_client_to_send_again() -> None:
    status = to_status(Ambiguous("perhaps"))

    assert type(from_status(status.code, status.message, status.SerializeToString())) is Unavailable


def test_a_bug_says_nothing_but_its_id() -> None:
    status = to_status(Bug("the password is hunter2", path="/etc/shadow"), error_id="e1")

    assert "hunter2" not in str(status)
    assert "shadow" not in str(status)
    assert "e1" in status.message


def test_a_deadline_has_a_code_of_its_own() -> None:
    assert code_of(Unavailable("late", reason=Reason.DEADLINE_EXCEEDED)) is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (InvalidRequest("no", field="x"), error_details_pb2.BadRequest),
        (QuotaExceeded("no", resource="vcpus"), error_details_pb2.QuotaFailure),
        (WrongState("no"), error_details_pb2.PreconditionFailure),
        (Unavailable("no"), error_details_pb2.RetryInfo),
        (TooMuch("no", retry_after_s=1.0), error_details_pb2.RetryInfo),
    ],
    ids=lambda each: type(each).__name__,
)
def test_an_error_carries_the_standard_detail_that_fits(error: FabricError, detail: type[Message]) -> None:
    assert any(each.Is(detail.DESCRIPTOR) for each in to_status(error).details)


@pytest.mark.parametrize("code", list(grpc.StatusCode), ids=str)
def test_what_others_send_becomes_an_error_of_ours_too(code: grpc.StatusCode) -> None:
    error = from_status(code.value[0], "words", b"\xff not a status")

    assert isinstance(error, FabricError)
    assert error.message == "words"


def test_a_reason_from_the_future_is_not_a_fault() -> None:
    status = to_status(errors.NotFound("gone"))
    info = error_details_pb2.ErrorInfo(reason="OF_TOMORROW", domain="cellfabric")
    del status.details[:]
    status.details.add().Pack(info)

    assert type(from_status(status.code, "gone", status.SerializeToString())) is errors.NotFound
