"""What a router is on a host, and how it gets there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fabric.model.network_plan import (
    NetworkPlan,
    OutsideSubnet,
    PlannedFloatingIp,
    PlannedNetwork,
    PlannedRouter,
    PlannedSubnet,
    RouterLeg,
    RouterOutside,
)
from hostd.core.routing import (
    MAIN_TABLE,
    OUTSIDE_TABLE,
    TRANSIT,
    Route,
    Space,
    Uplink,
    router_namespace,
    router_prefix,
    space,
    transit_mac,
    uplinks_needed,
)
from hostd.core.routing_change import Seen, held_back, parsed, routing_change, seen_of

HERE, THERE = "192.0.2.1", "192.0.2.2"
HOST = "/run/netns/host-1"
BRIDGES = {"a1": "cfb-a", "a2": "cfb-b"}
WIRE = {"external": Uplink(interface="eth1", is_bridge=False, mtu=1400)}
BRIDGE = {"external": Uplink(interface="br-ex", is_bridge=True, mtu=1500)}
FLOATING = PlannedFloatingIp(address="203.0.113.50", fixed_address="10.1.0.5", fixed_network_id="a1")
GATEWAY = "203.0.113.1"
IFNAMSIZ = 15


def a_leg(network: str = "a1", address: str = "10.1.0.1", **changes: Any) -> RouterLeg:
    fields: dict[str, Any] = {
        "network_id": network,
        "subnet_id": f"5{network}",
        "address": address,
        "prefix_length": 24,
        "mac": "fa:16:3e:00:00:01",
    }
    return RouterLeg(**fields | changes)


def an_outside(**changes: Any) -> RouterOutside:
    fields: dict[str, Any] = {
        "physical_network": "external",
        "mtu": 1500,
        "mac": "fa:16:3e:00:00:09",
        "subnets": (OutsideSubnet(cidr="203.0.113.0/24", gateway=GATEWAY),),
        "addresses": ("203.0.113.10",),
        "gateway_tunnel_address": THERE,
    }
    return RouterOutside(**fields | changes)


def a_router(**changes: Any) -> PlannedRouter:
    fields: dict[str, Any] = {
        "id": "beef",
        "vni": 77,
        "legs": (a_leg(), a_leg("a2", "10.2.0.1", mac="fa:16:3e:00:00:02")),
        "outside": an_outside(),
    }
    return PlannedRouter(**fields | changes)


def a_plan(router: PlannedRouter, *subnets: PlannedSubnet) -> NetworkPlan:
    return NetworkPlan(
        tunnel_address=HERE,
        networks=(
            PlannedNetwork(id="a1", vni=1, mtu=1450, subnets=subnets),
            PlannedNetwork(id="a2", vni=2, mtu=1300),
        ),
        routers=(router,),
    )


def spaced(router: PlannedRouter, *subnets: PlannedSubnet, uplinks: dict[str, Uplink] = WIRE) -> Space:
    return space(router, a_plan(router, *subnets), BRIDGES, uplinks, host=HOST)


def names(made: Space) -> list[str]:
    return [link.name for link in made.links]


# ------------------------------------------------------------------ what it is


def test_hosts_of_one_machine_have_routers_of_their_own() -> None:
    assert router_namespace(HOST, "beef") != router_namespace("/run/netns/host-2", "beef")
    assert router_namespace(HOST, "beef").startswith(router_prefix(HOST))
    # By it, who ends a simulated host finds what was the host's.
    assert router_prefix(HOST) == "host-1.cfr-"
    assert router_prefix("net:[4026531840]") != router_prefix("net:[4026531841]")


def test_a_router_that_leads_nowhere_has_legs_and_nothing_else() -> None:
    made = spaced(a_router(outside=None))

    assert len(made.links) == 2
    assert {address for _, address in made.addresses} == {"10.1.0.1/24", "10.2.0.1/24"}
    assert (made.routes, made.neighbours, made.announced) == (frozenset(), frozenset(), frozenset())


def test_where_it_is_neither_gateway_nor_has_a_floating_ip_everything_goes_by_the_transit() -> None:
    made = spaced(a_router())
    mac = transit_mac("beef", THERE)

    assert names(made)[2:] == [TRANSIT]
    assert made.routes == {
        Route(MAIN_TABLE, "0.0.0.0/0", "169.254.0.1", TRANSIT),
        Route(MAIN_TABLE, "::/0", "fe80::1", TRANSIT),
    }
    assert made.remotes == {(TRANSIT, mac, THERE)}
    assert {each[2] for each in made.neighbours} == {mac}
    # One that sends to its own MAC is not listened to.
    assert transit_mac("beef", HERE) != mac


def test_a_floating_ip_has_a_way_out_of_its_own_here() -> None:
    made = spaced(a_router(outside=an_outside(floating_ips=(FLOATING,))))

    assert names(made)[2:] == ["outside", TRANSIT]
    assert Route(OUTSIDE_TABLE, "0.0.0.0/0", GATEWAY, "outside") in made.routes
    assert Route(MAIN_TABLE, "0.0.0.0/0", "169.254.0.1", TRANSIT) in made.routes
    # The router's own address is where it leads out.
    assert made.announced == {("fa:16:3e:00:00:09", "203.0.113.50")}


def test_the_gateway_has_the_routers_address_and_sends_nothing_by_the_transit() -> None:
    made = spaced(a_router(outside=an_outside(is_gateway=True)))

    assert Route(MAIN_TABLE, "0.0.0.0/0", GATEWAY, "outside") in made.routes
    assert ("outside", "203.0.113.10/32") in made.addresses
    assert TRANSIT in names(made)
    assert not [route for route in made.routes if route.device == TRANSIT]


def test_of_several_external_ranges_the_one_of_the_routers_address_leads_on() -> None:
    ranges = (
        OutsideSubnet(cidr="198.51.100.0/24", gateway="198.51.100.1"),
        OutsideSubnet(cidr="203.0.113.0/24", gateway=GATEWAY),
    )
    made = spaced(a_router(outside=an_outside(is_gateway=True, subnets=ranges)))

    assert [route.via for route in made.routes if route.destination == "0.0.0.0/0"] == [GATEWAY] * 2
    assert Route(MAIN_TABLE, "198.51.100.0/24", "", "outside") in made.routes


@pytest.mark.parametrize(("uplinks", "kind", "mtu"), [(WIRE, "macvlan", 1400), (BRIDGE, "veth", 1500)])
def test_outside_it_is_a_port_of_a_bridge_or_shares_an_interface(
    uplinks: dict[str, Uplink], kind: str, mtu: int
) -> None:
    made = spaced(a_router(outside=an_outside(is_gateway=True)), uplinks=uplinks)
    (outside,) = (link for link in made.links if link.name == "outside")

    assert f" type {kind}" in outside.make
    assert outside.mtu == mtu
    assert bool(outside.join) == (kind == "veth")


def test_the_transit_carries_what_the_widest_network_does() -> None:
    (transit,) = (link for link in spaced(a_router()).links if link.name == TRANSIT)

    assert transit.mtu == 1450


def test_an_ipv6_subnet_hears_of_the_router_and_is_sent_to_dhcp() -> None:
    leg = a_leg(address="fd00::1", prefix_length=64)
    subnet = PlannedSubnet(id=leg.subnet_id, cidr="fd00::/64", dns_servers=("2001:db8::53",))
    made = spaced(a_router(legs=(leg,)), subnet)

    (said,) = made.advertisements
    assert (said.prefix, said.mtu, said.managed, said.dns_servers) == (
        "fd00::/64",
        1450,
        True,
        ("2001:db8::53",),
    )
    assert made.links[0].has_link_local


def test_names_of_interfaces_fit_the_kernel() -> None:
    for link in spaced(a_router(outside=an_outside(is_gateway=True)), uplinks=BRIDGE).links:
        words = link.make.split()
        for name in (words[words.index("name") + 1], link.name):
            assert len(name) <= IFNAMSIZ


@pytest.mark.parametrize(
    "broken",
    [
        a_router(id="x; reboot"),
        a_router(legs=(a_leg(mac="fa:16:3e:00:00:01 netns 1"),)),
        a_router(legs=(a_leg(address="10.1.0.1 dev lo"),)),
        a_router(legs=(a_leg("a3"),)),
        a_router(legs=(a_leg(address="fd00::1%\nlink del lo", prefix_length=64),)),
        a_router(outside=an_outside(is_gateway=True, addresses=("fd00::9%\nlink del lo",))),
        a_router(
            outside=an_outside(is_gateway=True, subnets=(OutsideSubnet(cidr="fd00::%\nlink del lo/64"),))
        ),
        a_router(outside=an_outside(gateway_tunnel_address="fd00::9%\nlink del lo")),
        a_router(outside=an_outside(is_gateway=True, addresses=("203.0.113.10\nlink del lo",))),
        a_router(outside=an_outside(is_gateway=True, mac="zz")),
        a_router(outside=an_outside(gateway_tunnel_address="there")),
        a_router(outside=an_outside(floating_ips=(replace(FLOATING, fixed_address="10.1.0.5 drop"),))),
    ],
)
def test_what_is_none_never_reaches_a_program(broken: PlannedRouter) -> None:
    with pytest.raises(
        ValueError, match=r"does not match|does not appear|not planned|Only decimal digits|has a zone"
    ):
        spaced(broken)


def test_where_nothing_leads_out_the_rest_is_made_all_the_same() -> None:
    lost = spaced(a_router(outside=an_outside(floating_ips=(FLOATING,), physical_network="moon")))
    nowhere = spaced(a_router(outside=an_outside(physical_network="moon")))

    assert "moon" in lost.problem
    assert (lost.links, lost.routes, lost.announced) == (PLAIN.links, PLAIN.routes, frozenset())
    # It leads nowhere from here anyway.
    assert nowhere.problem == ""


def test_physical_networks_matter_only_where_something_leads_out() -> None:
    assert uplinks_needed(a_plan(a_router())) == frozenset()
    assert uplinks_needed(a_plan(a_router(outside=an_outside(is_gateway=True)))) == {"external"}
    assert uplinks_needed(a_plan(a_router(outside=an_outside(floating_ips=(FLOATING,))))) == {"external"}


# ------------------------------------------------------------------ how it gets there


PLAIN = spaced(a_router())
FLOATED = spaced(a_router(outside=an_outside(floating_ips=(FLOATING,))))
LEADING = spaced(a_router(outside=an_outside(is_gateway=True)))


@pytest.mark.parametrize("made", [PLAIN, FLOATED, LEADING])
def test_what_is_as_it_must_be_takes_no_line(made: Space) -> None:
    todo = routing_change(seen_of(made), made, joins_anew=False)

    assert (todo.removing, todo.making, todo.pinning, todo.settling, todo.bridge) == ((), (), (), (), ())


def test_another_process_touches_only_the_other_ends_of_what_is_there() -> None:
    todo = routing_change(seen_of(PLAIN), PLAIN, joins_anew=True)

    assert not [line for line in todo.making if line.startswith("link add")]
    assert not [line for line in todo.settling if not line.startswith("link set")]


def test_a_new_router_is_marked_before_it_is_used_and_addressed_before_it_routes() -> None:
    todo = routing_change(Seen(), LEADING, joins_anew=True)
    verbs = [" ".join(line.split()[:2]) for line in todo.settling]

    assert verbs.index("link set") < verbs.index("address add") < verbs.index("rule add")
    assert verbs.index("rule add") < verbs.index("route replace")
    routes = [line for line in todo.settling if line.startswith("route replace")]
    # What is beside the router comes first: the kernel asks that the next hop be there.
    assert [" via " in line for line in routes] == sorted(" via " in line for line in routes)


def test_a_floating_ip_that_comes_adds_an_interface_and_moves_nothing_else() -> None:
    todo = routing_change(seen_of(PLAIN), FLOATED, joins_anew=False)

    assert todo.removing == ()
    assert len(todo.making) == 1
    assert {line.split()[-1] for line in todo.settling if line.startswith("route del")} == set()
    assert not [line for line in todo.settling if "leg" in line or TRANSIT in line]


def test_routes_that_an_interface_takes_along_are_not_removed_once_more() -> None:
    todo = routing_change(seen_of(FLOATED), PLAIN, joins_anew=False)

    assert todo.removing == ("link del dev outside",)
    assert todo.settling == ()


def test_the_way_out_is_turned_without_a_moment_without_one() -> None:
    todo = routing_change(seen_of(LEADING), FLOATED, joins_anew=False)

    assert [
        line for line in todo.settling if line.startswith("route replace 0.0.0.0/0") and "main" not in line
    ]
    assert not [line for line in todo.settling if line.startswith("route del 0.0.0.0/0")]


def test_routes_lost_with_the_last_address_are_put_back() -> None:
    """Without an IPv4 address an interface keeps no IPv4 route, though it be the gateway's."""
    bare = an_outside(is_gateway=True, addresses=(), snat=False)
    before = spaced(a_router(outside=replace(bare, floating_ips=(FLOATING,))))
    todo = routing_change(seen_of(before), spaced(a_router(outside=bare)), joins_anew=False)

    kinds = [" ".join(line.split()[:2]) for line in todo.settling]
    assert kinds.index("address del") < kinds.index("route replace")


def test_an_interface_marked_otherwise_is_made_anew() -> None:
    moved = {"external": Uplink(interface="eth2", is_bridge=False, mtu=1400)}
    router = a_router(outside=an_outside(is_gateway=True))
    todo = routing_change(seen_of(spaced(router)), spaced(router, uplinks=moved), joins_anew=False)

    assert todo.removing == ("link del dev outside",)
    assert len(todo.making) == 1
    assert [line for line in todo.settling if line.startswith("address add 203.0.113.10")]


def test_a_host_that_was_away_takes_no_address_outside_before_it_is_told() -> None:
    made = held_back(LEADING, Seen())

    assert {at for at, _ in made.addresses} == {at for at, _ in LEADING.addresses} - {"outside"}
    assert made.announced == frozenset()
    assert (made.routes, made.links) == (LEADING.routes, LEADING.links)
    # When it is told, that is a change like any other.
    todo = routing_change(seen_of(made), LEADING, joins_anew=False)
    assert [line for line in todo.settling if line.startswith("address add")]
    assert len(todo.settling) == 1


def test_addresses_outside_that_are_there_stay_though_nobody_says_so() -> None:
    assert held_back(LEADING, seen_of(LEADING)).addresses == LEADING.addresses
    # Unless their interface goes: then they would be new ones.
    moved = spaced(a_router(outside=an_outside(is_gateway=True, mac="fa:16:3e:00:00:0a")))
    assert "outside" not in {at for at, _ in held_back(moved, seen_of(LEADING)).addresses}


def test_what_the_kernel_says_is_read_as_what_was_made() -> None:
    links = [{"ifname": "lo", "mtu": 65536}]
    for link in LEADING.links:
        own = [address.split("/") for at, address in LEADING.addresses if at == link.name]
        links.append(
            {
                "ifname": link.name,
                "ifalias": link.mark,
                "mtu": link.mtu,
                "addr_info": [
                    *({"local": a, "prefixlen": int(n), "scope": "global"} for a, n in own),
                    {"local": "fe80::1", "prefixlen": 64, "scope": "link"},
                ],
            }
        )
    routes = [
        {
            "dst": "default" if route.destination.endswith("/0") else route.destination,
            "dev": route.device,
            **({"gateway": route.via} if route.via else {}),
            **({} if route.table == MAIN_TABLE else {"table": str(route.table)}),
        }
        for route in LEADING.routes
    ]

    seen = parsed(
        links=links,
        routes=routes,
        rules=[{"priority": number} for number in (0, 1000, 2000, 32766)],
        neighbours=[],
        remotes=[{"mac": "00:00:00:00:00:00"}],
    )

    assert seen == seen_of(LEADING)
