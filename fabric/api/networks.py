"""NetworkService: what servers can be attached to. The first form is made by the server, and only read here."""

from __future__ import annotations

from fabric.api.convert import network_message
from fabric.api.named import Named
from fabric.api.pages import Pages
from fabric.model.identity import Principal
from fabric.model.network import Network
from fabric.pb.network.v1 import network_service_pb2 as pb
from fabric.store.base import Store
from fabric.store.keys import NETWORK, NETWORK_NAME


class NetworkHandlers:
    """The RPCs, as functions of a request and who asks."""

    def __init__(self, store: Store) -> None:
        self._networks = Named(store, Network, NETWORK, "network", NETWORK_NAME.at)
        self._pages = Pages()

    async def get_network(self, request: pb.GetNetworkRequest, principal: Principal) -> pb.GetNetworkResponse:
        found = await self._networks.get(request.network)
        return pb.GetNetworkResponse(network=network_message(found.value), revision=found.revision)

    async def list_networks(
        self, request: pb.ListNetworksRequest, principal: Principal
    ) -> pb.ListNetworksResponse:
        found, revision = await self._networks.all()
        page, token = self._pages.cut(
            sorted(found, key=lambda each: each.value.name), request, key=lambda each: each.value.name
        )
        return pb.ListNetworksResponse(
            networks=[network_message(each.value) for each in page],
            next_page_token=token,
            revision=revision,
        )
