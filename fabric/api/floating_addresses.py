"""Which floating IPs lead to servers: an index by port over the picture of them, for showing servers with every address they have."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from fabric.api.catalogue import Catalogue
from fabric.api.groups import Groups
from fabric.api.instance_view import FIXED, floating_address
from fabric.errors import Unavailable
from fabric.pb.compute.v1 import instance_service_pb2 as pb


class FloatingAddresses:
    """Kept up to date by the catalogue's picture."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._shelf = catalogue.floating_ips
        self._by_port = Groups(self._shelf, lambda each: each.port_id)

    async def add(self, messages: Sequence[pb.Instance], *, timeout_s: float) -> None:
        """Show what leads to these servers, as of now; as of lately where the store is away."""
        networks = {each.network_id for message in messages for each in message.status.addresses}
        if all(self._catalogue.host_local(each) for each in networks):
            return
        with contextlib.suppress(Unavailable):
            await self._shelf.catch_up(timeout_s=timeout_s)
        for message in messages:
            addresses = message.status.addresses
            fixed = [each for each in addresses if each.kind == FIXED]
            addresses.extend(
                floating_address(each, leading)
                for each in fixed
                for leading in self._by_port.of(each.port_id)
                if leading.fixed_address == each.address
            )
