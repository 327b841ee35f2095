"""Interfaces of servers on networks that projects make: which a create asks for, and the ports that are made or bound for them.

A port is bound in the transaction that accepts its server, and the server's index row names it: so a create that breaks off holds nothing,
and whoever ends the server knows what it held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fabric.api.catalogue import Catalogue
from fabric.api.core.devices import PORTS_LIMIT
from fabric.api.draft import Draft
from fabric.api.named import Found, named_by
from fabric.api.network_desk import Desk, project_of
from fabric.api.port_parts import check_allowed, take_port
from fabric.errors import InvalidRequest, NotFound
from fabric.model.identity import Principal
from fabric.model.network import Network, NetworkKind, NetworkPort, Port, Subnet
from fabric.network.core.guest_ports import check_guest_network, guest_port
from fabric.network.core.ports import AskedAddress, check_unbound
from fabric.pb.compute.v1 import instance_service_pb2 as pb
from fabric.store.keys import NETWORK, PORT, PROJECT_NETWORK_NAME, SUBNET


@dataclass(frozen=True, slots=True, kw_only=True)
class Wired:
    """What a server is attached to: the hosts' own network or None, and interfaces on tenant networks.

    The rest is what goes into the transaction of the global store that makes it so.
    """

    network: Network | None = None
    ports: tuple[Port, ...] = ()
    unchanged: Mapping[str, int] = field(default_factory=dict)
    put: Mapping[str, bytes] = field(default_factory=dict)


class InstancePorts:
    """The ports of servers, in the global store."""

    def __init__(self, catalogue: Catalogue, desk: Desk) -> None:
        self._catalogue = catalogue
        self._desk = desk

    async def wired(
        self, request: pb.CreateInstanceRequest, principal: Principal, *, instance_id: str, attempt: int
    ) -> Wired:
        """What a create names.

        Args:
            request: the create.
            principal: who asks.
            instance_id: the server that is to be made.
            attempt: how often this was tried: whoever lost a race for an address looks elsewhere the next time.

        Raises:
            InvalidRequest, naming the field; WrongState: a port or an address is in use; NoCapacity: no address is free;
            QuotaExceeded: the project may have no more ports; PermissionDenied; Unavailable.
        """
        if not request.networks and not request.network:
            if request.security_groups:
                raise _no_groups()
            return Wired(network=await self._only_network())
        asked = _asked(request)
        draft = Draft(attempt)
        own: list[Network] = []
        ports: dict[int, Port] = {}
        made = 0
        # Those that name addresses first: else another one's "any" might be one of them.
        for at, (path, each) in sorted(enumerate(asked), key=lambda one: not _names_address(one[1][1])):
            others = list(ports.values())
            if each.port:
                port_path = f"{path}port"
                found = await named_by(port_path, self._desk.ports.get(project_of(principal), each.port))
                ports[at] = await self.bind(
                    draft, found, instance_id=instance_id, others=others, field=port_path
                )
                continue
            network_path = f"{path}network" if path else "network"
            network = await self._named(each.network, principal, field=network_path)
            if network.value.kind is NetworkKind.HOST_LOCAL:
                own.append(_only_once(network.value, each, own, path=path, field=network_path))
                continue
            made += 1
            ports[at] = await self.make(
                draft,
                network,
                principal,
                port_id=self._desk.ids.new_id(),
                instance_id=instance_id,
                addresses=await self.addresses(each.fixed_ips, principal, path=path),
                groups=list(request.security_groups),
                others=others,
                path=path,
                field=network_path,
            )
        if request.security_groups and not made:
            raise _no_groups()
        return Wired(
            network=own[0] if own else None,
            ports=tuple(ports[at] for at in sorted(ports)),
            unchanged=draft.unchanged,
            put=draft.put,
        )

    async def _named(self, word: str, principal: Principal, *, field: str) -> Found[Network]:
        """A network by id or name. The hosts' own is known without asking for it, but for a network of the project that has its name."""
        local = self._catalogue.host_local(word)
        own = PROJECT_NETWORK_NAME.at(principal.project_id, word)
        if len(local) == 1 and own not in (await self._desk.store.get(own)).entries:
            return Found(local[0], 0, 0)
        return await named_by(field, self._desk.network(word, principal))

    async def addresses(
        self, asked: Sequence[pb.RequestedAddress], principal: Principal, *, path: str
    ) -> list[AskedAddress]:
        """The addresses that are asked for. Raises InvalidRequest."""
        found = []
        for at, each in enumerate(asked):
            subnet_id = ""
            if each.subnet:
                subnet = await named_by(
                    f"{path}fixed_ips[{at}].subnet", self._desk.subnet(each.subnet, principal)
                )
                subnet_id = subnet.value.id
            found.append(AskedAddress(subnet_id, each.ip_address))
        return found

    async def make(
        self,
        draft: Draft,
        network: Found[Network],
        principal: Principal,
        *,
        port_id: str,
        instance_id: str,
        addresses: Sequence[AskedAddress],
        groups: Sequence[str],
        others: Sequence[Port],
        path: str,
        field: str,
    ) -> Port:
        """Make a port for a server, which ends with it. `others` are the server's, `path` where the request asks for it."""
        desk = self._desk
        bare = NetworkPort(
            id=port_id,
            name="",
            project_id=project_of(principal),
            network_id=network.value.id,
            mac="",
            instance_id=instance_id,
            ends_with_instance=True,
            bind_time_ms=desk.clock.now_ms(),
        )
        check_allowed(network.value, bare, principal, asked_mac=False, field=field)
        check_guest_network(network.value, field=field)
        port = await take_port(
            desk,
            draft,
            bare,
            network,
            addresses=addresses,
            groups=groups,
            seed=f"{port_id}/{draft.attempt}",
            field=path,
            groups_field="security_groups",
            besides=frozenset(each.mac for each in others),
        )
        return guest_port(port, network.value, await self._subnets(draft, port))

    async def bind(
        self,
        draft: Draft,
        found: Found[NetworkPort],
        *,
        instance_id: str,
        others: Sequence[Port],
        field: str,
        is_again: bool = False,
    ) -> Port:
        """Bind a port that is there to a server. `is_again`: it may be bound to this very server already.

        Raises:
            WrongState: it is in use.
            InvalidRequest: the server has the port, or its MAC, already.
        """
        port, desk = found.value, self._desk
        if any(each.id == port.id for each in others):
            raise InvalidRequest(f"{field}: port {port.name or port.id} is there twice", field=field)
        if not (is_again and port.instance_id == instance_id):
            check_unbound(port)
        if any(each.mac == port.mac for each in others):
            raise InvalidRequest(
                f"{field}: the server has another interface with the MAC {port.mac}", field=field
            )
        network = await self._network_of(port)
        check_guest_network(network.value, field=field)
        draft.read(NETWORK.at(network.value.id), network.mod_revision)
        now_ms = desk.clock.now_ms()
        bound = replace(port, instance_id=instance_id, bind_time_ms=now_ms, update_time_ms=now_ms)
        draft.write(PORT.at(port.project_id, port.id), bound, seen=found.mod_revision)
        return guest_port(bound, network.value, await self._subnets(draft, bound))

    async def _network_of(self, port: NetworkPort) -> Found[Network]:
        """A port's network, whoever's it is. A network with ports is not deleted."""
        found = await self._desk.network_at(port.network_id)
        if found is None:
            raise NotFound(f"there is no network {port.network_id}")
        return found

    async def _subnets(self, draft: Draft, port: NetworkPort) -> dict[str, Subnet]:
        """The subnets that the port has addresses of, compared: what a guest is told of them is what they are."""
        found = await self._desk.subnets_at([each.subnet_id for each in port.fixed_addresses])
        for each in found:
            draft.read(SUBNET.at(each.value.id), each.mod_revision)
        return {each.value.id: each.value for each in found}

    async def _only_network(self) -> Network:
        """The hosts' own network, where nothing is said. Raises InvalidRequest where there is none, or several."""
        return await named_by("network", self._catalogue.network(""))


def _asked(request: pb.CreateInstanceRequest) -> list[tuple[str, pb.RequestedNetwork]]:
    """What the request asks to be attached to, each with the path of its field."""
    if not request.networks:
        return [("", pb.RequestedNetwork(network=request.network))]
    if request.network:
        raise InvalidRequest("network contradicts networks: name it there", field="network")
    if len(request.networks) > PORTS_LIMIT:
        raise InvalidRequest(f"networks: a server has at most {PORTS_LIMIT} interfaces", field="networks")
    found = []
    for at, each in enumerate(request.networks):
        path = f"networks[{at}]"
        if bool(each.network) == bool(each.port):
            raise InvalidRequest(f"{path} is to name either a network or a port", field=path)
        if each.port and each.fixed_ips:
            raise InvalidRequest(
                f"{path}.fixed_ips: the port has its addresses already", field=f"{path}.fixed_ips"
            )
        found.append((f"{path}.", each))
    return found


def _names_address(asked: pb.RequestedNetwork) -> bool:
    return any(each.ip_address for each in asked.fixed_ips)


def _only_once(
    network: Network, asked: pb.RequestedNetwork, before: Sequence[Network], *, path: str, field: str
) -> Network:
    """The hosts' own network: a claim gives one address of one such, of its own choice. Raises InvalidRequest."""
    if before:
        raise InvalidRequest(
            f"{field}: a server is made with one address of its host's own network; add another when it is there",
            field=field,
        )
    if asked.fixed_ips:
        raise InvalidRequest(
            f"{path}fixed_ips: addresses of network {network.name} are its hosts' to give",
            field=f"{path}fixed_ips",
        )
    return network


def _no_groups() -> InvalidRequest:
    return InvalidRequest(
        "security_groups are for ports that are made with the server, and it is to have none: name a tenant network",
        field="security_groups",
    )
