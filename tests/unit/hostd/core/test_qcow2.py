from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostd.core.qcow2 import HEADER_BYTES, UnsafeImage, inspect


def header(
    *,
    magic: bytes = b"QFI\xfb",
    version: int = 3,
    backing: int = 0,
    cluster_bits: int = 16,
    size: int = 1 << 30,
    encryption: int = 0,
    snapshots: int = 0,
    incompatible: int = 0,
) -> bytes:
    first = struct.pack(">4sIQIIQI", magic, version, backing, 0, cluster_bits, size, encryption)
    rest = struct.pack(">IQQIIQ", 1, 0, 0, 1, snapshots, 0)
    return (first + rest + struct.pack(">QQQII", incompatible, 0, 0, 4, 104)).ljust(HEADER_BYTES, b"\0")


def test_a_plain_image_says_its_size() -> None:
    assert inspect(header(size=12345)).virtual_size_bytes == 12345
    assert inspect(header(version=2)[:72]).version == 2
    assert inspect(header(incompatible=0b1001)).version == 3


@pytest.mark.parametrize(
    ("evil", "why"),
    [
        (header(backing=512), "backing file"),
        (header(incompatible=1 << 2), "external data file"),
        (header(incompatible=1 << 4), "not allowed"),
        (header(incompatible=1 << 63), "not allowed"),
        (header(encryption=2), "encrypted"),
        (header(snapshots=1), "snapshots"),
        (header(version=1), "version 1"),
        (header(cluster_bits=63), "cluster size"),
        (header(magic=b"KDMV"), "not a qcow2"),
        (header()[:80], "cut off"),
        (b"", "not a qcow2"),
    ],
)
def test_what_is_not_by_itself_is_refused(evil: bytes, why: str) -> None:
    with pytest.raises(UnsafeImage, match=why):
        inspect(evil)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_image_or_refused(content: bytes) -> None:
    try:
        found = inspect(b"QFI\xfb" + content)
    except UnsafeImage:
        return
    assert found.version in {2, 3}
