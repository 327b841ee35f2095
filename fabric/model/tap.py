"""The names of taps: shared, so that whoever says what is filtered names what is on the host."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

TAP_PREFIX: Final = "cft"


def tap_name(port_id: str) -> str:
    """The port's tap on any host: 15 characters, all that IFNAMSIZ allows (netdevice(7)); the same after any restart."""
    return TAP_PREFIX + blake2b(port_id.encode(), digest_size=6).hexdigest()
