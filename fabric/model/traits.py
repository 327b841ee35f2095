"""The names of what a host must be able to, as administrators approve them and as what people ask for is boiled down to."""

from __future__ import annotations

from typing import Final

PLAIN_FIRMWARE: Final = "bios"
"""What every host can boot, so that no trait is asked for."""

SECURE_BOOT_TRAIT: Final = "SECURE_BOOT"
"""What a host has whose UEFI can boot only what is signed, by keys that it comes with."""

_ARCHITECTURE: Final = "HW_ARCH_"
_FIRMWARE: Final = "FIRMWARE_"


def boot_traits(architecture: str, firmware: str) -> frozenset[str]:
    """What a host needs to boot a guest of this architecture, empty being any, by this firmware: `HW_ARCH_X86_64`, `FIRMWARE_UEFI`."""
    needed = {_ARCHITECTURE + architecture.upper()} if architecture else set()
    if firmware != PLAIN_FIRMWARE:
        needed.add(_FIRMWARE + firmware.upper())
    return frozenset(needed)
