"""Making the default network, once."""

from __future__ import annotations

import asyncio

import structlog

from fabric.errors import Unavailable
from fabric.model.network import Network
from fabric.store.base import Store, Txn
from fabric.store.codec import encode
from fabric.store.keys import NETWORK, NETWORK_NAME

log = structlog.get_logger()


async def ensure_network(store: Store, network: Network, *, pause_s: float = 0.5) -> None:
    """Make a network unless there is one, of any name. Waits until the store can be reached.

    Several servers may do this at once: the name's key is compared as absent, so one makes it and the others find it.
    """
    while True:
        try:
            if (await store.list(NETWORK.under())).entries:
                return
            name = NETWORK_NAME.at(network.name)
            await store.commit(
                Txn(
                    unchanged={name: 0},
                    put={name: encode(network.id), NETWORK.at(network.id): encode(network)},
                )
            )
        except Unavailable as away:
            log.warning("network.waiting", why=away.message)
            await asyncio.sleep(pause_s)
