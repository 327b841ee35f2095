"""Ports of tenant networks that are plugged into servers that are there: two stores, and nothing held by nobody wherever it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import IPv6Address
from random import Random
from typing import Any

import pytest

from fabric.conductor import records
from fabric.conductor.core import flow
from fabric.conductor.core.draft import Draft
from fabric.errors import FabricError, InvalidRequest, NotFound, Reason, Unavailable, WrongState
from fabric.ids import RandomIds
from fabric.lifecycle.devices import tenant_ports_of
from fabric.model.faults import FaultCode
from fabric.model.host import Host, Resources
from fabric.model.identity import Principal, Role
from fabric.model.instance import Assignment, Instance, Location, Over
from fabric.model.network import NetworkPort
from fabric.model.session import HostState, Status
from fabric.model.states import PowerState, VmState
from fabric.network.core.rules import default_group_id
from fabric.pb.compute.v1 import instance_service_pb2 as pb
from fabric.pb.compute.v1.instance_event_service_pb2 import ListInstanceEventsRequest
from fabric.scheduler.port_ends import PortEnds
from fabric.scheduler.ports import Ports
from fabric.scheduler.settings import SchedulerSettings
from fabric.store.base import Txn
from fabric.store.codec import encode
from fabric.store.keys import ASSIGNMENT, EVENT, HOST, INSTANCE, LOCATION, OVER, PORT_LEFT
from tests.unit.api import network_books
from tests.unit.api.network_world import ADMIN
from tests.unit.api.test_instance_ports import OWN, Wired, fixed
from tests.unit.api.test_instances import WHO, in_a_world
from tests.unit.store.virtual import LoopClock


class Death(Exception):
    """The process is gone."""


class Places:
    """What happens at which failpoint: so many seconds pass, or the process dies; once."""

    def __init__(self) -> None:
        self.delays_s: dict[str, float] = {}
        self.deadly: set[str] = set()

    async def reach(self, name: str) -> None:
        if name in self.deadly:
            self.deadly.remove(name)
            raise Death
        await asyncio.sleep(self.delays_s.pop(name, 0.0))


class Live(Wired):
    """With a server on a host that takes part in tenant networks, and a scheduler that gives ports back."""

    server = ""

    def __init__(self) -> None:
        self.failpoints = self.places = Places()
        super().__init__()

    async def live(self, claim: Callable[[Any], Awaitable[None]]) -> None:
        async def with_server(world: Any) -> None:
            host = Host(
                name="h1",
                cell="c1",
                zone="z",
                capacity=Resources(vcpus=8, ram_mib=8192, disk_gib=80),
                guest_cidr="10.9.0.0/24",
                slots=9,
                tunnel_address="192.0.2.1",
            )
            await self.cells["c1"].commit(Txn(put={HOST.at("h1"): encode(host)}))
            self.server = await self.placed()
            await claim(world)
            await self.check()

        ends = PortEnds(
            "c1",
            self.cells["c1"],
            self.store,
            Ports(
                settings=SchedulerSettings(),
                clock=LoopClock(),
                ids=RandomIds(),
                jitter=Random("jitter").random,
            ),
        )
        self._runs = (*self._runs, ends.run)
        await super().live(with_server)

    async def attach(self, request_id: str = "", **fields: Any) -> pb.Instance:
        request = pb.AttachInterfaceRequest(
            request_id=request_id or self.rid(), instance=fields.pop("server", self.server), **fields
        )
        answer: pb.AttachInterfaceResponse = await vars(self.handlers)["attach_interface"](request, WHO)
        return answer.instance

    async def detach(self, port: str) -> pb.Instance:
        request = pb.DetachInterfaceRequest(request_id=self.rid(), instance=self.server, port=port)
        answer: pb.DetachInterfaceResponse = await vars(self.handlers)["detach_interface"](request, WHO)
        return answer.instance

    async def record(self) -> Instance:
        found = await self.read(self.cells["c1"], INSTANCE, self.server)
        assert isinstance(found, Instance)
        return found

    async def bound(self) -> dict[str, NetworkPort]:
        return {each.id: each for each in await self.ports() if each.instance_id == self.server}

    async def works(self) -> list[str]:
        return list((await self.cells["c1"].list(PORT_LEFT.under())).entries)

    async def said(self, fault: str = "") -> None:
        """The host says that the latest generation is so, or why it is not; a conductor writes what that changes."""
        cell = self.cells["c1"]
        record = await self.record()
        status = Status(
            epoch=1,
            instance_id=self.server,
            placement_epoch=1,
            generation=record.generation,
            action_seq=0,
            state=HostState.ACTIVE,
            power=PowerState.RUNNING,
            fault_code=fault,
        )
        draft = Draft(await records.read(cell, flow.status_reads("h1", status)))
        draft.add(await records.read(cell, draft.missing(flow.move_reads(draft, status))))
        assert flow.take_status(draft, "h1", 1, status, now_ms=1, op_id="op") == flow.ACCEPTED
        assert await records.commit(cell, draft)

    async def check(self) -> None:
        """A port is bound to the server that has it, and to no other, once nothing is to be done any more."""
        await asyncio.sleep(120)
        assert await self.works() == []
        bound, record = await self.bound(), await self.record()
        location: Location = await self.read(self.store, LOCATION, self.server)
        assert set(bound) == set(tenant_ports_of(record)) == set(location.port_ids)
        await network_books.check(self.store)


def a_world(claim: Callable[[Any], Awaitable[None]]) -> Callable[[], None]:
    return in_a_world(claim, kind=Live)


@a_world
async def test_an_added_port_is_bound_and_its_servers_host_is_told(world: Live) -> None:
    shown = await world.attach(network="red", fixed_ips=[fixed("10.0.0.9")])

    record = await world.record()
    (port,) = record.ports
    order: Assignment = await world.read(world.cells["c1"], ASSIGNMENT, "h1", world.server)
    (bound,) = (await world.bound()).values()
    assert (port.address, port.network_name, port.mac) == ("10.0.0.9", "red", bound.mac)
    assert (record.request.guest.ports, order.guest.ports, order.generation) == ((port,), (port,), 2)
    assert bound.ends_with_instance
    assert [each.address for each in shown.status.addresses] == ["10.0.0.9"]
    assert await world.works() == []


@a_world
async def test_a_port_that_is_there_is_bound_and_free_again_afterwards(world: Live) -> None:
    web = await world.net.port("red", "web", OWN)
    await world.attach(port="web")
    assert set(await world.bound()) == {web.id}

    await world.detach("web")
    assert set(await world.bound()) == {web.id}
    await world.said()
    await asyncio.sleep(5)

    after = await world.net.get("Port", "web", OWN)
    assert (after.instance_id, [it.ip_address for it in after.fixed_ips]) == (
        "",
        [it.ip_address for it in web.fixed_ips],
    )


@pytest.mark.parametrize("word", ["id", "mac", "MAC", "address", "address in full"])
def test_a_port_that_was_made_for_the_server_ends_when_it_is_removed(word: str) -> None:
    """However its address is written: only the short form of IPv6, and only small letters, were known."""

    async def claim(world: Live) -> None:
        await world.attach(network="red")
        (port,) = (await world.record()).ports
        address = port.further[0].address
        words = {
            "id": port.id,
            "mac": port.mac,
            "MAC": port.mac.upper(),
            "address": address,
            "address in full": IPv6Address(address).exploded.upper(),
        }
        await world.detach(words[word])
        await world.said()
        await asyncio.sleep(5)

        assert await world.ports() == []

    a_world(claim)()


@pytest.mark.parametrize("asked", [{"network": "red"}, {"port": "web"}])
def test_what_the_host_could_not_plug_in_is_given_back_when_it_has_let_go(asked: dict[str, str]) -> None:
    async def claim(world: Live) -> None:
        await world.net.port("red", "web", OWN)
        await world.attach(**asked)

        await world.said(FaultCode.INTERFACE_ATTACH_FAILED)
        assert len(await world.bound()) == 1
        await world.said()
        await asyncio.sleep(5)

        assert [each.name for each in await world.ports()] == ["web"]
        assert await world.bound() == {}
        assert (await world.record()).ports == ()

    a_world(claim)()


@a_world
async def test_a_request_sent_again_adds_one_interface(world: Live) -> None:
    await world.attach("same", network="red")
    shown = await world.attach("same", network="red")

    assert len((await world.record()).ports) == 1
    assert len(await world.bound()) == 1
    assert shown.id == world.server


@pytest.mark.parametrize("store", ["global", "c1"])
@pytest.mark.parametrize("losing", [1, 2])
def test_lost_answers_change_nothing(store: str, losing: int) -> None:
    async def claim(world: Live) -> None:
        await world.net.port("blue", who=OWN)  # so that the default group is there
        target = world.store if store == "global" else world.cells["c1"]
        target.losing = losing

        await world.attach("same", network="red")

        assert len((await world.record()).ports) == 1

    a_world(claim)()


@a_world
async def test_a_port_in_use_is_refused_and_left_alone(world: Live) -> None:
    other = await world.placed("other")
    await world.net.port("red", "web", OWN)
    await world.attach(port="web", server=other)

    with pytest.raises(WrongState) as raised:
        await world.attach(port="web")
    assert raised.value.reason is Reason.RESOURCE_IN_USE
    with pytest.raises(FabricError):
        await world.attach(port="web", server=other)
    assert (await world.net.get("Port", "web", OWN)).instance_id == other


@a_world
async def test_all_of_a_servers_ports_are_put_into_a_group_and_out_of_it(world: Live) -> None:
    group = await world.net.group("web-sg", OWN)
    await world.net.port("red", "open", OWN, port_security_disabled=True)
    await world.attach(network="red")
    await world.attach(network="blue")
    await world.attach(port="open")
    handlers = world.handlers

    for _ in range(2):
        await handlers.add_instance_security_group(
            pb.AddInstanceSecurityGroupRequest(
                request_id=world.rid(), instance="web", security_group="web-sg"
            ),
            WHO,
        )
    inside = [group.id in each.security_group_ids for each in (await world.bound()).values()]
    request = pb.RemoveInstanceSecurityGroupRequest(
        request_id=world.rid(), instance="web", security_group="web-sg"
    )
    await handlers.remove_instance_security_group(request, WHO)
    await handlers.remove_instance_security_group(request, WHO)

    assert sorted(inside) == [False, True, True]
    assert not any(group.id in each.security_group_ids for each in (await world.bound()).values())
    request.request_id = world.rid()
    with pytest.raises(WrongState, match="no port of the server is in"):
        await handlers.remove_instance_security_group(request, WHO)


@a_world
async def test_the_default_group_is_there_to_be_put_into(world: Live) -> None:
    """Every project has it without making it; it was only there once somebody had looked at groups, or made a port in it."""
    await world.net.port("red", "bare", OWN, no_security_group=True)
    await world.attach(port="bare")
    request = pb.AddInstanceSecurityGroupRequest(
        request_id=world.rid(), instance=world.server, security_group="default"
    )

    await world.handlers.add_instance_security_group(request, WHO)

    (port,) = (await world.bound()).values()
    assert port.security_group_ids == (default_group_id("p"),)


@a_world
async def test_a_server_without_filtered_ports_is_in_no_group(world: Live) -> None:
    request = pb.AddInstanceSecurityGroupRequest(
        request_id=world.rid(), instance=world.server, security_group="default"
    )

    with pytest.raises(WrongState, match="no port that security groups filter"):
        await world.handlers.add_instance_security_group(request, WHO)


async def _group(world: Live, verb: str, who: Principal) -> None:
    kind = getattr(pb, f"{verb.title()}InstanceSecurityGroupRequest")
    request = kind(request_id=world.rid(), instance=world.server, security_group="web-sg")
    await getattr(world.handlers, f"{verb}_instance_security_group")(request, who)


@pytest.mark.parametrize("verb", ["add", "remove"])
def test_the_groups_of_a_locked_server_are_administrators_to_change(verb: str) -> None:
    """The lock is in the server's record, which nobody read for this: a member could open a port of what an administrator had locked."""

    async def claim(world: Live) -> None:
        await world.net.group("web-sg", OWN)
        await world.attach(network="red")
        if verb == "remove":
            await _group(world, "add", WHO)
        before = await world.bound()
        locked = replace(await world.record(), locked=True, locked_reason="abuse", locked_by_admin=True)
        await world.cells["c1"].commit(Txn(put={INSTANCE.at(world.server): encode(locked)}))

        with pytest.raises(WrongState) as refused:
            await _group(world, verb, WHO)

        assert f"cannot {verb}-security-group: the server is locked: abuse" in refused.value.message
        assert await world.bound() == before
        await _group(world, verb, replace(WHO, role=Role.ADMIN, system_admin=True))
        assert await world.bound() != before

    a_world(claim)()


@a_world
async def test_a_server_whose_lock_cannot_be_read_keeps_its_groups(world: Live) -> None:
    await world.net.group("web-sg", OWN)
    await world.attach(network="red")
    world.cells["c1"].is_silent = True

    with pytest.raises(Unavailable) as away:
        await _group(world, "add", WHO)

    assert away.value.reason is Reason.CELL_UNAVAILABLE
    world.cells["c1"].is_silent = False


@a_world
async def test_a_server_that_is_being_placed_is_asked_only_to_end(world: Live) -> None:
    """As with every other change: it has no record yet. One that has ended is not there."""
    await world.net.group("web-sg", OWN)
    await world.attach(network="red")
    cell, key, over = world.cells["c1"], INSTANCE.at(world.server), OVER.at(world.server)
    record = await world.record()
    await cell.commit(Txn(delete=[key]))

    with pytest.raises(WrongState, match="cannot add-security-group while BUILD"):
        await _group(world, "add", WHO)
    await cell.commit(Txn(put={over: encode(Over(instance_id=world.server, over_time_ms=1))}))
    with pytest.raises(NotFound):
        await _group(world, "add", WHO)

    await cell.commit(Txn(put={key: encode(record)}, delete=[over]))


@a_world
async def test_what_is_plugged_in_is_written_down_as_done_when_the_host_has_said_so(world: Live) -> None:
    """Each was "done" in the write that asked for it. Two at once are two, and what is begun meanwhile hides neither of them."""

    async def results() -> dict[str, str]:
        request = ListInstanceEventsRequest(instance=world.server)
        listed = await world.events.list_instance_events(request, WHO)
        return {each.request_id: each.result for each in listed.events}

    await world.attach("red-in", network="red")
    await world.attach("blue-in", network="blue")
    rename = pb.RenameInstanceRequest(request_id="name", instance=world.server, name="other")
    await vars(world.handlers)["rename_instance"](rename, WHO)
    assert await results() == {"red-in": "running", "blue-in": "running", "name": "done"}
    assert (await world.cells["c1"].list(EVENT.under(world.server))).entries == {}

    await world.said()
    assert await results() == dict.fromkeys(("red-in", "blue-in", "name"), "done")

    await world.attach("red-again", network="red")
    await world.said(FaultCode.INTERFACE_ATTACH_FAILED)
    assert (await results())["red-again"] == "failed"
    assert len((await world.cells["c1"].list(EVENT.under(world.server))).entries) == 3
    await world.said()


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("port", {"port": "web", "network": "red"}),
    ("port", {"port": "no-such"}),
    ("network", {"network": "no-such"}),
    ("fixed_ips", {"network": "default", "fixed_ips": [fixed("10.9.0.12")]}),
    ("fixed_ips[0].ip_address", {"network": "red", "fixed_ips": [fixed("192.0.2.9")]}),
]


@pytest.mark.parametrize(("field", "asked"), REFUSED)
def test_what_cannot_be_names_its_field(field: str, asked: dict[str, Any]) -> None:
    async def claim(world: Live) -> None:
        with pytest.raises(InvalidRequest) as raised:
            await world.attach(**asked)

        assert raised.value.field == field
        assert await world.works() == []

    a_world(claim)()


@a_world
async def test_what_the_servers_state_forbids_is_given_back_at_once(world: Live) -> None:
    record = await world.record()
    shelved = replace(record, vm_state=VmState.SUSPENDED)
    await world.cells["c1"].commit(Txn(put={INSTANCE.at(world.server): encode(shelved)}))

    with pytest.raises(WrongState):
        await world.attach(network="red")
    await asyncio.sleep(10)

    assert await world.ports() == []
    assert await world.works() == []


@a_world
async def test_a_host_without_a_tunnel_address_takes_no_tenant_network(world: Live) -> None:
    host: Host = await world.read(world.cells["c1"], HOST, "h1")
    await world.cells["c1"].commit(Txn(put={HOST.at("h1"): encode(replace(host, tunnel_address=""))}))

    with pytest.raises(WrongState, match="no part in tenant networks"):
        await world.attach(network="red")


@a_world
async def test_a_server_has_at_most_five_interfaces(world: Live) -> None:
    for _ in range(5):
        await world.attach(network="red")

    with pytest.raises(WrongState, match="no socket"):
        await world.attach(network="red")
    assert len(await world.bound()) == 5


@pytest.mark.parametrize("place", ["api.port.promised", "api.port.bound"])
@pytest.mark.parametrize("asked", [{"network": "red"}, {"port": "web"}])
def test_wherever_the_api_server_dies_the_port_is_given_back(place: str, asked: dict[str, str]) -> None:
    async def claim(world: Live) -> None:
        await world.net.port("red", "web", OWN)

        world.places.deadly.add(place)
        with pytest.raises(Death):
            await world.attach(**asked)
        assert len(await world.works()) == 1
        await asyncio.sleep(100)

        assert await world.bound() == {}
        assert {each.name for each in await world.ports()} == {"web"}

    a_world(claim)()


@a_world
async def test_the_same_request_after_a_death_takes_the_port_over(world: Live) -> None:
    await world.net.port("red", "web", OWN)

    world.places.deadly.add("api.port.bound")
    with pytest.raises(Death):
        await world.attach("same", port="web")
    await world.attach("same", port="web")
    await asyncio.sleep(100)

    assert len(await world.bound()) == 1


@a_world
async def test_who_plugs_in_too_late_is_refused_and_nothing_is_left(world: Live) -> None:
    """The API server stands still for longer than a server may take; the port is given back meanwhile."""

    world.places.delays_s["api.port.bound"] = 90
    with pytest.raises(FabricError, match="too long"):
        await world.attach(network="red")

    assert (await world.record()).ports == ()
    assert await world.ports() == []


@a_world
async def test_who_binds_too_late_is_refused_and_binds_anew(world: Live) -> None:
    world.places.delays_s["api.port.promised"] = 90

    await world.attach(network="red")

    assert len(await world.bound()) == len((await world.record()).ports) == 1


@a_world
async def test_of_two_servers_that_want_one_port_at_once_one_gets_it(world: Live) -> None:
    """The later one wrote its work over the earlier one's, which had yet to bind the port: the earlier one then bound it and could not
    plug it in, and the later one could not bind it. What was left to do spoke of the later one, which never had the port; so it stayed
    bound to the earlier one for ever.
    """
    other = await world.placed("other")
    await world.net.port("red", "web", OWN)

    world.places.delays_s["api.port.promised"] = 1
    first = asyncio.create_task(world.attach(port="web"))
    await asyncio.sleep(0.5)
    world.places.delays_s["api.port.promised"] = 2
    second = asyncio.create_task(world.attach(port="web", server=other))
    outcomes = await asyncio.gather(first, second, return_exceptions=True)

    assert isinstance(outcomes[0], pb.Instance)
    assert isinstance(outcomes[1], WrongState)
    assert outcomes[1].reason is Reason.RESOURCE_IN_USE
    assert len(await world.bound()) == len((await world.record()).ports) == 1


@a_world
async def test_what_a_try_has_left_that_came_to_nothing_is_done_at_once(world: Live) -> None:
    """Not in a minute: until then no other server of the cell could have the port."""
    port = await world.net.port("red", "web", OWN)

    world.places.delays_s["api.port.promised"] = 1
    attaching = asyncio.create_task(world.attach(port=port.id))
    await asyncio.sleep(0.5)
    await world.net.update("Port", "web", OWN, description="another one by now")
    await world.net.delete("Port", "web", OWN)
    with pytest.raises(InvalidRequest, match="no port"):
        await attaching
    await asyncio.sleep(5)

    assert await world.works() == []


@a_world
async def test_a_server_is_shown_with_the_floating_ips_that_lead_to_it(world: Live) -> None:
    await world.net.network("public", ADMIN, external=True)
    await world.net.subnet("public", "172.24.4.0/24", "public-subnet", ADMIN)
    await world.net.router("edge", OWN, external_network="public")
    await world.net.add_interface("edge", "red-four", OWN)
    await world.attach(network="red")
    (port,) = (await world.record()).ports
    leading = await world.net.floating_ip("public", OWN, port=port.id)

    shown = await world.get(world.server)
    listed = await world.handlers.list_instances(pb.ListInstancesRequest(), WHO)
    await world.net.update("FloatingIp", leading.id, OWN, port="")
    after = await world.get(world.server)

    told = [(each.network_name, each.kind, each.address) for each in shown.status.addresses]
    assert told == [
        ("red", "FIXED", port.address),
        ("red", "FIXED", port.further[0].address),
        ("red", "FLOATING", leading.ip_address),
    ]
    (row,) = listed.instances
    assert [each.address for each in row.status.addresses] == [
        each.address for each in shown.status.addresses
    ]
    assert {each.kind for each in after.status.addresses} == {"FIXED"}


@a_world
async def test_a_server_that_is_on_no_host_shows_the_addresses_that_it_keeps(world: Live) -> None:
    await world.attach(network="red")
    record = await world.record()
    away = replace(record, host="", slot=0, ports=(), vm_state=VmState.SHELVED_OFFLOADED)
    await world.cells["c1"].commit(Txn(put={INSTANCE.at(world.server): encode(away)}))

    shown = await world.get(world.server)

    assert [each.address for each in shown.status.addresses] == [
        it.address for it in record.ports[0].addresses
    ]
