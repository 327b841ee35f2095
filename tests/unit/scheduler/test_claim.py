"""Claims: never over a host's capacity, one slot each, and everything compared that the decision was based on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import Bug
from fabric.model.host import Resources, SessionState, Use
from fabric.model.instance import Assignment, Instance
from fabric.model.network import NO_SLOT, Port
from fabric.model.placement import Decision
from fabric.model.states import TaskState, VmState, Want
from fabric.network.addresses import slot_limit
from fabric.scheduler.core.change import Change, together
from fabric.scheduler.core.claim import Chosen, Claim, claim, never_placed
from fabric.scheduler.core.picture import HostPicture, Seen
from fabric.store import keys
from tests.unit.scheduler.worlds import BIG, SMALL, Facts, build, fleets, host, picture, resources


def claimed(hosts: HostPicture, chosen: Sequence[Chosen], *, cell: str = "east") -> Claim:
    return claim(hosts, cell, chosen, now_ms=1000, op_id="op-1", deadline_s=600)


def on(name: str, instance_id: str, wants: Resources = SMALL, alternates: tuple[str, ...] = ()) -> Chosen:
    return Chosen(
        build=build(instance_id, wants, create_time_ms=500),
        decision=Decision(considered=1, host=name, cell="east", alternates=alternates),
    )


@given(
    fleet=fleets(),
    picks=st.lists(st.tuples(st.integers(0, 11), resources(6)), max_size=20),
)
def test_claims_never_pass_a_hosts_capacity_nor_give_an_address_twice(
    fleet: Sequence[Facts], picks: list[tuple[int, Resources]]
) -> None:
    """Whatever the decisions say: these are arbitrary."""
    chosen = [on(f"h{number}", f"i-{index}", wants) for index, (number, wants) in enumerate(picks)]

    result = claimed(picture(fleet), chosen)

    known = {each.host.name: each for each in fleet if each.host.cell == "east"}
    instances = [record for record in result.change.put.values() if isinstance(record, Instance)]
    assert {record.id for record in instances} == {each.instance_id for each in result.claimed}
    assert len(result.claimed) + len(result.left) == len(chosen)
    for name, use in result.uses.items():
        facts = known[name]
        before = facts.use or Use(host=name)
        mine = [record for record in instances if record.host == name]
        taken = sum((record.request.guest.resources() for record in mine), Resources())
        slots = [record.slot for record in mine]
        assert facts.host.capacity.covers(use.taken)
        assert use.claimed == before.claimed + taken
        assert use.instances == before.instances + len(mine)
        assert sorted(use.slots) == sorted([*before.slots, *slots])
        assert len(set(use.slots)) == len(use.slots)
        assert all(slot < slot_limit(facts.host) for slot in slots)
        assert facts.state is SessionState.UP
        assert facts.host.enabled


def test_a_claim_compares_all_it_was_based_on() -> None:
    hosts = picture([Facts(host=host("h"), use=Use(host="h"))])
    hosts.set_session("east", "h", Seen(hosts.session("east", "h").value, 7, 7))

    result = claimed(hosts, [on("h", "i-1")])

    assert result.change.unchanged == {
        "host/h": 1,
        "session/h": 7,
        "use/h": 1,
        "instance/i-1": 0,
        "over/i-1": 0,
    }
    assert set(result.change.put) == {"use/h", "assignment/h/i-1", "instance/i-1"}


def test_a_host_nothing_is_claimed_of_yet_has_no_use_record() -> None:
    result = claimed(picture([host("h")]), [on("h", "i-1")])

    assert result.change.unchanged["use/h"] == 0
    assert result.uses["h"] == Use(host="h", claimed=SMALL, instances=1, slots=(0,), op_id="op-1")


def test_a_placed_server_is_building_with_its_order_written() -> None:
    chosen = on("h", "i-1", alternates=("x", "y"))

    put = claimed(picture([host("h")]), [chosen]).change.put

    instance, order = put[keys.INSTANCE.at("i-1")], put[keys.ASSIGNMENT.at("h", "i-1")]
    assert isinstance(instance, Instance)
    assert isinstance(order, Assignment)
    assert (instance.vm_state, instance.task, instance.want) == (
        VmState.BUILDING,
        TaskState.SPAWNING,
        Want.RUN,
    )
    assert (instance.host, instance.placement_epoch, instance.generation, instance.attempt) == ("h", 1, 1, 1)
    assert (instance.create_time_ms, instance.task_start_ms, instance.task_deadline_ms) == (
        500,
        1000,
        601_000,
    )
    assert instance.alternates == ("x", "y")
    assert instance.decision == chosen.decision
    assert instance.op_id == "op-1"
    assert (order.placement_epoch, order.generation, order.want) == (1, 1, Want.RUN)
    assert order.guest.ports == instance.ports
    assert instance.ports[0].address == "10.1.0.10"
    assert order.guest.availability_zone == "z1"
    assert instance.request == chosen.build.request


def test_servers_on_one_host_share_its_use_record() -> None:
    result = claimed(picture([host("h")]), [on("h", "i-1"), on("h", "i-2")])

    assert result.uses["h"].slots == (0, 1)
    assert result.uses["h"].claimed == SMALL + SMALL
    assert [key for key in result.change.put if key.startswith("use/")] == ["use/h"]


def test_what_no_longer_fits_is_left_to_be_decided_again() -> None:
    result = claimed(
        picture([host("h", capacity=SMALL)]), [on("h", "i-1"), on("h", "i-2"), on("gone", "i-3")]
    )

    assert [each.instance_id for each in result.claimed] == ["i-1"]
    assert [each.instance_id for each in result.left] == ["i-2", "i-3"]


def test_twenty_claims_on_twenty_hosts_fit_one_transaction() -> None:
    """etcd takes at most 128 compares and 128 operations."""
    hosts = picture([host(f"h{number}") for number in range(20)])

    result = claimed(hosts, [on(f"h{number}", f"i-{number}") for number in range(20)])

    assert len(result.change.unchanged) <= 128
    assert len(result.change.put) <= 128


def test_a_server_without_a_host_is_an_error_with_its_decision() -> None:
    decision = Decision(considered=3, suggestion="a flavor with at most 1 vCPU would fit")

    change = never_placed(
        build("i-1", BIG, create_time_ms=5),
        fault_code="NO_VALID_HOST",
        message=decision.explain(),
        decision=decision,
        now_ms=9,
        op_id="op-2",
    )

    assert change.unchanged == {"instance/i-1": 0, "over/i-1": 0}
    (instance,) = change.put.values()
    assert isinstance(instance, Instance)
    assert (instance.vm_state, instance.task, instance.host) == (VmState.ERROR, TaskState.NONE, "")
    assert instance.decision == decision
    assert instance.fault is not None
    assert instance.fault.code == "NO_VALID_HOST"
    assert instance.fault.message


TENANT = Port(
    id="port",
    network_id="t",
    network_name="tenant",
    mac="fa:16:3e:00:00:07",
    address="10.0.0.7",
    prefix_length=24,
    gateway="10.0.0.1",
    vni=7,
)


def on_tenant_network(name: str, instance_id: str, network_id: str = "") -> Chosen:
    bare = on(name, instance_id)
    guest = replace(bare.build.request.guest, ports=(TENANT,))
    asked = replace(bare.build.request, guest=guest, network_id=network_id)
    return replace(bare, build=replace(bare.build, request=asked))


def test_a_server_on_tenant_networks_alone_takes_no_address_of_its_host() -> None:
    hosts = picture([Facts(host=host("h", slots=0, tunnel_address="192.0.2.1"))])

    result = claimed(hosts, [on_tenant_network("h", "i-1"), on_tenant_network("h", "i-2")])

    assert len(result.claimed) == 2
    assert (result.uses["h"].instances, result.uses["h"].slots) == (2, ())
    instance, order = result.change.put["instance/i-1"], result.change.put["assignment/h/i-1"]
    assert isinstance(instance, Instance)
    assert isinstance(order, Assignment)
    assert (instance.slot, instance.ports, order.guest.ports) == (NO_SLOT, (TENANT,), (TENANT,))


def test_a_server_on_both_kinds_of_networks_has_its_hosts_own_first() -> None:
    hosts = picture([Facts(host=host("h", tunnel_address="192.0.2.1"))])

    result = claimed(hosts, [on_tenant_network("h", "i-1", network_id="n-1")])

    instance = result.change.put["instance/i-1"]
    assert isinstance(instance, Instance)
    assert (instance.slot, instance.ports[0].address, instance.ports[1:]) == (0, "10.1.0.10", (TENANT,))


def test_a_host_without_a_tunnel_address_is_not_claimed_for_tenant_networks() -> None:
    result = claimed(picture([Facts(host=host("h"))]), [on_tenant_network("h", "i-1")])

    assert (result.claimed, len(result.left)) == ((), 1)


def test_changes_of_one_key_cannot_be_put_together() -> None:
    with pytest.raises(Bug):
        together([Change(put={"a": 1}), Change(delete=("a",))])
    with pytest.raises(Bug):
        together([Change(unchanged={"a": 1}), Change(unchanged={"a": 2})])


def test_changes_put_together_compare_and_write_all_they_did() -> None:
    whole = together([Change(unchanged={"a": 1}, put={"a": 1}), Change(unchanged={"b": 0}, delete=("b",))])

    assert whole == Change(unchanged={"a": 1, "b": 0}, put={"a": 1}, delete=("b",))
