"""Under which address something leaves, and what is forgotten when that is no longer so. What it does to packets is tested on a kernel."""

from __future__ import annotations

import ipaddress

import pytest

from fabric.model.network_plan import (
    OutsideSubnet,
    PlannedFloatingIp,
    PlannedRouter,
    RouterLeg,
    RouterOutside,
)
from hostd.core.connections import Connection, Tuple
from hostd.core.nftables import Table, change
from hostd.core.router_table import Translations, router_tables, stale

TCP = 6
OWN, FLOATING, FIXED, WORLD = "203.0.113.10", "203.0.113.50", "10.1.0.5", "198.51.100.7"


def a_router(
    *floating: tuple[str, str], is_gateway: bool = True, snat: bool = True, six: bool = False
) -> PlannedRouter:
    legs = [
        RouterLeg(
            network_id="a", subnet_id="b", address="10.1.0.1", prefix_length=24, mac="02:00:00:00:00:01"
        )
    ]
    if six:
        legs.append(
            RouterLeg(
                network_id="a", subnet_id="c", address="fd00::1", prefix_length=64, mac="02:00:00:00:00:02"
            )
        )
    return PlannedRouter(
        id="beef",
        vni=7,
        legs=tuple(legs),
        outside=RouterOutside(
            physical_network="external",
            mtu=1500,
            mac="02:00:00:00:00:09",
            subnets=(OutsideSubnet(cidr="203.0.113.0/24"),),
            addresses=(OWN,),
            is_gateway=is_gateway,
            snat=snat,
            floating_ips=tuple(
                PlannedFloatingIp(address=public, fixed_address=fixed, fixed_network_id="a")
                for public, fixed in floating
            ),
        ),
    )


def four(router: PlannedRouter) -> Table:
    return router_tables(router)[0]


def rules(router: PlannedRouter, chain: str) -> str:
    return "\n".join(four(router).chains[chain].rules)


def elements(router: PlannedRouter, name: str) -> frozenset[str]:
    return four(router).sets[name].elements


def test_a_floating_ip_more_is_an_element_more_and_no_rule() -> None:
    script = change(
        four(a_router((FLOATING, FIXED))),
        four(a_router((FLOATING, FIXED), ("203.0.113.51", "10.1.0.6"))),
    )

    assert script
    assert all(line.startswith("add element") for line in script.splitlines())
    assert FLOATING not in script


def test_only_the_gateway_sends_under_the_routers_address() -> None:
    assert f"ip saddr @inside snat to {OWN}" in rules(a_router(), "translated-out")
    assert OWN not in rules(a_router(is_gateway=False), "translated-out")
    assert f"ip saddr @inside snat to {OWN}" not in rules(a_router(snat=False), "translated-out")


def test_outside_only_those_addresses_are_seen_that_may_be() -> None:
    inside = frozenset({"10.1.0.0/24"})

    assert elements(a_router((FLOATING, FIXED)), "shown") == {OWN, FLOATING}
    assert elements(a_router((FLOATING, FIXED), is_gateway=False), "shown") == {FLOATING}
    assert elements(a_router(snat=False), "shown") == {OWN} | inside
    # Without SNAT as well, who has a floating IP is seen under that.
    assert "@floated drop" in rules(a_router(snat=False), "guarded")
    passed = four(a_router(snat=False)).chains["passed"].rules
    assert [rule for rule in passed if "drop" in rule and "saddr" not in rule] == [
        "ip daddr 169.254.0.0/16 drop"
    ]


@pytest.mark.parametrize("snat", [True, False])
def test_what_comes_from_outside_never_has_an_address_of_inside(snat: bool) -> None:
    """Whoever could send to an external network sent to a floating IP under the address of a neighbour of the port behind it, and the
    port's group let it in: "members may come in" is by address. Over IPv6 no floating IP was needed.
    """
    fours, sixes = router_tables(a_router((FLOATING, FIXED), snat=snat, six=True))

    for table, family in ((fours, "ip"), (sixes, "ip6")):
        chain = table.chains["passed"].rules
        refused = chain.index(f'iifname "outside" {family} saddr @inside drop')
        assert not any("accept" in rule for rule in chain[:refused])


def test_ipv6_is_translated_nowhere_and_leaves_from_its_own_ranges() -> None:
    fours, sixes = router_tables(a_router(six=True))

    assert fours == four(a_router())
    assert sixes.sets["inside"].elements == {"fd00::/64"}
    assert "ip6 saddr != @inside drop" in sixes.chains["passed"].rules[0]


def test_an_address_that_is_none_never_reaches_nftables() -> None:
    with pytest.raises(ValueError, match=r"Expected 4 octets|Only decimal digits"):
        four(a_router((f"{FLOATING}; drop", FIXED)))


def a_connection(source: str, destination: str, *, behind: str = "", shown: str = "") -> Connection:
    """From source to destination; `behind` is who it was led to, `shown` under which address the source appeared there."""

    def at(word: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        return ipaddress.ip_address(word)

    return Connection(
        zone=0,
        protocol=TCP,
        original=Tuple(at(source), at(destination), 40_000, 22),
        reply=Tuple(at(behind or destination), at(shown or source), 22, 40_000),
    )


INWARD = a_connection(WORLD, FLOATING, behind=FIXED)
OUTWARD = a_connection(FIXED, WORLD, shown=FLOATING)
UNDER_OWN = a_connection("10.1.0.9", WORLD, shown=OWN)
HAIRPIN = a_connection("10.1.0.9", FLOATING, behind=FIXED, shown=OWN)
PLAIN = a_connection(FIXED, "10.1.0.1")
SIX = a_connection("fd00::5", "fd00::6", behind="fd00::7")
ALL = [INWARD, OUTWARD, UNDER_OWN, HAIRPIN, PLAIN, SIX]


@pytest.mark.parametrize(
    ("router", "goes"),
    [
        (a_router((FLOATING, FIXED)), []),
        (a_router(), [INWARD, OUTWARD, HAIRPIN]),
        (a_router((FLOATING, "10.1.0.77")), [INWARD, OUTWARD, HAIRPIN]),
        (a_router(("203.0.113.51", FIXED)), [INWARD, OUTWARD, HAIRPIN]),
        # The router's address went to another host.
        (a_router((FLOATING, FIXED), is_gateway=False), [UNDER_OWN, HAIRPIN]),
    ],
)
def test_what_is_translated_as_nothing_is_any_longer_is_forgotten(
    router: PlannedRouter, goes: list[Connection]
) -> None:
    assert list(stale(ALL, Translations.of(router))) == goes
