"""Names of taps and the mark each carries in its alias, so that what is ours can be told from what is not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

TAP_PREFIX: Final = "cft"
MARK: Final = "cellfabric"
"""The first word of every alias, and the name of every table, that is ours."""

BRIDGE: Final = "cellfabric0"
"""The guests' bridge, where no setting names another."""

_ALIAS: Final = re.compile(
    rf"{MARK} instance=([0-9a-f-]{{36}}) epoch=(\d{{1,18}}) port=([0-9a-f-]{{36}})"
    r" mac=((?:[0-9a-f]{2}:){5}[0-9a-f]{2}) address=(\d{1,3}(?:\.\d{1,3}){3})"
)


def tap_name(port_id: str) -> str:
    """The port's tap on any host: 15 characters, all that IFNAMSIZ allows (netdevice(7)); the same after any restart."""
    return TAP_PREFIX + blake2b(port_id.encode(), digest_size=6).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class TapMark:
    """What a tap's alias says: whose it is, and what may come out of it. Enough to filter it without any file."""

    instance_id: str
    placement_epoch: int
    port_id: str
    mac: str
    address: str

    @property
    def tap(self) -> str:
        """The tap's name."""
        return tap_name(self.port_id)

    def alias(self) -> str:
        """The words of the alias; below the kernel's 255 bytes."""
        return (
            f"{MARK} instance={self.instance_id} epoch={self.placement_epoch} port={self.port_id}"
            f" mac={self.mac} address={self.address}"
        )


def parse_alias(alias: str) -> TapMark | None:
    """The mark an alias carries, None where it is not one of ours."""
    match = _ALIAS.fullmatch(alias)
    if match is None:
        return None
    instance_id, epoch, port_id, mac, address = match.groups()
    return TapMark(
        instance_id=instance_id, placement_epoch=int(epoch), port_id=port_id, mac=mac, address=address
    )
