"""Frames and messages, byte for byte as the RFCs have them."""

from __future__ import annotations

import struct

import pytest

from hostd.core.announcements import Advertisement, arrival, checksum, router_advertisement

MAC = "fa:16:3e:00:00:09"
OCTETS = bytes.fromhex("fa163e000009")


def test_an_ipv4_address_arrives_as_a_question_about_itself_and_as_an_answer() -> None:
    frames = arrival(MAC, "203.0.113.50")

    assert [struct.unpack("!H", frame[20:22])[0] for frame in frames] == [1, 2]
    for frame in frames:
        assert (frame[:6], frame[6:12], frame[12:14]) == (b"\xff" * 6, OCTETS, b"\x08\x06")
        # Sender and target are the same address: that makes it gratuitous.
        assert frame[22:28] == OCTETS
        assert frame[28:32] == frame[38:42] == bytes([203, 0, 113, 50])
        assert len(frame) == 42


def test_an_ipv6_address_arrives_as_an_advertisement_with_a_right_checksum() -> None:
    (frame,) = arrival(MAC, "2001:db8::50")
    payload, source, destination = frame[54:], frame[22:38], frame[38:54]

    assert frame[:6].hex() == "333300000001"
    assert frame[21] == 255
    assert payload[0] == 136
    # Over all that it covers, itself included, it is nothing (RFC 1071).
    assert checksum((source, destination, struct.pack("!II", len(payload), 58), payload)) == 0


def test_a_router_tells_guests_to_ask_dhcp_and_makes_no_address_of_its_prefix() -> None:
    said = router_advertisement(
        Advertisement(
            device="leg0", mac=MAC, prefix="fd00::/64", mtu=1450, dns_servers=("192.0.2.53", "2001:db8::53")
        )
    )
    kind, _, _, _, flags, lifetime_s = struct.unpack("!BBHBBH", said[:8])
    options = dict(_options(said[16:]))

    assert (kind, flags, lifetime_s) == (134, 0xC0, 1800)
    assert options[1][2:] == OCTETS
    assert struct.unpack("!I", options[5][4:])[0] == 1450
    length, prefix_flags = options[3][2], options[3][3]
    assert (length, prefix_flags) == (64, 0x80)
    assert options[25][8:] == bytes.fromhex("20010db8000000000000000000000053")


def _options(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while data:
        size = 8 * data[1]
        found.append((data[0], data[:size]))
        data = data[size:]
    return found


@pytest.mark.parametrize(("mac", "address"), [("fa:16", "203.0.113.50"), (MAC, "nowhere")])
def test_what_is_no_mac_or_address_is_refused(mac: str, address: str) -> None:
    with pytest.raises(ValueError, match=r"no MAC|nowhere"):
        arrival(mac, address)
