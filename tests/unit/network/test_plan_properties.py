"""Plans are what the slow oracle says after any history of records, and whom a change touches is never forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.model.binding import PortBinding, RouterGateway
from fabric.model.host import Host, Resources
from fabric.model.network import (
    AddressPair,
    FixedAddress,
    FloatingIp,
    Network,
    NetworkKind,
    NetworkPort,
    Router,
    RouterInterface,
    Subnet,
)
from fabric.model.security_group import Direction, EtherType, SecurityGroup, SecurityRule
from fabric.network.core.picture import KINDS, HostRef, NetworkPicture
from fabric.network.core.plans import plan_of
from tests.unit.network.plan_oracle import Model, expected

# Few of everything, so that records meet.
NETWORKS = ("n0", "n1", "ext")
SUBNETS = {
    "s0": ("n0", "10.0.0.0/24"),
    "s1": ("n1", "10.0.0.0/24"),
    "s2": ("n1", "fd00::/64"),
    "o": ("ext", "198.51.100.0/24"),
}
PORTS = {"p0": "n0", "p1": "n0", "p2": "n1", "p3": "n1"}
GROUPS = ("g0", "g1")

HOSTS = tuple(
    Host(
        name=name,
        cell=cell,
        zone="z",
        capacity=Resources(),
        tunnel_address=tunnel,
        physical_networks=outside,
    )
    for cell, name, tunnel, outside in (
        ("c1", "h1", "192.0.2.1", ("external",)),
        ("c1", "h2", "", ("external",)),
        ("c2", "h1", "192.0.2.3", ()),
    )
)


@dataclass(frozen=True)
class Put:
    """A record that is shown, or goes."""

    kind: type
    thing: str
    value: Any


def _nth(subnet: str, place: int) -> str:
    return SUBNETS[subnet][1].split("/")[0].removesuffix("0") + str(place)


def _network(name: str) -> st.SearchStrategy[Network]:
    kind = NetworkKind.EXTERNAL if name == "ext" else NetworkKind.TENANT
    own = tuple(subnet for subnet, (network, _) in SUBNETS.items() if network == name)
    return st.builds(
        Network,
        id=st.just(name),
        name=st.just(name),
        kind=st.just(kind),
        vni=st.just(0 if name == "ext" else 7),
        mtu=st.sampled_from([1450, 1400]),
        subnet_ids=st.sampled_from([(), own]),
        physical_network=st.sampled_from(["", "external", "elsewhere"]),
    )


def _subnet(name: str) -> st.SearchStrategy[Subnet]:
    network, cidr = SUBNETS[name]
    return st.builds(
        Subnet,
        id=st.just(name),
        name=st.just(name),
        project_id=st.just("p"),
        network_id=st.just(network),
        cidr=st.just(cidr),
        gateway=st.sampled_from(["", _nth(name, 1)]),
        dhcp=st.booleans(),
    )


def _port(name: str) -> st.SearchStrategy[NetworkPort]:
    network, place = PORTS[name], int(name[1]) + 10
    subnets = [each for each, (at, _) in SUBNETS.items() if at == network]
    return st.builds(
        NetworkPort,
        id=st.just(name),
        name=st.sampled_from(["", "renamed"]),
        project_id=st.just("p"),
        network_id=st.just(network),
        mac=st.just(f"fa:16:3e:00:00:{place}"),
        fixed_addresses=st.lists(st.sampled_from(subnets), unique=True).map(
            lambda chosen: tuple(FixedAddress(subnet_id=each, address=_nth(each, place)) for each in chosen)
        ),
        security_group_ids=st.lists(st.sampled_from(GROUPS), unique=True).map(tuple),
        allowed_address_pairs=st.sampled_from([(), (AddressPair(cidr="10.9.0.0/16"),)]),
    )


def _router(name: str) -> st.SearchStrategy[Router]:
    return st.builds(
        Router,
        id=st.just(name),
        name=st.just(name),
        project_id=st.just("p"),
        external_network_id=st.sampled_from(["", "ext"]),
        external_addresses=st.just((FixedAddress(subnet_id="o", address="198.51.100.9"),)),
        external_mac=st.just("fa:16:3e:ff:ff:ff"),
        snat=st.booleans(),
        vni=st.just(99),
        interfaces=st.lists(st.sampled_from(["s0", "s1", "s2"]), unique=True).map(
            lambda chosen: tuple(
                RouterInterface(
                    network_id=SUBNETS[each][0],
                    subnet_id=each,
                    address=_nth(each, 1),
                    mac="fa:16:3e:aa:aa:aa",
                )
                for each in chosen
            )
        ),
    )


def _floating_ip(name: str) -> st.SearchStrategy[FloatingIp]:
    return st.builds(
        FloatingIp,
        id=st.just(name),
        project_id=st.just("p"),
        network_id=st.just("ext"),
        subnet_id=st.just("o"),
        address=st.just(f"198.51.100.{20 + int(name[1])}"),
        port_id=st.sampled_from(["", *PORTS]),
        fixed_address=st.just("10.0.0.10"),
        router_id=st.sampled_from(["", "r0", "r1"]),
    )


def _group(name: str) -> st.SearchStrategy[SecurityGroup]:
    rules = st.builds(
        SecurityRule,
        id=st.sampled_from(["a", "b"]),
        direction=st.sampled_from([Direction.INGRESS, Direction.EGRESS]),
        ether_type=st.just(EtherType.IPV4),
        remote_group_id=st.sampled_from(["", *GROUPS]),
    )
    return st.builds(
        SecurityGroup,
        id=st.just(name),
        name=st.just(name),
        project_id=st.just("p"),
        rules=st.lists(rules, max_size=3).map(tuple),
    )


def _binding(name: str) -> st.SearchStrategy[PortBinding]:
    return st.sampled_from(HOSTS).flatmap(
        lambda host: st.builds(
            PortBinding,
            port_id=st.just(name),
            network_id=st.just(PORTS[name]),
            instance_id=st.sampled_from(["i0", "i1"]),
            cell=st.just(host.cell),
            host=st.just(host.name),
            tunnel_address=st.just(host.tunnel_address),
        )
    )


def _gateway(name: str) -> st.SearchStrategy[RouterGateway]:
    return st.sampled_from(HOSTS).map(
        lambda host: RouterGateway(
            router_id=name, cell=host.cell, host=host.name, tunnel_address=host.tunnel_address
        )
    )


_MADE: dict[type, tuple[Callable[[str], st.SearchStrategy[Any]], Iterable[str]]] = {
    Network: (_network, NETWORKS),
    Subnet: (_subnet, SUBNETS),
    NetworkPort: (_port, PORTS),
    Router: (_router, ("r0", "r1")),
    FloatingIp: (_floating_ip, ("f0", "f1")),
    SecurityGroup: (_group, GROUPS),
    PortBinding: (_binding, PORTS),
    RouterGateway: (_gateway, ("r0", "r1")),
}

PUTS = st.sampled_from(
    [(kind, thing, made) for kind, (made, things) in _MADE.items() for thing in things]
).flatmap(
    lambda one: (st.none() | one[2](one[1]) | one[2](one[1])).map(lambda value: Put(one[0], one[1], value))
)


def _shown(kind: type, thing: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Put]:
    return values.map(lambda value: Put(kind, thing, value))


EVERYTHING = st.tuples(
    *(_shown(kind, thing, made(thing)) for kind, (made, things) in _MADE.items() for thing in things)
).map(list)


def _model(picture: NetworkPicture) -> Model:
    return Model(
        networks=tuple(picture.of(Network).values()),
        subnets=tuple(picture.of(Subnet).values()),
        ports=tuple(picture.of(NetworkPort).values()),
        routers=tuple(picture.of(Router).values()),
        floating_ips=tuple(picture.of(FloatingIp).values()),
        groups=tuple(picture.of(SecurityGroup).values()),
        bindings=tuple(picture.of(PortBinding).values()),
        gateways=tuple(picture.of(RouterGateway).values()),
    )


@settings(max_examples=100)
@given(EVERYTHING, st.lists(PUTS, min_size=5, max_size=20))
def test_every_plan_is_what_the_oracle_says_and_no_change_goes_unnoticed(
    everything: list[Put], history: list[Put]
) -> None:
    picture = NetworkPicture()
    for put in everything:
        picture.put(put.kind, put.thing, put.value)
    before = {host: plan_of(host, picture).plan for host in HOSTS}

    for put in history:
        touched = picture.put(put.kind, put.thing, put.value)
        model = _model(picture)
        after = {host: expected(host, model) for host in HOSTS}
        changed = {HostRef(host.cell, host.name) for host in HOSTS if after[host] != before[host]}
        assert changed <= touched
        assert {host: plan_of(host, picture).plan for host in HOSTS} == after
        before = after


@given(st.lists(PUTS, max_size=40))
def test_a_picture_that_forgets_everything_is_empty(history: list[Put]) -> None:
    picture = NetworkPicture()
    for put in history:
        picture.put(put.kind, put.thing, put.value)

    for kind in KINDS:
        for thing in tuple(picture.of(kind)):
            picture.put(kind, thing, None)

    assert _model(picture) == Model()
    assert all(not plan_of(host, picture).plan.networks for host in HOSTS)
    assert all(not picture.hosts_of_network(each) for each in NETWORKS)
    assert all(not picture.members_of(each) for each in GROUPS)
