"""Servers on networks that projects make: what a create takes, what it refuses, and that nothing is held by nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fabric.api.core.devices import PORTS_LIMIT
from fabric.errors import (
    FabricError,
    InvalidRequest,
    NoCapacity,
    NotFound,
    QuotaExceeded,
    Reason,
    WrongState,
)
from fabric.model.host import Cell
from fabric.model.identity import Principal, Role
from fabric.model.instance import Build, Location
from fabric.model.network import NetworkPort
from fabric.model.quota import Charge, Quota
from fabric.network.core.rules import default_group_id
from fabric.pb.compute.v1 import instance_service_pb2 as pb
from fabric.pb.network.v1 import port_service_pb2 as prt
from fabric.store.base import Txn
from fabric.store.codec import encode
from fabric.store.keys import BUILD, CELL, LOCATION, PORT, QUOTA
from tests.unit.api import network_books
from tests.unit.api.network_world import ADMIN, NetworkWorld
from tests.unit.api.test_instances import World, in_a_world

OWN = Principal(user_id="u", project_id="p", project_name="p", role=Role.MEMBER)
OTHER = Principal(user_id="v", project_id="q", project_name="q", role=Role.MEMBER)


class Wired(World):
    """With networks: `red` of both families, `blue` of IPv4 alone; in the end every key that holds something has its holder."""

    def __init__(self) -> None:
        super().__init__()
        self.net = NetworkWorld(self.store)

    async def live(self, claim: Callable[[Any], Awaitable[None]]) -> None:
        async def with_networks(world: World) -> None:
            assert isinstance(world, Wired)
            await world.net.network("red", OWN)
            await world.net.subnet("red", "10.0.0.0/24", "red-four", OWN, dns_servers=["10.0.0.53"])
            await world.net.subnet("red", "fd00:1::/64", "red-six", OWN)
            await world.net.network("blue", OWN, mtu=1400)
            await world.net.subnet("blue", "10.0.0.0/29", "blue-four", OWN)
            await claim(world)
            await network_books.check(world.store)

        await super().live(with_networks)

    async def on(self, *networks: pb.RequestedNetwork, **fields: Any) -> pb.Instance:
        return await self.create(networks=networks, **fields)

    async def build_of(self, made: pb.Instance) -> Build:
        found = await self.read(self.store, BUILD, "c1", made.id)
        assert isinstance(found, Build)
        return found

    async def ports(self) -> list[NetworkPort]:
        found = await network_books.check(self.store)
        return list(found[PORT.template])

    async def poor(self, instances: int) -> None:
        limit = Charge(instances=instances, vcpus=100, ram_mib=100_000)
        await self.store.commit(
            Txn(
                put={
                    QUOTA.at("p"): encode(Quota(project_id="p", limit=limit)),
                    CELL.at("c1"): encode(Cell(name="c1")),
                }
            )
        )


def a_world(claim: Callable[[Any], Awaitable[None]]) -> Callable[[], None]:
    return in_a_world(claim, kind=Wired)


def at(network: str = "", **fields: Any) -> pb.RequestedNetwork:
    return pb.RequestedNetwork(network=network, **fields)


def fixed(address: str = "", subnet: str = "") -> pb.RequestedAddress:
    return pb.RequestedAddress(ip_address=address, subnet=subnet)


@a_world
async def test_a_port_is_made_in_the_write_that_accepts_its_server(world: Wired) -> None:
    await world.net.port("red", who=OWN)  # so that the default group is there
    before = world.store.revision

    made = await world.on(at("red"))

    assert world.store.revision == before + 1
    request = (await world.build_of(made)).request
    (port,) = request.guest.ports
    (stored,) = [each for each in await world.ports() if each.instance_id]
    location: Location = await world.read(world.store, LOCATION, made.id)
    assert (stored.id, stored.instance_id, stored.ends_with_instance) == (port.id, made.id, True)
    assert location.port_ids == (port.id,)
    assert (port.mac, port.network_name, port.dns_servers) == (stored.mac, "red", ("10.0.0.53",))
    assert port.vni > 0
    assert [each.address for each in port.addresses] == [each.address for each in stored.fixed_addresses]
    assert [each.prefix_length for each in port.addresses] == [24, 64]
    assert [each.gateway for each in port.addresses] == ["10.0.0.1", "fd00:1::1"]
    assert stored.security_group_ids == (default_group_id("p"),)
    assert (request.network_id, request.network_name) == ("", "")


@a_world
async def test_a_single_network_may_be_named_as_before(world: Wired) -> None:
    own = await world.create(network="default")
    red = await world.create(network="red")

    assert (await world.build_of(own)).request.network_id == "n"
    assert (await world.build_of(own)).request.guest.ports == ()
    assert [each.network_name for each in (await world.build_of(red)).request.guest.ports] == ["red"]


@a_world
async def test_a_projects_own_network_comes_before_the_hosts_of_its_name(world: Wired) -> None:
    await world.net.network("default", OWN)
    await world.net.subnet("default", "10.3.0.0/24", "default-four", OWN)

    named = await world.create(network="default")
    by_id = await world.create(network="n")

    assert [it.network_name for it in (await world.build_of(named)).request.guest.ports] == ["default"]
    assert (await world.build_of(by_id)).request.network_id == "n"


@a_world
async def test_nothing_named_is_the_hosts_own_network(world: Wired) -> None:
    made = await world.create()

    request = (await world.build_of(made)).request
    assert (request.network_id, request.guest.ports) == ("n", ())


@a_world
async def test_interfaces_are_in_the_order_asked_for_and_of_any_kind(world: Wired) -> None:
    web = await world.net.port("blue", "web", OWN, fixed_ips=[prt.FixedIp(ip_address="10.0.0.5")])

    made = await world.on(at("red", fixed_ips=[fixed("10.0.0.9")]), at("default"), at(port="web"), at("red"))

    request = (await world.build_of(made)).request
    assert [each.network_name for each in request.guest.ports] == ["red", "blue", "red"]
    assert [each.address for each in request.guest.ports[:2]] == ["10.0.0.9", "10.0.0.5"]
    assert request.guest.ports[1].mtu == 1400
    assert request.network_id == "n"
    assert len({each.mac for each in request.guest.ports}) == 3
    bound = await world.net.get("Port", "web", OWN)
    assert (bound.id, bound.instance_id, bound.ends_with_instance) == (web.id, made.id, False)
    location: Location = await world.read(world.store, LOCATION, made.id)
    assert location.port_ids == tuple(each.id for each in request.guest.ports)


@a_world
async def test_two_interfaces_of_one_create_never_take_the_same(world: Wired) -> None:
    """`blue` has six addresses, of which the gateway and the network's own service have two: four are left."""
    made = await world.on(at("blue"), at("blue"), at("blue"), at("blue"))

    addresses = [each.address for each in (await world.build_of(made)).request.guest.ports]
    assert len(set(addresses)) == 4
    with pytest.raises(NoCapacity) as raised:
        await world.on(at("blue"))
    assert raised.value.reason is Reason.ADDRESSES_EXHAUSTED


@a_world
async def test_any_address_is_none_that_the_same_create_asks_for_by_itself(world: Wired) -> None:
    """Of the four that are free, `any` was the asked one at every fourth try; and the create was refused, because that was in use."""
    await world.net.port("red", who=OWN)  # so that the default group is there
    any_subnets = fixed(subnet="blue-four")

    for _ in range(20):
        apart = await world.on(at("blue"), at("blue", fixed_ips=[fixed("10.0.0.6")]), validate_only=True)
        together = await world.on(at("blue", fixed_ips=[any_subnets, fixed("10.0.0.6")]), validate_only=True)

        for made in (apart, together):
            first, second = (each.address for each in made.status.addresses)
            assert first != second == "10.0.0.6"


@a_world
async def test_groups_are_for_the_ports_that_are_made(world: Wired) -> None:
    group = await world.net.group("web-sg", OWN)
    await world.net.port("blue", "web", OWN)

    made = await world.on(at("red"), at(port="web"), security_groups=["web-sg"])

    first, second = (await world.build_of(made)).request.guest.ports
    by_id = {each.id: each for each in await world.ports()}
    assert by_id[first.id].security_group_ids == (group.id,)
    assert by_id[second.id].security_group_ids == (default_group_id("p"),)


@a_world
async def test_a_port_in_use_is_neither_bound_twice_nor_deleted(world: Wired) -> None:
    await world.net.port("red", "web", OWN)
    await world.on(at(port="web"))

    with pytest.raises(WrongState, match="in use") as twice:
        await world.on(at(port="web"))
    with pytest.raises(WrongState, match="in use") as deleted:
        await world.net.delete("Port", "web", OWN)
    assert {twice.value.reason, deleted.value.reason} == {Reason.RESOURCE_IN_USE}
    assert await world.used() == 1


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("network", {"network": "no-such"}),
    ("network", {"network": "red", "networks": [at("red")]}),
    ("networks", {"networks": [at("red")] * 6}),
    ("networks[0]", {"networks": [at()]}),
    ("networks[0]", {"networks": [at("red", port="web")]}),
    ("networks[1].network", {"networks": [at("red"), at("no-such")]}),
    ("networks[0].port", {"networks": [at(port="no-such")]}),
    ("networks[0].fixed_ips", {"networks": [at(port="web", fixed_ips=[fixed("10.0.0.9")])]}),
    ("networks[1].port", {"networks": [at(port="web"), at(port="web")]}),
    ("networks[0].fixed_ips[0].ip_address", {"networks": [at("red", fixed_ips=[fixed("192.0.2.1")])]}),
    ("networks[0].fixed_ips[0].subnet", {"networks": [at("red", fixed_ips=[fixed(subnet="no-such")])]}),
    ("networks[0].fixed_ips", {"networks": [at("default", fixed_ips=[fixed("10.1.0.9")])]}),
    ("networks[1].network", {"networks": [at("default"), at("default")]}),
    ("security_groups[0]", {"networks": [at("red")], "security_groups": ["no-such"]}),
    ("security_groups", {"networks": [at("red")], "security_groups": ["default", "default"]}),
    ("security_groups", {"networks": [at("default")], "security_groups": ["default"]}),
    ("security_groups", {"security_groups": ["default"]}),
    ("security_groups", {"networks": [at(port="web")], "security_groups": ["default"]}),
]


@pytest.mark.parametrize(("field", "asked"), REFUSED)
def test_what_cannot_be_names_its_field_and_takes_nothing(field: str, asked: dict[str, Any]) -> None:
    async def claim(world: Wired) -> None:
        await world.net.port("red", "web", OWN)
        before = world.store.revision

        with pytest.raises(InvalidRequest) as raised:
            await world.create(**asked)

        assert raised.value.field == field
        assert world.store.revision == before

    a_world(claim)()


@a_world
async def test_an_external_network_is_nobodys_to_be_on(world: Wired) -> None:
    await world.net.network("public", ADMIN, external=True)
    await world.net.subnet("public", "172.24.4.0/24", "outside", ADMIN)

    with pytest.raises(FabricError, match="floating IP"):
        await world.on(at("public"))


@a_world
async def test_what_is_another_projects_is_not_there(world: Wired) -> None:
    await world.net.network("theirs", OTHER)
    await world.net.subnet("theirs", "10.9.0.0/24", "theirs-four", OTHER)
    await world.net.port("theirs", "their-port", OTHER)

    for wanted in (at("theirs"), at(port="their-port")):
        with pytest.raises(InvalidRequest, match="there is no"):
            await world.on(wanted)
    with pytest.raises(NotFound):
        await world.net.get("Port", "their-port", OWN)


@a_world
async def test_a_create_that_cannot_be_paid_for_holds_no_address(world: Wired) -> None:
    await world.poor(instances=0)

    with pytest.raises(QuotaExceeded):
        await world.on(at("red"))

    assert await world.ports() == []


@a_world
async def test_the_largest_create_there_can_be_fits_into_a_transaction(world: Wired) -> None:
    """Five interfaces with four addresses each, of subnets of their own, in as many groups as may be named."""
    networks = []
    for number in range(PORTS_LIMIT):
        name = f"net-{number}"
        await world.net.network(name, OWN)
        cidrs = [f"10.{number}.{at}.0/24" for at in range(2)] + [
            f"fd00:{number}:{at}::/64" for at in range(2)
        ]
        subnets = [(await world.net.subnet(name, cidr, who=OWN)).id for cidr in cidrs]
        networks.append(at(name, fixed_ips=[fixed(subnet=each) for each in subnets]))
    groups = [(await world.net.group(f"group-{number}", OWN)).id for number in range(8)]

    world.store.largest = 0

    await world.create(networks=networks, security_groups=groups)

    # A volume to boot from, made in the same transaction, takes a few more.
    assert 100 < world.store.largest <= 128 - 8


@a_world
async def test_trying_makes_nothing(world: Wired) -> None:
    await world.net.port("red", who=OWN)
    before = world.store.revision

    shown = await world.on(at("red"), validate_only=True)

    assert world.store.revision == before
    assert shown.status.addresses[0].network_name == "red"


@a_world
async def test_a_create_whose_answer_is_lost_has_one_port(world: Wired) -> None:
    await world.net.port("red", "first", OWN)
    world.store.losing = 1

    made = await world.on(at("red"), request_id="same")
    again = await world.on(at("red"), request_id="same")

    assert made.id == again.id
    assert [each.instance_id for each in await world.ports() if each.instance_id] == [made.id]


@a_world
async def test_of_many_creates_for_the_last_addresses_as_many_win_as_there_are(world: Wired) -> None:
    await world.poor(instances=50)

    outcomes = await asyncio.gather(
        *(world.create(f"web-{number}", networks=[at("blue")]) for number in range(12)),
        return_exceptions=True,
    )

    made = [each for each in outcomes if isinstance(each, pb.Instance)]
    others = [each for each in outcomes if not isinstance(each, pb.Instance)]
    assert len(made) == 4
    assert {each.reason for each in others if isinstance(each, FabricError)} == {Reason.ADDRESSES_EXHAUSTED}
    assert await world.used() == 4
    assert len({each.fixed_addresses[0].address for each in await world.ports()}) == 4


@a_world
async def test_a_create_that_met_its_own_double_is_answered_as_it(world: Wired) -> None:
    """Sent again while the first was still being decided, the second bound the port, and the first was told that it is in use: by the very
    server that both asked for.
    """
    port = await world.net.port("red", who=OWN)
    world.store.holds_s = {PORT.at("p", port.id): 1.0}

    first = asyncio.create_task(world.on(at(port=port.id), request_id="same"))
    await asyncio.sleep(0.1)
    second = await world.on(at(port=port.id), request_id="same")

    assert (await first).id == second.id
    with pytest.raises(WrongState):
        await world.on(at(port=port.id), request_id="another")
