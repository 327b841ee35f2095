"""Which floating IPs lead to servers: an index by port over the picture of them, for showing servers with every address they have."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from fabric.api.catalogue import Catalogue
from fabric.api.instance_view import FIXED, floating_address
from fabric.errors import Unavailable
from fabric.model.network import FloatingIp
from fabric.pb.compute.v1 import instance_service_pb2 as pb
from fabric.store.picture import Change


class FloatingAddresses:
    """Kept up to date by the catalogue's picture."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._shelf = catalogue.floating_ips
        self._by_port: dict[str, dict[str, FloatingIp]] = {}
        self._shelf.listeners.append(self._on_change)

    def _on_change(self, changes: Sequence[Change[FloatingIp]]) -> None:
        for change in changes:
            if change.before is not None:
                port_id = change.before.value.port_id
                leading = self._by_port.get(port_id, {})
                leading.pop(change.key, None)
                if not leading:
                    self._by_port.pop(port_id, None)
            if change.after is not None and change.after.value.port_id:
                self._by_port.setdefault(change.after.value.port_id, {})[change.key] = change.after.value

    async def add(self, messages: Sequence[pb.Instance], *, timeout_s: float) -> None:
        """Show what leads to these servers, as of now; as of lately where the store is away."""
        with contextlib.suppress(Unavailable):
            await self._shelf.catch_up(timeout_s=timeout_s)
        for message in messages:
            addresses = message.status.addresses
            fixed = [each for each in addresses if each.kind == FIXED]
            addresses.extend(
                floating_address(each, leading)
                for each in fixed
                for leading in self._by_port.get(each.port_id, {}).values()
                if leading.fixed_address == each.address
            )
