"""The script that is loaded into the kernel, as text; what it does there is tests/integration/hostd/test_data_plane.py's."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostd.core.ruleset import Plane, Subnet, ruleset, teardown
from hostd.core.tap_names import TapMark
from tests.conformance.guests import an_id

MARK = TapMark(
    instance_id=an_id("one"),
    placement_epoch=1,
    port_id=an_id("port"),
    mac="fa:16:3e:00:00:01",
    address="10.77.0.2",
)
PLANE = Plane(bridge="cellfabric0", subnets=(Subnet.of("10.77.0.1", 24),), taps=(MARK,))


def test_both_tables_are_replaced_whole_in_one_script() -> None:
    script = ruleset(PLANE)

    for family in ("bridge", "inet"):
        at = [script.index(f"{verb} table {family} cellfabric") for verb in ("add", "delete")]
        assert at == sorted(at)
        assert script.index(f"\ntable {family} cellfabric {{") > at[1]


def test_the_order_of_taps_changes_nothing() -> None:
    other = replace(MARK, port_id=an_id("other"), mac="fa:16:3e:00:00:02", address="10.77.0.3")

    assert ruleset(replace(PLANE, taps=(MARK, other))) == ruleset(replace(PLANE, taps=(other, MARK)))


def test_taps_that_no_rule_knows_are_dropped_after_those_that_are_known() -> None:
    script = ruleset(PLANE)

    assert script.index(f'"{MARK.tap}" : jump') < script.index('iifname "cft*" drop')
    assert 'iifname "cft*" drop' in ruleset(replace(PLANE, taps=()))


def test_a_tap_on_a_tenant_network_passes_here_before_the_unknown_are_dropped() -> None:
    script = ruleset(replace(PLANE, others=("cft0123456789ab",)))

    assert script.index('iifname { "cft0123456789ab" } accept') < script.index('iifname "cft*" drop')


def test_no_guest_sends_into_tunnels_by_the_hosts_address() -> None:
    forward = ruleset(PLANE).partition("chain forward")[2]

    assert forward.index("udp dport 4789 drop") < forward.index("ct state established,related accept")


def test_dhcp_is_asked_in_ones_own_name_and_in_one_piece() -> None:
    """Behind the first piece there would be a name that nobody has looked at."""
    chain = ruleset(PLANE).partition("chain from-")[2].partition("}\n  chain")[0]

    passes = chain.index("ip saddr 10.77.0.2 accept")
    assert chain.index("udp dport 67 @th,288,48 != { 0xfa163e000001 } drop") < passes
    assert chain.index("ip daddr { 10.77.0.1, 255.255.255.255 } ip frag-off & 0x3fff != 0 drop") < passes


def test_every_taps_chain_ends_in_drop() -> None:
    chains = ruleset(PLANE).split("chain from-")[1:]

    assert chains
    for chain in chains:
        assert chain.partition("\n  }")[0].rstrip().endswith("drop")


@pytest.mark.parametrize(
    "changed",
    [
        replace(PLANE, bridge='x" ; drop'),
        replace(PLANE, bridge="a-name-of-16-char"),
        replace(PLANE, blocked=("10.0.0.0/8; accept",)),
        replace(PLANE, taps=(replace(MARK, mac="fa:16:3e:00:00:01 accept"),)),
        replace(PLANE, taps=(replace(MARK, address="10.77.0.2, 10.77.0.3"),)),
    ],
)
def test_nothing_but_names_macs_and_addresses_gets_into_the_script(changed: Plane) -> None:
    with pytest.raises(ValueError, match=r".+"):
        ruleset(changed)


@given(st.text(max_size=30), st.text(max_size=30))
def test_a_port_can_write_no_rule(mac: str, address: str) -> None:
    """Whatever a port claims: either it is refused or the script has the shape it has for an honest one."""
    try:
        script = ruleset(replace(PLANE, taps=(replace(MARK, mac=mac, address=address),)))
    except ValueError:
        return
    assert script.replace(mac, MARK.mac).replace(address, MARK.address).split() == ruleset(PLANE).split()


def test_a_host_without_subnets_lets_nothing_out() -> None:
    script = ruleset(replace(PLANE, subnets=()))

    assert "masquerade" not in script
    assert "{  }" not in script


def test_the_link_local_block_is_always_closed_to_guests() -> None:
    assert "ip daddr { 169.254.0.0/16, 203.0.113.0/24 } drop" in ruleset(
        replace(PLANE, blocked=("203.0.113.0/24",))
    )


def test_a_blocked_network_may_lie_within_another() -> None:
    script = ruleset(replace(PLANE, blocked=("10.1.0.0/16", "10.0.0.0/8", "169.254.7.0/24")))

    assert "ip daddr { 10.0.0.0/8, 169.254.0.0/16 } drop" in script


def test_teardown_removes_what_a_ruleset_makes() -> None:
    assert teardown().count("delete table") == ruleset(PLANE).count("delete table") == 2
