from __future__ import annotations

import grpc
import pytest

from fabric.errors import Bug, FabricError, NotFound, TooMuch, Unavailable
from fabric.store.etcd.faults import Fate, fate, refusal
from fabric.store.etcd.wire import interval, progress_answers_are_in_step, version_of

Code = grpc.StatusCode


@pytest.mark.parametrize(
    ("code", "details", "expected"),
    [
        # Said by etcd's interceptors before anything is proposed, or by gRPC about a connection that never was.
        (Code.UNAVAILABLE, "etcdserver: no leader", Fate.NOTHING_DONE),
        (Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests", Fate.NOTHING_DONE),
        (Code.UNAVAILABLE, "failed to connect to all addresses; last error: ...", Fate.NOTHING_DONE),
        # Said when a proposal may be on its way (R12).
        (Code.UNAVAILABLE, "etcdserver: leader changed", Fate.UNKNOWN),
        (Code.UNAVAILABLE, "etcdserver: request timed out", Fate.UNKNOWN),
        (
            Code.UNAVAILABLE,
            "etcdserver: request timed out, possibly due to previous leader failure",
            Fate.UNKNOWN,
        ),
        (Code.UNAVAILABLE, "etcdserver: server stopped", Fate.UNKNOWN),
        (Code.UNAVAILABLE, "Socket closed", Fate.UNKNOWN),
        (Code.DEADLINE_EXCEEDED, "Deadline Exceeded", Fate.UNKNOWN),
        (Code.UNKNOWN, "context deadline exceeded", Fate.UNKNOWN),
        (Code.UNKNOWN, "raft proposal dropped", Fate.UNKNOWN),
        (Code.CANCELLED, "context canceled", Fate.UNKNOWN),
        (Code.INTERNAL, "stream terminated by RST_STREAM", Fate.UNKNOWN),
        (Code.DATA_LOSS, "etcdserver: corrupt cluster", Fate.UNKNOWN),
        # Said about the request itself.
        (Code.INVALID_ARGUMENT, "etcdserver: too many operations in txn request", Fate.REFUSED),
        (Code.NOT_FOUND, "etcdserver: requested lease not found", Fate.REFUSED),
        (Code.PERMISSION_DENIED, "etcdserver: permission denied", Fate.REFUSED),
        (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", Fate.REFUSED),
        (
            Code.OUT_OF_RANGE,
            "etcdserver: mvcc: required revision has been compacted",
            Fate.HISTORY_GONE,
        ),
        (
            Code.OUT_OF_RANGE,
            "etcdserver: mvcc: required revision is a future revision",
            Fate.HISTORY_GONE,
        ),
    ],
)
def test_an_error_says_this_about_the_fate_of_a_write(
    code: grpc.StatusCode, details: str, expected: Fate
) -> None:
    assert fate(code, details) is expected


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
def test_an_error_with_words_nobody_knows_never_says_that_it_may_be_sent_again(code: grpc.StatusCode) -> None:
    assert fate(code, "something new") in {Fate.UNKNOWN, Fate.REFUSED}


@pytest.mark.parametrize(
    ("code", "details", "expected"),
    [
        (Code.NOT_FOUND, "etcdserver: requested lease not found", NotFound),
        (Code.INVALID_ARGUMENT, "etcdserver: request is too large", TooMuch),
        (
            Code.RESOURCE_EXHAUSTED,
            "grpc: received message larger than max (3000000 vs. 2097152)",
            TooMuch,
        ),
        (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", Unavailable),
        (Code.PERMISSION_DENIED, "etcdserver: permission denied", Unavailable),
        (Code.UNAUTHENTICATED, "etcdserver: invalid auth token", Unavailable),
        (Code.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request", Bug),
    ],
)
def test_a_refusal_is_told_in_our_own_words(
    code: grpc.StatusCode, details: str, expected: type[FabricError]
) -> None:
    told = refusal(code, details, "cell-1")

    assert type(told) is expected
    assert "etcdserver" not in told.message
    assert told.facts["store"] == "cell-1"


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        (b"a/", (b"a/", b"a0")),
        (b"", (b"\0", b"\0")),
        (b"a\xff", (b"a\xff", b"b")),
        (b"\xff\xff", (b"\xff\xff", b"\0")),
    ],
)
def test_a_prefix_is_this_interval_of_keys(prefix: bytes, expected: tuple[bytes, bytes]) -> None:
    assert interval(prefix) == expected


def test_versions_compare_as_numbers() -> None:
    assert version_of("3.5.16") == (3, 5, 16)
    assert version_of("3.10.0-rc.1") > version_of("3.9.9")
    assert version_of("") == (0, 0, 0)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("3.4.23", False),
        ("3.4.25", True),
        ("3.5.7", False),
        ("3.5.8", True),
        ("3.6.0", True),
        ("", False),
    ],
)
def test_progress_answers_are_only_believed_where_they_are_in_step(version: str, expected: bool) -> None:
    assert progress_answers_are_in_step(version_of(version)) is expected
