from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fabric.server.dev.firmware import has_secure_boot, has_uefi

OVMF = {
    "interface-types": ["uefi"],
    "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
    "features": ["acpi-s3", "verbose-dynamic"],
}


@pytest.mark.parametrize(
    ("differs", "serves"),
    [
        ({}, True),
        ({"interface-types": ["bios"]}, False),
        ({"targets": [{"architecture": "aarch64", "machines": ["virt-*"]}]}, False),
        ({"targets": [{"architecture": "x86_64", "machines": ["microvm"]}]}, False),
        ({"features": ["secure-boot", "requires-smm"]}, False),
    ],
)
def test_a_machine_has_uefi_where_a_descriptor_serves_our_guests(
    tmp_path: Path, differs: dict[str, Any], serves: bool
) -> None:
    """Hosts of `fabric dev` were approved for an architecture alone: no image for UEFI could be tried there, wherever the firmware was."""
    (tmp_path / "40-edk2.json").write_text(json.dumps(OVMF | differs))

    assert has_uefi([tmp_path / "none", tmp_path]) is serves


@pytest.mark.parametrize(
    ("features", "serves"),
    [
        (["secure-boot", "requires-smm", "enrolled-keys"], True),
        (["secure-boot", "requires-smm"], False),
        (["enrolled-keys"], False),
    ],
)
def test_secure_boot_takes_keys_to_go_by(tmp_path: Path, features: list[str], serves: bool) -> None:
    (tmp_path / "40-edk2.json").write_text(json.dumps(OVMF | {"features": features}))

    assert has_secure_boot([tmp_path]) is serves


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"interface-types": null}', "\xff", json.dumps(OVMF | {"features": None})]
)
def test_what_is_no_descriptor_is_passed_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "40-edk2.json").write_bytes(text.encode("latin-1"))

    assert not has_uefi([tmp_path])
    assert not has_secure_boot([tmp_path])
