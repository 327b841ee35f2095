"""Netlink's bytes. The kernel's own answers are read in tests/integration/network."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostd.core.connections import Tuple
from hostd.core.ctnetlink import (
    CT_DELETE,
    connection,
    delete_request,
    dump_request,
    error_of,
    generation,
    message,
    messages,
)

# A connection as a kernel says it: TCP 10.0.0.11:1000 to 10.0.0.12:22 in zone 5, id 0x11223344.
TUPLES = (
    "34000180 14000180 080001000a00000b 080002000a00000c 1c000280 0500010006000000 0600020003e80000 0600030000160000"
    "34000280 14000180 080001000a00000c 080002000a00000b 1c000280 0500010006000000 0600020000160000 0600030003e80000"
)
BODY = bytes.fromhex(
    "02000000" + TUPLES.replace(" ", "") + "0800030000000188" + "08000c0011223344" + "0600120000050000"
)


def test_a_connection_is_read() -> None:
    found = connection(BODY)

    assert found is not None
    assert (found.zone, found.protocol, found.icmp_type) == (5, 6, None)
    assert found.original == Tuple(ip_address("10.0.0.11"), ip_address("10.0.0.12"), 1000, 22)
    assert found.reply == Tuple(ip_address("10.0.0.12"), ip_address("10.0.0.11"), 22, 1000)


def test_forgetting_names_the_very_connection() -> None:
    found = connection(BODY)
    assert found is not None

    ((kind, sequence, body),) = messages(delete_request(7, found))

    assert (kind, sequence) == (CT_DELETE, 7)
    # Its tuple, its zone and its id: one made since with the same addresses has another.
    assert body[0] == 2
    assert body[4:] == BODY[4:56] + BODY[-8:] + BODY[-16:-8]


def test_requests_are_as_long_as_they_say() -> None:
    for request in (dump_request(3, 9), message(1, 0, 2)):
        assert struct.unpack_from("=I", request)[0] == len(request)
        assert len(request) % 4 == 0


def test_an_error_is_a_number() -> None:
    assert error_of(struct.pack("=i", -2) + bytes(16)) == 2
    assert error_of(struct.pack("=i", 0)) == 0


def test_a_generation_is_a_number() -> None:
    assert generation(bytes(4) + struct.pack("=HH", 8, 1) + struct.pack("!I", 77)) == 77


@given(st.integers(0, len(BODY) - 1))
def test_half_a_connection_is_refused(length: int) -> None:
    """Or is at least not taken for one that it is not: what follows the tuples may be missing."""
    try:
        found = connection(BODY[:length])
    except ValueError:
        return

    assert found is not None
    assert found.original == Tuple(ip_address("10.0.0.11"), ip_address("10.0.0.12"), 1000, 22)


@given(st.binary(max_size=200))
def test_noise_is_refused_and_nothing_else(noise: bytes) -> None:
    for read in (connection, generation, error_of, lambda it: list(messages(it))):
        try:
            read(noise)
        except ValueError:
            continue


@pytest.mark.parametrize(
    "received", [b"\0" * 15, struct.pack("=IHHII", 4, 0, 0, 0, 0), message(1, 0, 1)[:-1]]
)
def test_half_a_message_is_refused(received: bytes) -> None:
    with pytest.raises(ValueError):
        list(messages(received))
