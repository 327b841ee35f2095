"""When an image is built again, and what of a root file system is kept as it was: without apt, and without building one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tools.cloud_image import build as cloud
from tools.cloud_image import rootfs
from tools.guest_image import build as guest
from tools.guest_image.builder import Builder, Say
from tools.guest_image.packages import PackageCache


def a_builder(root: Path) -> Builder:
    (root / "parts").mkdir(exist_ok=True)
    (root / "parts" / "one").write_text("1")
    (root / "two.py").write_text("2")

    def make(work: Path, cache: PackageCache, say: Say) -> Mapping[str, object]:
        say(f"making it of {len(cache.used)} packages")
        (work / "disk").write_text("of " + (root / "parts" / "one").read_text())
        return {"colour": "blue"}

    return Builder(
        what="test image",
        module="tools.test",
        folder=".cache/test",
        outputs=("disk",),
        root=root,
        sources=("parts", "two.py"),
        make=make,
    )


def built(builder: Builder, folder: Path) -> list[str]:
    """Build; what was said of it."""
    said: list[str] = []
    builder.build(folder / "out", folder / "cache", refresh=False, say=said.append)
    return said


@pytest.mark.parametrize("builder", [guest.BUILDER, cloud.BUILDER], ids=lambda builder: builder.what)
def test_what_shapes_an_image_is_there(builder: Builder) -> None:
    """A source that has moved would be looked for in vain, and its changes missed."""
    for source in builder.sources:
        assert (builder.root / source).exists(), source


def test_an_image_is_built_once_from_the_same_sources(tmp_path: Path) -> None:
    builder = a_builder(tmp_path)

    first, second = built(builder, tmp_path), built(builder, tmp_path)

    assert first[0] == "making it of 0 packages"
    assert second == [f"test image is up to date: {tmp_path / 'out' / 'disk'}"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["colour"] == "blue"
    assert manifest["files"]["disk"]["bytes"] == 4


@pytest.mark.parametrize("changed", ["parts/one", "parts/new", "two.py"])
def test_a_change_to_any_source_makes_the_image_stale(tmp_path: Path, changed: str) -> None:
    builder = a_builder(tmp_path)
    built(builder, tmp_path)
    assert builder.stale(tmp_path / "out") is None

    (tmp_path / changed).write_text("3")

    assert builder.stale(tmp_path / "out") == "it was built from other sources"
    assert built(builder, tmp_path)[0] == "making it of 0 packages"


def test_a_changed_byte_is_found_by_the_check_alone(tmp_path: Path) -> None:
    builder = a_builder(tmp_path)
    built(builder, tmp_path)

    (tmp_path / "out" / "disk").write_text("of 2")

    assert builder.stale(tmp_path / "out") is None
    assert builder.check(tmp_path / "out") == "disk changed since it was built"


def test_a_file_keeps_the_time_that_its_package_gave_it(tmp_path: Path) -> None:
    """With the image's epoch on all of them, Python would take every bytecode file for another source's, and cloud-init would compile
    itself anew at each start.
    """
    (tmp_path / "packaged.py").touch()
    os.utime(tmp_path / "packaged.py", (1_000_000, 1_000_000))
    (tmp_path / "made.pyc").touch()
    os.utime(tmp_path / "made.pyc", (2_000_000, 2_000_000))

    assert rootfs.package_times(tmp_path, before_s=1_500_000) == {"packaged.py": 1_000_000}


def test_the_manifest_names_every_package_with_its_version() -> None:
    status = (
        "Package: adduser\nStatus: install ok installed\nVersion: 3.134\nDescription: add users\n Version: 2\n\n"
        "Package: udev\nVersion: 252.39-1~deb12u2\n\n"
    )

    assert dict(rootfs.versions(status)) == {"adduser": "3.134", "udev": "252.39-1~deb12u2"}
