"""The world that routers lead to, as a network of the fabric: what an administrator would make first of all."""

from __future__ import annotations

from fabric.client import Client
from fabric.errors import NotFound
from fabric.server.dev.profile import ADMIN
from fabric.server.dev.topology import Topology

NETWORK = "public"
SUBNET = "public-v4"
_TIMEOUT_S = 5.0
"""Shorter than anybody waits for a fabric to end."""


def ensure(topology: Topology) -> None:
    """Have the external network, with a range that routers and floating IPs get their addresses from. Waits for the API's answers.

    Its absence is asked for first, so it may be called at any time; what somebody made of the network since is left alone.

    Raises:
        FabricError: as the API has it.
    """
    segments = topology.segments
    if segments is None:
        return
    endpoint, authority = f"127.0.0.1:{topology.api_port}", topology.paths.pki / "ca.pem"
    password = topology.paths.admin_password.read_text(encoding="ascii").strip()
    anybody = Client(endpoint, authority, timeout_s=_TIMEOUT_S)
    try:
        token = anybody.tokens.issue(user=ADMIN, password=password, project=ADMIN).token
    finally:
        anybody.close()
    client = Client(endpoint, authority, token, timeout_s=_TIMEOUT_S)
    try:
        try:
            network = client.networks.get(NETWORK)
        except NotFound:
            network = client.networks.create(
                name=NETWORK, description="The world outside of this fabric", external=True
            )
        if not network.subnet_ids:
            client.subnets.create(
                name=SUBNET,
                network=network.id,
                cidr=segments.outside_cidr,
                gateway=segments.gateway.partition("/")[0],
                no_dhcp=True,
                pools=[(segments.first, segments.last)],
            )
    finally:
        client.close()
