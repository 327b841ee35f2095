"""What the properties of images may say, however an image comes to have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fabric.api.core.accept import SECURE_BOOT, TRAIT, TRAIT_VALUES, contradicts_itself
from fabric.errors import InvalidRequest

_VALUES: Final = {
    "hw_architecture": ("x86_64", "aarch64"),
    "hw_firmware_type": ("bios", "uefi"),
    SECURE_BOOT: ("required", "optional", "disabled"),
}
"""Properties that we understand, and what they may be. Others are kept as they are, for people."""


def check_properties(properties: Mapping[str, str], *, field: str) -> None:
    """Whether each property that we understand is what it may be. Raises InvalidRequest, naming the field."""
    for name, value in sorted(properties.items()):
        values = TRAIT_VALUES if name.startswith(TRAIT) else _VALUES.get(name)
        if values is None or value in values:
            continue
        raise InvalidRequest(f"{field}[{name}] must be {' or '.join(values)}", field=f"{field}[{name}]")
    if contradicts_itself(properties):
        raise InvalidRequest(
            f"{field}[{SECURE_BOOT}] can be required where {field}[hw_firmware_type] is uefi",
            field=f"{field}[{SECURE_BOOT}]",
        )
