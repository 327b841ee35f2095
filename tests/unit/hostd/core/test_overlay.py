"""Layer 2 as values; what the commands do to a kernel is tests/integration/hostd/test_tenant_networks.py's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fabric.model.network_plan import Neighbour, NetworkPlan, PlannedNetwork
from hostd.core.firewall import link_local
from hostd.core.overlay import (
    Bridge,
    Overlay,
    ServicePort,
    TapPort,
    Tunnel,
    bridge_name,
    kept_of,
    network_alias,
    network_of,
    service_mac,
    service_port_name,
    tunnel_name,
    wanted,
)
from hostd.core.overlay_change import Change, change
from hostd.core.tap_names import TapMark
from tests.conformance.guests import an_id

HERE, THERE = "192.0.2.1", "192.0.2.2"
NET = an_id("network")
MAC = "fa:16:3e:00:00:01"
NEIGHBOUR = Neighbour(port_id=an_id("far"), mac=MAC, addresses=("10.0.0.5", "fd00::5"), tunnel_address=THERE)
PLAN = NetworkPlan(
    tunnel_address=HERE,
    networks=(PlannedNetwork(id=NET, vni=7, mtu=1450, neighbours=(NEIGHBOUR,)),),
)
TAP = TapPort(
    mark=TapMark(
        instance_id=an_id("guest"),
        placement_epoch=1,
        port_id=an_id("port"),
        mac="fa:16:3e:00:00:02",
        network_id=NET,
    ),
    mtu=1450,
)
BRIDGE, TUNNEL, SERVICE = bridge_name(NET), tunnel_name(NET), service_port_name(NET)
NOTHING = Change()


def an_overlay(plan: NetworkPlan = PLAN, *taps: TapPort, kept: Overlay | None = None) -> Overlay:
    return wanted(plan, taps, {network.id: "cfn-x" for network in plan.networks}, kept or Overlay())


def said(made: Change) -> list[str]:
    return [*made.ip_made, *made.ip, *made.bridge]


def test_names_fit_the_kernel_and_alias_says_the_network() -> None:
    assert {len(name) for name in (BRIDGE, TUNNEL, SERVICE)} == {15}
    assert network_of(network_alias(NET)) == NET
    assert network_of("somebody else's") is None
    assert network_of("") is None


def test_from_there_to_there_is_no_command() -> None:
    overlay = an_overlay(PLAN, TAP)

    assert change(overlay, overlay) == NOTHING


def test_from_nothing_every_port_is_closed_before_it_is_up() -> None:
    lines = change(Overlay(), an_overlay(PLAN, TAP)).ip

    for port in (TUNNEL, SERVICE, TAP.mark.tap if TAP.mark else ""):
        flags = next(line for line in lines if f"dev {port} type bridge_slave" in line)
        assert "learning off flood off" in flags
        assert lines.index(flags) < lines.index(f"link set dev {port} up")


def test_nothing_is_flooded_into_a_tunnel() -> None:
    lines = said(change(Overlay(), an_overlay()))

    (flags,) = [line for line in lines if f"dev {TUNNEL} type bridge_slave" in line]
    assert "mcast_flood off bcast_flood off neigh_suppress on" in flags
    assert not [line for line in lines if "00:00:00:00:00:00" in line]
    assert any("nolearning" in line for line in lines if f"name {TUNNEL}" in line)


def test_a_neighbour_is_answered_for_and_found_behind_its_host() -> None:
    overlay = an_overlay()

    assert overlay.pins[BRIDGE, MAC] == TUNNEL
    assert overlay.remotes == {(TUNNEL, MAC): THERE}
    assert {address for _, address in overlay.answers} == {"10.0.0.5", "fd00::5", link_local(MAC)}


def test_a_neighbour_more_is_two_lines_for_the_bridge_and_its_addresses() -> None:
    more = replace(NEIGHBOUR, port_id=an_id("further"), mac="fa:16:3e:00:00:09", addresses=("10.0.0.9",))
    plan = replace(PLAN, networks=(replace(PLAN.networks[0], neighbours=(NEIGHBOUR, more)),))

    made = change(an_overlay(), an_overlay(plan))

    assert made.ip_made == ()
    assert len(made.ip) == 2
    assert made.bridge == (
        f"fdb replace {more.mac} dev {TUNNEL} master static",
        f"fdb replace {more.mac} dev {TUNNEL} dst {THERE} self static",
    )


def test_a_neighbour_on_another_host_is_repointed_and_nothing_else() -> None:
    moved = replace(
        PLAN,
        networks=(replace(PLAN.networks[0], neighbours=(replace(NEIGHBOUR, tunnel_address="192.0.2.3"),)),),
    )

    assert said(change(an_overlay(), an_overlay(moved))) == [
        f"fdb replace {MAC} dev {TUNNEL} dst 192.0.2.3 self static"
    ]


def test_a_neighbour_that_is_wired_here_is_none() -> None:
    here = replace(NEIGHBOUR, mac="fa:16:3e:00:00:02")
    plan = replace(PLAN, networks=(replace(PLAN.networks[0], neighbours=(here,)),))

    overlay = an_overlay(plan, TAP)

    assert overlay.remotes == {}
    assert overlay.answers == {}
    assert TAP.mark is not None
    assert overlay.pins[BRIDGE, here.mac] == TAP.mark.tap


@pytest.mark.parametrize("tunnel_address", ["", HERE])
def test_a_neighbour_without_another_host_is_none(tunnel_address: str) -> None:
    plan = replace(
        PLAN,
        networks=(
            replace(PLAN.networks[0], neighbours=(replace(NEIGHBOUR, tunnel_address=tunnel_address),)),
        ),
    )

    assert an_overlay(plan).remotes == {}


def test_a_host_without_a_tunnel_address_has_its_networks_by_itself() -> None:
    overlay = an_overlay(replace(PLAN, tunnel_address=""))

    assert set(overlay.links) == {BRIDGE, SERVICE}
    assert overlay.answers == {}


@pytest.mark.parametrize(("vni", "local"), [(8, HERE), (7, "192.0.2.9")])
def test_a_tunnel_that_is_to_be_another_is_made_anew_with_its_entries(vni: int, local: str) -> None:
    plan = replace(PLAN, networks=(replace(PLAN.networks[0], vni=vni),), tunnel_address=local)

    made = change(an_overlay(), an_overlay(plan))

    assert f"link del dev {TUNNEL}" in made.ip_made
    assert any(line.startswith(f"link add name {TUNNEL}") for line in made.ip)
    assert f"fdb replace {MAC} dev {TUNNEL} master static" in made.bridge
    assert not [line for line in said(made) if BRIDGE in line and "link" in line and "master" not in line]


def test_what_is_wanted_no_more_goes_ports_first_and_takes_its_entries_along() -> None:
    made = change(an_overlay(), Overlay())

    assert made.ip_made[-1] == f"link del dev {BRIDGE}"
    assert len(made.ip_made) == 3
    assert (made.ip, made.bridge) == ((), ())


def test_a_guests_tap_is_not_removed_here() -> None:
    assert TAP.mark is not None
    made = change(an_overlay(PLAN, TAP), an_overlay())

    assert not [line for line in said(made) if TAP.mark.tap in line]


def test_what_a_guest_still_uses_stays_as_it_is() -> None:
    have = an_overlay(PLAN, TAP)
    kept = kept_of(have, {NET})

    overlay = an_overlay(NetworkPlan(), TAP, kept=kept)

    assert change(have, overlay) == NOTHING


def test_a_link_whose_settings_were_not_looked_at_is_set_again_and_not_made_again() -> None:
    want = an_overlay()
    seen = replace(
        want,
        links={
            BRIDGE: Bridge(name=BRIDGE, network_id=NET, mtu=0),
            TUNNEL: Tunnel(name=TUNNEL, network_id=NET, mtu=0, vni=7, local=HERE),
            SERVICE: ServicePort(name=SERVICE, network_id=NET, mtu=0, namespace=""),
        },
    )

    made = change(seen, want)

    assert not [line for line in said(made) if "link add" in line or "link del" in line or "fdb" in line]
    assert f"link set dev {TUNNEL} up" in made.ip


def test_a_tap_that_is_there_unmarked_is_marked_and_not_made() -> None:
    assert TAP.mark is not None
    seen = an_overlay().seeing_taps(frozenset({TAP.mark.tap}))

    lines = change(seen, an_overlay(PLAN, TAP)).ip

    assert not [line for line in lines if "tuntap" in line]
    assert any("alias" in line and TAP.mark.tap in line for line in lines)


def test_a_tap_is_touched_by_none_of_what_comes_before_its_filter() -> None:
    assert TAP.mark is not None
    for have in (Overlay(), Overlay().seeing_taps(frozenset({TAP.mark.tap})), an_overlay(PLAN, TAP)):
        want = an_overlay(PLAN, TAP)
        first = want.with_taps_of(have)

        assert not [line for line in said(change(have, first)) if TAP.mark.tap in line]
        touched = [line for line in said(change(first, want)) if TAP.mark.tap in line]
        assert bool(touched) == (have.links.get(TAP.mark.tap) != TAP)


def test_a_tap_that_went_by_itself_is_made_again() -> None:
    lines = change(an_overlay(PLAN, TAP).seeing_taps(frozenset()), an_overlay(PLAN, TAP))

    assert any("tuntap add" in line for line in lines.ip)
    assert any("master static" in line for line in lines.bridge)


@pytest.mark.parametrize(
    "neighbour",
    [
        replace(NEIGHBOUR, mac="fa:16:3e:00:00:01 dev eth0"),
        replace(NEIGHBOUR, addresses=("10.0.0.5\nlink del dev eth0",)),
        # What is behind % is a zone (RFC 4007), and may be any text.
        replace(NEIGHBOUR, addresses=("fd00::5%\nlink del dev eth0",)),
        replace(NEIGHBOUR, tunnel_address="fd00::5%\nlink del dev eth0"),
        replace(NEIGHBOUR, tunnel_address="192.0.2.2 self"),
    ],
)
def test_words_that_are_no_addresses_are_refused(neighbour: Neighbour) -> None:
    network = replace(PLAN.networks[0], neighbours=(neighbour,))

    with pytest.raises(ValueError, match=r"does not match|does not appear|has a zone"):
        an_overlay(replace(PLAN, networks=(network,)))


def test_services_have_one_mac_on_every_host() -> None:
    assert an_overlay().pins[BRIDGE, service_mac(NET)] == SERVICE
    assert service_mac(NET) != service_mac(an_id("other"))
