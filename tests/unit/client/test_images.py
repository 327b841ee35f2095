from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from fabric.client.transfer import PIECE_BYTES, part_path
from fabric.errors import InvalidRequest, PermissionDenied, Unavailable
from tests.unit.client.fake_api import FakeApi
from tests.unit.client.worlds import VirtualTime, client_of


def test_an_upload_is_a_header_and_pieces_of_at_most_one_mebibyte(tmp_path: Path) -> None:
    api, time = FakeApi(), VirtualTime()
    data = bytes(range(256)) * (10 * 1024)
    (tmp_path / "disk").write_bytes(data)
    passed: list[tuple[int, int]] = []
    made = client_of(api, time).images.create(
        name="debian",
        file=tmp_path / "disk",
        disk_format="raw",
        progress=lambda now, of: passed.append((now, of)),
    )
    (pieces,) = api.requests("create_image")

    assert pieces[0].header.image.name == "debian"
    assert [len(piece.data) for piece in pieces[1:]] == [
        PIECE_BYTES,
        PIECE_BYTES,
        len(data) - 2 * PIECE_BYTES,
    ]
    assert made.sha256 == hashlib.sha256(data).hexdigest()
    assert passed[-1] == (len(data), len(data))


def test_a_broken_upload_starts_anew_under_the_same_request_id(tmp_path: Path) -> None:
    api, time = FakeApi(), VirtualTime()
    (tmp_path / "disk").write_bytes(b"x" * 10)
    api.fail["create_image"] = [Unavailable("away")]
    client_of(api, time).images.create(name="debian", file=tmp_path / "disk", disk_format="raw")
    first, second = api.requests("create_image")

    assert first == second
    assert len(api.images) == 1


def test_what_the_bytes_must_have_goes_ahead_of_them(tmp_path: Path) -> None:
    api = FakeApi()
    (tmp_path / "disk").write_bytes(b"x" * 10)
    client_of(api, VirtualTime()).images.create(name="debian", file=tmp_path / "disk", disk_format="raw")
    ((header, *_),) = api.requests("create_image")

    assert header.header.image.sha256 == hashlib.sha256(b"x" * 10).hexdigest()


def test_a_file_that_changes_while_it_is_sent_is_refused(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"x" * (PIECE_BYTES + 1))
    with pytest.raises(InvalidRequest, match="another SHA-256"):
        client_of(FakeApi(), VirtualTime()).images.create(
            name="debian",
            file=tmp_path / "disk",
            disk_format="raw",
            progress=lambda *_: (tmp_path / "disk").write_bytes(b"y" * (PIECE_BYTES + 1)),
        )


def test_a_file_that_is_not_what_it_must_be_is_not_sent(tmp_path: Path) -> None:
    api = FakeApi()
    (tmp_path / "disk").write_bytes(b"x" * 10)
    with pytest.raises(InvalidRequest, match="has SHA-256"):
        client_of(api, VirtualTime()).images.create(
            name="debian", file=tmp_path / "disk", disk_format="raw", sha256="0" * 64
        )

    assert api.seen == []


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    api = FakeApi()
    with pytest.raises(InvalidRequest, match="absent cannot be read"):
        client_of(api, VirtualTime()).images.create(
            name="debian", file=tmp_path / "absent", disk_format="raw"
        )

    assert api.seen == []


def stored(api: FakeApi, tmp_path: Path, data: bytes) -> str:
    (tmp_path / "disk").write_bytes(data)
    return (
        client_of(api, VirtualTime())
        .images.create(name="debian", file=tmp_path / "disk", disk_format="raw")
        .id
    )


def test_a_download_goes_on_where_it_broke(tmp_path: Path) -> None:
    api = FakeApi()
    data = bytes(range(250)) * 20
    stored(api, tmp_path, data)
    api.break_after["download_image"] = [2, 1]
    api.fail["download_image.break"] = [Unavailable("away"), Unavailable("away")]
    client_of(api, VirtualTime()).images.save("debian", tmp_path / "copy")

    assert (tmp_path / "copy").read_bytes() == data
    assert [it.offset_bytes for it in api.requests("download_image")] == [0, 2000, 3000]


def test_a_download_goes_on_from_what_an_earlier_run_has_left(tmp_path: Path) -> None:
    api = FakeApi()
    data = bytes(range(250)) * 20
    image_id = stored(api, tmp_path, data)
    part = part_path(tmp_path / "copy", image_id)
    part.write_bytes(data[:1234])
    client_of(api, VirtualTime()).images.save("debian", tmp_path / "copy")

    assert (tmp_path / "copy").read_bytes() == data
    assert [it.offset_bytes for it in api.requests("download_image")] == [1234]
    assert not part.exists()


def test_wrong_bytes_never_get_the_images_name(tmp_path: Path) -> None:
    api = FakeApi()
    image_id = stored(api, tmp_path, b"right" * 100)
    part = part_path(tmp_path / "copy", image_id)
    part.write_bytes(b"wrong")
    with pytest.raises(InvalidRequest, match="SHA-256"):
        client_of(api, VirtualTime()).images.save("debian", tmp_path / "copy")

    assert not (tmp_path / "copy").exists()
    assert not part.exists()


def test_a_refused_download_keeps_what_is_there(tmp_path: Path) -> None:
    api = FakeApi()
    image_id = stored(api, tmp_path, b"right" * 100)
    part_path(tmp_path / "copy", image_id).write_bytes(b"right")
    api.fail["download_image"] = [PermissionDenied("no")]
    with pytest.raises(PermissionDenied):
        client_of(api, VirtualTime()).images.save("debian", tmp_path / "copy")

    assert part_path(tmp_path / "copy", image_id).read_bytes() == b"right"
