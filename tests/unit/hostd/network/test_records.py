"""What is on disk of wirings and plans: read back as it was, or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fabric.model.firewall import AddressSet, Direction, EtherType, FilterRule, PortRange, RuleGroup
from fabric.model.network import HostRoute
from fabric.model.network_plan import (
    Neighbour,
    NetworkPlan,
    OutsideSubnet,
    PlannedFloatingIp,
    PlannedRouter,
    RouterLeg,
    RouterOutside,
)
from hostd.network.base import Wiring
from hostd.network.records import PlanRecord, WiringRecords
from tests.conformance.guests import a_guest, a_plan, a_port, a_tenant_port, an_id

GUEST = a_guest("guest", ports=(a_tenant_port(1), a_port(2)), user_data=b"#!/bin/sh\n\xff")


def a_full_plan() -> NetworkPlan:
    """A plan in which nothing is left as it is by default."""
    plan = a_plan(GUEST, tunnel_address="192.0.2.1")
    (network,) = plan.networks
    four, six = network.subnets
    rule = FilterRule(
        direction=Direction.INGRESS,
        ether_type=EtherType.IPV4,
        protocol=6,
        ports=PortRange(first=22, last=23),
        remote_set="members",
        id="rule",
    )
    route = HostRoute(destination="10.9.0.0/16", next_hop="10.0.0.9")
    neighbour = Neighbour(
        port_id=an_id("far"), mac="fa:16:3e:00:00:09", addresses=("10.0.0.9",), tunnel_address="192.0.2.2"
    )
    outside = RouterOutside(
        physical_network="outside",
        mtu=1500,
        mac="fa:16:3e:99:00:02",
        subnets=(OutsideSubnet(cidr="203.0.113.0/24", gateway="203.0.113.1"),),
        addresses=("203.0.113.9",),
        is_gateway=True,
        floating_ips=(
            PlannedFloatingIp(address="203.0.113.10", fixed_address="10.0.0.11", fixed_network_id=network.id),
        ),
    )
    leg = RouterLeg(
        network_id=network.id,
        subnet_id=four.id,
        address="10.0.0.1",
        prefix_length=24,
        mac="fa:16:3e:99:00:01",
    )
    return replace(
        plan,
        networks=(
            replace(network, subnets=(replace(four, host_routes=(route,)), six), neighbours=(neighbour,)),
        ),
        routers=(PlannedRouter(id=an_id("router"), vni=9, legs=(leg,), outside=outside),),
        filters=replace(
            plan.filters,
            groups=(RuleGroup(id="everything", rules=frozenset({rule})),),
            sets=(AddressSet(name="members", members=frozenset({"10.0.0.5/32", "fd00::5/128"})),),
        ),
    )


def test_a_plan_is_read_back_as_it_was(tmp_path: Path) -> None:
    record = PlanRecord(tmp_path / "state" / "plan.json")
    assert record.read() is None

    record.write(a_full_plan())
    assert record.read() == a_full_plan()

    record.remove()
    record.remove()
    assert record.read() is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"filters": {"ports": [{}]}}', b'{"networks": 3}'])
def test_a_plan_that_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    """Then the conductor's next one is waited for, and meanwhile nothing is taken for a stray."""
    (tmp_path / "plan.json").write_bytes(content)

    assert PlanRecord(tmp_path / "plan.json").read() is None


def test_a_wiring_with_ports_of_both_kinds_is_read_back_as_it_was(tmp_path: Path) -> None:
    records = WiringRecords(tmp_path)
    wiring = Wiring(guest=GUEST, placement_epoch=3)

    records.write(wiring)

    assert list(records.read()) == [wiring]
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_a_wiring_that_cannot_be_read_is_left_alone(tmp_path: Path) -> None:
    records = WiringRecords(tmp_path)
    records.write(Wiring(guest=GUEST, placement_epoch=3))
    (tmp_path / "broken.json").write_bytes(b"{")

    assert [wiring.guest.id for wiring in records.read()] == [GUEST.id]
    assert (tmp_path / "broken.json").exists()


def test_a_record_that_goes_leaves_nothing_of_itself(tmp_path: Path) -> None:
    """A daemon that died as it wrote one left its guest's user data on the disk for good, whatever became of the guest."""
    records = WiringRecords(tmp_path)
    records.write(Wiring(guest=GUEST, placement_epoch=3))
    (tmp_path / f"{GUEST.id}.part").write_bytes(b"{")

    records.remove(GUEST.id)
    records.remove(GUEST.id)

    assert list(tmp_path.iterdir()) == []


def test_what_is_of_nobody_goes_readable_or_not(tmp_path: Path) -> None:
    """A record that could not be read was never known to be of a guest, and so never removed with it."""
    records, other = WiringRecords(tmp_path / "wires"), a_guest("other")
    records.sweep({GUEST.id})
    for guest in (GUEST, other):
        records.write(Wiring(guest=guest, placement_epoch=3))
    folder = tmp_path / "wires"
    for name in (f"{an_id('gone')}.json", f"{an_id('gone')}.part", f"{other.id}.json", "README"):
        (folder / name).write_bytes(b"{")

    records.sweep({GUEST.id})

    assert sorted(path.name for path in folder.iterdir()) == sorted((f"{GUEST.id}.json", "README"))
