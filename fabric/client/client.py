"""The client object: one connection, one attribute for each noun."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc

from fabric.client.calls import CHANNEL_OPTIONS, Calls, World
from fabric.client.endpoint import Endpoint
from fabric.client.retry import RetrySettings
from fabric.errors import InvalidRequest

if TYPE_CHECKING:
    from fabric.client.consoles import Consoles
    from fabric.client.flavors import Flavors
    from fabric.client.hosts import Hosts
    from fabric.client.images import Images
    from fabric.client.instance_events import InstanceEvents
    from fabric.client.instances import Instances
    from fabric.client.keypairs import Keypairs
    from fabric.client.networks import Networks, Subnets
    from fabric.client.ports import Ports
    from fabric.client.projects import Projects
    from fabric.client.routers import FloatingIps, Routers
    from fabric.client.security_groups import SecurityGroups
    from fabric.client.tokens import Tokens
    from fabric.client.traces import Traces
    from fabric.client.users import Users
    from fabric.client.volumes import Volumes


class Client:
    """A connection to one API server, made when it is first used. Synchronous, for one thread.

    Args:
        endpoint: `host:port`.
        ca_file: PEM certificates that the server's must be signed by; the system's where it is None.
        token: from `tokens.issue`; empty for the calls that need none.
        renew: asked for another token, once per call, when the server no longer knows this one.
        timeout_s: for a whole call with all its retries, unless the call says otherwise.
        retry: how patient to be.
        world: time, chance and ids.
        channel: a way there that is open already; closed with the client.

    Raises:
        InvalidRequest: the endpoint or the CA file is unusable.
    """

    def __init__(
        self,
        endpoint: str,
        ca_file: Path | None = None,
        token: str = "",
        *,
        renew: Callable[[], str] | None = None,
        timeout_s: float = 30.0,
        retry: RetrySettings | None = None,
        world: World | None = None,
        channel: grpc.Channel | None = None,
    ) -> None:
        where = Endpoint.parse(endpoint)
        self._channel = channel or _channel(where, ca_file)
        self._calls = Calls(
            where,
            self._channel,
            token=token,
            renew=renew,
            timeout_s=timeout_s,
            settings=retry or RetrySettings(),
            world=world or World(),
        )

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # Each noun is imported when it is first asked for: a command needs one or two of them, and starts the sooner.

    @cached_property
    def flavors(self) -> Flavors:
        """The menu of sizes."""
        from fabric.client.flavors import Flavors

        return Flavors(self._calls)

    @cached_property
    def keypairs(self) -> Keypairs:
        """The caller's SSH public keys."""
        from fabric.client.keypairs import Keypairs

        return Keypairs(self._calls)

    @cached_property
    def volumes(self) -> Volumes:
        """Disks that outlive servers."""
        from fabric.client.volumes import Volumes

        return Volumes(self._calls)

    @cached_property
    def images(self) -> Images:
        """What disks start as."""
        from fabric.client.images import Images

        return Images(self._calls)

    @cached_property
    def networks(self) -> Networks:
        """What servers can be attached to."""
        from fabric.client.networks import Networks

        return Networks(self._calls)

    @cached_property
    def subnets(self) -> Subnets:
        """The ranges of networks' addresses."""
        from fabric.client.networks import Subnets

        return Subnets(self._calls)

    @cached_property
    def ports(self) -> Ports:
        """Places on networks."""
        from fabric.client.ports import Ports

        return Ports(self._calls)

    @cached_property
    def traces(self) -> Traces:
        """What becomes of packets."""
        from fabric.client.traces import Traces

        return Traces(self._calls)

    @cached_property
    def routers(self) -> Routers:
        """What joins subnets and leads out of them."""
        from fabric.client.routers import Routers

        return Routers(self._calls)

    @cached_property
    def floating_ips(self) -> FloatingIps:
        """External addresses that lead to ports."""
        from fabric.client.routers import FloatingIps

        return FloatingIps(self._calls)

    @cached_property
    def security_groups(self) -> SecurityGroups:
        """What may pass at ports."""
        from fabric.client.security_groups import SecurityGroups

        return SecurityGroups(self._calls)

    @cached_property
    def instances(self) -> Instances:
        """Servers."""
        from fabric.client.instances import Instances

        return Instances(self._calls)

    @cached_property
    def instance_events(self) -> InstanceEvents:
        """What was done to servers, and what changes about them."""
        from fabric.client.instance_events import InstanceEvents

        return InstanceEvents(self._calls)

    @cached_property
    def consoles(self) -> Consoles:
        """Servers' serial ports and screens."""
        from fabric.client.consoles import Consoles

        return Consoles(self._calls)

    @cached_property
    def hosts(self) -> Hosts:
        """The machines below, for administrators."""
        from fabric.client.hosts import Hosts

        return Hosts(self._calls)

    @cached_property
    def projects(self) -> Projects:
        """What owns servers and quota, for administrators."""
        from fabric.client.projects import Projects

        return Projects(self._calls)

    @cached_property
    def users(self) -> Users:
        """People and their roles, for administrators."""
        from fabric.client.users import Users

        return Users(self._calls)

    @cached_property
    def tokens(self) -> Tokens:
        """Logging in and out."""
        from fabric.client.tokens import Tokens

        return Tokens(self._calls)


def _channel(endpoint: Endpoint, ca_file: Path | None) -> grpc.Channel:
    if not endpoint.tls:
        return grpc.insecure_channel(endpoint.target, options=CHANNEL_OPTIONS)
    try:
        roots = None if ca_file is None else ca_file.read_bytes()
    except OSError as error:
        raise InvalidRequest(
            f"the CA file {ca_file} cannot be read: {error.strerror}", field="ca_file"
        ) from None
    if roots is not None and b"BEGIN CERTIFICATE" not in roots:
        raise InvalidRequest(f"the CA file {ca_file} holds no PEM certificate", field="ca_file")
    return grpc.secure_channel(
        endpoint.target, grpc.ssl_channel_credentials(root_certificates=roots), options=CHANNEL_OPTIONS
    )
