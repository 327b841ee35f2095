"""Network plans on the wire: nothing is lost, equal plans are equal bytes, and nonsense is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import InvalidRequest
from fabric.model.firewall import (
    ICMP,
    TCP,
    AddressPair,
    AddressSet,
    Direction,
    EtherType,
    FilterRule,
    HostFilters,
    PortFilter,
    PortRange,
    RuleGroup,
)
from fabric.model.network import HostRoute
from fabric.model.network_plan import (
    Neighbour,
    NetworkPlan,
    OutsideSubnet,
    PlannedFloatingIp,
    PlannedNetwork,
    PlannedRouter,
    PlannedSubnet,
    RouterLeg,
    RouterOutside,
)
from fabric.pb.host.v1 import network_plan_pb2 as pb
from fabric.rpc.plan_codec import PlanPacker, pack_plan, unpack_plan

MAC = "fa:16:3e:00:00:01"

RULES = st.builds(
    FilterRule,
    direction=st.sampled_from(Direction),
    ether_type=st.just(EtherType.IPV4),
    protocol=st.just(TCP),
    ports=st.none()
    | st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(
        lambda ends: PortRange(first=min(ends), last=max(ends))
    ),
    remote_prefix=st.none() | st.sampled_from(["10.0.0.0/8", "0.0.0.0/0"]),
    id=st.text("ab", max_size=2),
)

PLAN = NetworkPlan(
    tunnel_address="192.0.2.1",
    networks=(
        PlannedNetwork(
            id="n",
            vni=(1 << 24) - 1,
            mtu=1450,
            subnets=(
                PlannedSubnet(
                    id="s",
                    cidr="10.0.0.0/24",
                    gateway="10.0.0.1",
                    service_address="10.0.0.2",
                    dhcp=False,
                    dns_servers=("9.9.9.9",),
                    host_routes=(HostRoute(destination="10.1.0.0/16", next_hop="10.0.0.9"),),
                ),
            ),
            neighbours=(
                Neighbour(port_id="q", mac=MAC, addresses=("10.0.0.5",), tunnel_address="192.0.2.2"),
            ),
        ),
    ),
    routers=(
        PlannedRouter(id="r0", vni=8),
        PlannedRouter(
            id="r1",
            vni=9,
            legs=(RouterLeg(network_id="n", subnet_id="s", address="10.0.0.1", prefix_length=24, mac=MAC),),
            outside=RouterOutside(
                physical_network="external",
                mtu=1500,
                mac=MAC,
                subnets=(OutsideSubnet(cidr="198.51.100.0/24", gateway="198.51.100.1"),),
                addresses=("198.51.100.7",),
                is_gateway=True,
                snat=False,
                floating_ips=(
                    PlannedFloatingIp(address="198.51.100.8", fixed_address="10.0.0.4", fixed_network_id="n"),
                ),
            ),
        ),
    ),
    filters=HostFilters(
        ports=(
            PortFilter(
                port_id="p",
                instance_id="i",
                network_id="n",
                tap="cft0",
                mac=MAC,
                addresses=("10.0.0.4", "fd00::4"),
                allowed_pairs=(AddressPair(prefix="10.0.0.128/25", mac=MAC),),
                port_security=True,
                groups=("g",),
            ),
        ),
        groups=(
            RuleGroup(
                id="g",
                rules=frozenset(
                    {
                        FilterRule(direction=Direction.EGRESS, ether_type=EtherType.IPV6),
                        FilterRule(
                            direction=Direction.INGRESS,
                            ether_type=EtherType.IPV4,
                            protocol=ICMP,
                            icmp_type=0,
                            icmp_code=0,
                            remote_set="g",
                            id="rule",
                        ),
                        FilterRule(
                            direction=Direction.INGRESS,
                            ether_type=EtherType.IPV4,
                            protocol=TCP,
                            ports=PortRange(first=0, last=0),
                        ),
                    }
                ),
            ),
        ),
        sets=(AddressSet(name="g", members=frozenset({"10.0.0.4", "10.0.0.128/25"})),),
    ),
)


def test_a_plan_comes_out_as_it_went_in() -> None:
    assert unpack_plan(pack_plan(PLAN)) == PLAN
    assert unpack_plan(pack_plan(NetworkPlan())) == NetworkPlan()


def test_what_no_rule_says_is_not_what_says_zero() -> None:
    found = {(rule.protocol, rule.icmp_type, rule.ports) for rule in PLAN.filters.groups[0].rules}

    (group,) = unpack_plan(pack_plan(PLAN)).filters.groups
    assert {(rule.protocol, rule.icmp_type, rule.ports) for rule in group.rules} == found
    assert {rule.id for rule in group.rules} == {"", "rule"}


@given(st.frozensets(RULES, max_size=8), st.frozensets(RULES, max_size=8))
def test_equal_plans_are_equal_bytes_whoever_packed_what_before(
    rules: frozenset[FilterRule], others: frozenset[FilterRule]
) -> None:
    plan = _with_rules(rules)
    packer = PlanPacker()
    packer.pack(_with_rules(others))

    once, again = packer.pack(plan), packer.pack(plan)

    assert once == again == pack_plan(_with_rules(frozenset(sorted(rules, key=repr))))
    assert unpack_plan(once) == plan


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        pb.NetworkPlan(groups=[pb.RuleGroup(id="g", rules=[pb.FilterRule()])]).SerializeToString(),
        pb.NetworkPlan(ports=[pb.PortFilter(port_id="p", groups=["g"])]).SerializeToString(),
        pb.NetworkPlan(sets=[pb.AddressSet(name="s", members=["nowhere"])]).SerializeToString(),
    ],
)
def test_what_is_no_plan_is_refused_as_such(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        unpack_plan(data)


def _with_rules(rules: frozenset[FilterRule]) -> NetworkPlan:
    return replace(PLAN, filters=HostFilters(groups=(RuleGroup(id="g", rules=rules),)))
