"""Names of taps and the mark each carries in its alias, so that what is ours can be told from what is not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from fabric.model.tap import TAP_PREFIX, tap_name

__all__ = ["BRIDGE", "MARK", "TAP_PREFIX", "TapMark", "parse_alias", "tap_name"]

MARK: Final = "cellfabric"
"""The first word of every alias, and the name of every table, that is ours."""

BRIDGE: Final = "cellfabric0"
"""The guests' bridge, where no setting names another."""

_ALIAS: Final = re.compile(
    rf"{MARK} instance=([0-9a-f-]{{36}}) epoch=(\d{{1,18}}) port=([0-9a-f-]{{36}})"
    r" mac=((?:[0-9a-f]{2}:){5}[0-9a-f]{2}) (?:address=(\d{1,3}(?:\.\d{1,3}){3})|network=([0-9a-f-]{36}))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TapMark:
    """What a tap's alias says: whose it is, and what may come out of it. Enough to filter it without any file.

    A tap on a tenant network has `network_id` and no `address`: what may come out of it is said by the network's plan.
    """

    instance_id: str
    placement_epoch: int
    port_id: str
    mac: str
    address: str = ""
    network_id: str = ""

    @property
    def tap(self) -> str:
        """The tap's name."""
        return tap_name(self.port_id)

    def alias(self) -> str:
        """The words of the alias; below the kernel's 255 bytes."""
        where = f"network={self.network_id}" if self.network_id else f"address={self.address}"
        return (
            f"{MARK} instance={self.instance_id} epoch={self.placement_epoch} port={self.port_id}"
            f" mac={self.mac} {where}"
        )


def parse_alias(alias: str) -> TapMark | None:
    """The mark an alias carries, None where it is not one of ours."""
    match = _ALIAS.fullmatch(alias)
    if match is None:
        return None
    instance_id, epoch, port_id, mac, address, network_id = match.groups()
    return TapMark(
        instance_id=instance_id,
        placement_epoch=int(epoch),
        port_id=port_id,
        mac=mac,
        address=address or "",
        network_id=network_id or "",
    )
