"""What a hostile host can make its conductor do before the guard has looked at anything."""

from __future__ import annotations

import pytest

from fabric.errors import InvalidRequest
from fabric.model.session import Beat, Held, Inventory
from fabric.model.states import PowerState
from fabric.pb.host.v1 import host_session_service_pb2 as pb
from fabric.rpc.session_codec import (
    ELEMENTS_LIMIT,
    FROM_HOST_LIMIT_BYTES,
    pack_from_host,
    unpack_from_host,
)

ID = "00000000-0000-4000-8000-000000000001"
UNKNOWN_POWER = 77


@pytest.mark.parametrize("field", ["held", "strays"])
def test_elements_are_counted_before_any_of_them_is_looked_at(field: str) -> None:
    inventory = pb.Inventory(epoch=1)
    # If one of these were looked at, it would be for its number that the message is refused.
    inventory.held.extend([pb.Held(power=UNKNOWN_POWER)])  # type: ignore[arg-type]  # no such power
    if field == "held":
        inventory.held.extend([pb.Held()] * ELEMENTS_LIMIT)
    else:
        inventory.strays.extend([""] * (ELEMENTS_LIMIT + 1))

    with pytest.raises(InvalidRequest, match=f"{field} has more than {ELEMENTS_LIMIT} elements"):
        unpack_from_host(pb.SessionRequest(inventory=inventory).SerializeToString())


def test_a_message_larger_than_any_that_is_right_is_not_even_parsed() -> None:
    with pytest.raises(InvalidRequest, match="bytes"):
        unpack_from_host(b"\xff" * (FROM_HOST_LIMIT_BYTES + 1))


def test_the_largest_inventory_that_is_right_fits() -> None:
    full = Inventory(
        epoch=2**52,
        held=tuple(
            Held(instance_id=ID, placement_epoch=2**52 + number, power=PowerState.SUSPENDED)
            for number in range(4096)
        ),
        strays=("\N{GRINNING FACE}" * 128,) * 1024,
    )

    assert unpack_from_host(pack_from_host(full)) == full


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xff", b"\x0a\x05\x0a\x03\xff\xfe\xfd", b"\x7a\x00", b"\x0b" * 10_000]
)
def test_what_is_no_message_is_refused_as_such(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        unpack_from_host(data)


def test_fields_that_nobody_knows_change_nothing() -> None:
    beat = pb.SessionRequest(beat=pb.Beat(seq=1, epoch=2)).SerializeToString()

    # Field 1000, a string.
    assert unpack_from_host(beat + b"\xc2\x3e\x05owned") == Beat(seq=1, epoch=2)


def test_lists_are_at_the_top_of_what_hosts_say_where_they_are_counted() -> None:
    arms = pb.SessionRequest.DESCRIPTOR.oneofs_by_name["message"].fields
    nested = [
        inner.full_name
        for arm in arms
        for field in (arm.message_type.fields if arm.message_type else ())
        for inner in (field.message_type.fields if field.message_type else ())
        if inner.is_repeated
    ]

    assert nested == []
