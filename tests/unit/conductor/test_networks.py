"""Tenant networks between the stores, a conductor and hosts: ports are bound where servers are, and hosts follow what that means."""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from unittest import mock

from structlog.testing import capture_logs

from fabric.conductor.service import ConductorService
from fabric.model.binding import PortBinding, RouterGateway
from fabric.model.faults import FaultCode
from fabric.model.firewall import PortRange
from fabric.model.host import Session, SessionState
from fabric.model.network import (
    FixedAddress,
    Network,
    NetworkKind,
    NetworkPort,
    Port,
    Router,
    RouterInterface,
    Subnet,
)
from fabric.model.network_plan import NetworkPlan
from fabric.model.security_group import Direction, EtherType, SecurityGroup, SecurityRule
from fabric.model.session import Hello, Inventory, PlanFollowed, PlanPart
from fabric.model.states import PowerState, VmState
from fabric.rpc.plan_codec import unpack_plan
from fabric.store.base import Snapshot, Txn
from fabric.store.codec import decode, encode
from fabric.store.keys import (
    INSTANCE,
    NETWORK,
    PORT,
    PORT_BINDING,
    ROUTER,
    ROUTER_GATEWAY,
    SECURITY_GROUP,
    SESSION,
    SUBNET,
)
from fabric.store.memory import MemoryStore
from hostd.driver.fake import FakeMachine
from tests.unit.conductor.test_with_hostd import Hosts, OneBlob, _at_rest, _is_up, _place
from tests.unit.conductor.worlds import World, instance_id, run, until

NET = Network(
    id="20000000-0000-4000-8000-000000000001",
    name="blue",
    kind=NetworkKind.TENANT,
    vni=42,
    mtu=1450,
    subnet_ids=("sub-1",),
)
OUTSIDE = Network(
    id="ext", name="public", kind=NetworkKind.EXTERNAL, subnet_ids=("out",), physical_network="external"
)
SUB = Subnet(
    id="sub-1",
    name="",
    project_id="nebula",
    network_id=NET.id,
    cidr="192.168.0.0/24",
    gateway="192.168.0.1",
    service_address="192.168.0.2",
)
OUT = Subnet(id="out", name="", project_id="", network_id="ext", cidr="198.51.100.0/24")
ROUTER_1 = Router(
    id="router-1",
    name="",
    project_id="nebula",
    external_network_id="ext",
    external_mac="fa:16:3e:00:00:99",
    vni=43,
    interfaces=(
        RouterInterface(network_id=NET.id, subnet_id=SUB.id, address="192.168.0.1", mac="fa:16:3e:00:00:01"),
    ),
)


def a_group(*ports: int) -> SecurityGroup:
    """A group that lets these TCP ports in."""
    return SecurityGroup(
        id="group-1",
        name="web",
        project_id="nebula",
        rules=tuple(
            SecurityRule(
                id=f"rule-{port}",
                direction=Direction.INGRESS,
                ether_type=EtherType.IPV4,
                protocol=6,
                port_min=port,
                port_max=port,
            )
            for port in ports
        ),
    )


def port_id(number: int) -> str:
    return f"10000000-0000-4000-8000-{number:012d}"


def a_port(number: int, **facts: object) -> NetworkPort:
    """A server's port in the model."""
    port = NetworkPort(
        id=port_id(number),
        name="",
        project_id="nebula",
        network_id=NET.id,
        mac=f"fa:16:3e:00:01:{number:02x}",
        fixed_addresses=(FixedAddress(subnet_id=SUB.id, address=f"192.168.0.{10 + number}"),),
        security_group_ids=("group-1",),
        instance_id=instance_id(number),
    )
    return replace(port, **facts)  # type: ignore[arg-type]  # whatever fields the test names


def an_interface(number: int) -> Port:
    """The same as its server has it."""
    return Port(
        id=port_id(number),
        network_id=NET.id,
        network_name=NET.name,
        mac=f"fa:16:3e:00:01:{number:02x}",
        address=f"192.168.0.{10 + number}",
        prefix_length=24,
        gateway="192.168.0.1",
        vni=NET.vni,
    )


class Fabric:
    """A cell, and the global store with one network and what is in it."""

    def __init__(self, cell: World) -> None:
        self.cell = cell
        self.store: MemoryStore = cell.networks

    async def begin(self, *numbers: int) -> None:
        await self.put(
            {
                NETWORK.at(NET.id): NET,
                SUBNET.at(SUB.id): SUB,
                SECURITY_GROUP.at("nebula", "group-1"): a_group(22),
                **{PORT.at("nebula", port_id(each)): a_port(each) for each in numbers},
            }
        )

    async def lead_out(self) -> None:
        await self.put(
            {
                NETWORK.at("ext"): OUTSIDE,
                SUBNET.at("out"): OUT,
                ROUTER.at("nebula", ROUTER_1.id): ROUTER_1,
            }
        )

    async def put(self, values: dict[str, object]) -> int:
        outcome = await self.store.commit(Txn(put={key: encode(value) for key, value in values.items()}))
        return outcome.revision  # type: ignore[union-attr]  # nothing is compared

    async def binding(self, number: int) -> PortBinding | None:
        key = PORT_BINDING.at(NET.id, port_id(number))
        value = (await self.store.get(key)).value(key)
        return None if value is None else decode(PortBinding, value)

    async def gateway(self) -> RouterGateway | None:
        key = ROUTER_GATEWAY.at(ROUTER_1.id)
        value = (await self.store.get(key)).value(key)
        return None if value is None else decode(RouterGateway, value)

    async def is_on(self, number: int, host: str) -> bool:
        binding = await self.binding(number)
        return binding is not None and binding.host == host

    async def is_nowhere(self, number: int) -> bool:
        return await self.binding(number) is None

    async def leads_out_from(self, host: str) -> bool:
        gateway = await self.gateway()
        return ("" if gateway is None else gateway.host) == host


def in_a_fabric(claim: Callable[[Fabric], Awaitable[None]]) -> Callable[[], None]:
    def test() -> None:
        async def world() -> None:
            async with World() as cell:
                await claim(Fabric(cell))

        run(world)

    test.__name__ = claim.__name__
    return test


async def soon(holds: Callable[[], bool], *, within_s: float = 60.0) -> None:
    """Wait until something holds that is known without asking."""

    async def asked() -> bool:
        return holds()

    await until(asked, within_s=within_s)


async def _serve(cell: World, name: str = "c1") -> ConductorService:
    service = await cell.conductor(name)
    service._blobs = OneBlob()
    return service


async def _approve(cell: World, *names: str) -> None:
    for number, name in enumerate(names, start=1):
        await cell.approve(
            name,
            guest_cidr=f"10.{number}.0.0/24",
            tunnel_address=f"192.0.2.{number}",
            physical_networks=("external",),
        )


async def _have(it: Fabric, number: int, host: str) -> None:
    """A server with a port, on a host."""
    placed = await it.cell.place(number, host, ports=(an_interface(number),))
    await it.cell.intend(placed)


def _plan(machine: FakeMachine) -> NetworkPlan:
    plan = machine.followed.plan
    return NetworkPlan() if plan is None else plan


def _ports(machine: FakeMachine) -> list[str]:
    return [each.port_id for each in _plan(machine).filters.ports]


def _neighbours(machine: FakeMachine) -> dict[str, str]:
    return {
        each.port_id: each.tunnel_address
        for network in _plan(machine).networks
        for each in network.neighbours
    }


def _opened(machine: FakeMachine) -> list[PortRange | None]:
    rules = (rule for group in _plan(machine).filters.groups for rule in group.rules)
    return sorted((each.ports for each in rules), key=str)


@in_a_fabric
async def test_a_server_runs_once_its_host_follows_what_its_port_may_do(it: Fabric) -> None:
    service = await _serve(it.cell)
    await _approve(it.cell, "h1")
    await it.begin(1)
    async with Hosts({"c1:7000": service}) as hosts:
        machine = hosts.start("h1")
        await until(lambda: _is_up(it.cell, "h1"))
        await _place(it.cell, 1, "h1", ports=(an_interface(1),))

        await until(lambda: _at_rest(it.cell, 1, VmState.ACTIVE))

        assert machine.domains[instance_id(1)].power is PowerState.RUNNING
        assert _ports(machine) == [port_id(1)]
        assert _plan(machine).tunnel_address == "192.0.2.1"
        assert await it.binding(1) == PortBinding(
            port_id=port_id(1),
            network_id=NET.id,
            instance_id=instance_id(1),
            cell="east",
            host="h1",
            tunnel_address="192.0.2.1",
            placement_epoch=1,
        )


@in_a_fabric
async def test_a_rule_that_changes_reaches_every_host_and_the_conductor_knows(it: Fabric) -> None:
    service = await _serve(it.cell)
    await _approve(it.cell, "h1", "h2")
    await it.begin(1, 2)
    async with Hosts({"c1:7000": service}) as hosts:
        machines = [hosts.start("h1"), hosts.start("h2")]
        await _have(it, 1, "h1")
        await _have(it, 2, "h2")
        await soon(lambda: [_ports(each) for each in machines] == [[port_id(1)], [port_id(2)]])
        await soon(lambda: [len(_neighbours(each)) for each in machines] == [1, 1])

        revision = await it.put({SECURITY_GROUP.at("nebula", "group-1"): a_group(22, 443)})
        wanted = [PortRange(first=22, last=22), PortRange(first=443, last=443)]
        await soon(lambda: all(_opened(each) == wanted for each in machines), within_s=2.0)

        assert _neighbours(machines[0]) == {port_id(2): "192.0.2.2"}
        assert _neighbours(machines[1]) == {port_id(1): "192.0.2.1"}
        for host in ("h1", "h2"):
            await soon(functools.partial(_has_followed, service, host, revision))


def _has_followed(service: ConductorService, host: str, revision: int) -> bool:
    state = service.read_plan_state(host)
    return state is not None and state.is_current and state.followed >= revision and not state.fault_code


@in_a_fabric
async def test_a_binding_follows_its_servers_record_and_goes_with_it(it: Fabric) -> None:
    await _serve(it.cell)
    await _approve(it.cell, "h1", "h2")
    await it.begin(1)
    await _have(it, 1, "h1")
    await until(lambda: it.is_on(1, "h1"))

    now = await it.cell.instance(1)
    await it.cell.put({INSTANCE.at(now.id): replace(now, host="h2", placement_epoch=2)})
    await until(lambda: it.is_on(1, "h2"), within_s=2.0)
    await it.cell.approve("h2", guest_cidr="10.2.0.0/24", tunnel_address="192.0.2.22")
    await until(lambda: _ends_at(it, "192.0.2.22"), within_s=2.0)
    await it.cell.put({INSTANCE.at(now.id): replace(now, host="", placement_epoch=2)})

    await until(lambda: it.is_nowhere(1), within_s=2.0)


async def _ends_at(it: Fabric, tunnel_address: str) -> bool:
    binding = await it.binding(1)
    return binding is not None and binding.tunnel_address == tunnel_address


@in_a_fabric
async def test_a_server_whose_record_is_broken_keeps_no_others_port_from_being_bound(it: Fabric) -> None:
    """They are read together, 32 at a time, and one record that did not parse failed the read, at every comparison anew: the ports that
    happened to be beside it were never bound again. Its own binding stays as it is: what it has, nobody can tell.
    """
    await _serve(it.cell)
    await _approve(it.cell, "h1", "h2")
    await it.begin(1, 2)
    for number in (1, 2):
        await _have(it, number, "h1")
        await until(functools.partial(it.is_on, number, "h1"))

    moved = replace(await it.cell.instance(2), host="h2", placement_epoch=2)
    broken = {INSTANCE.at(instance_id(1)): b"\xff", INSTANCE.at(moved.id): encode(moved)}
    await it.cell.store.commit(Txn(put=broken))

    await until(lambda: it.is_on(2, "h2"), within_s=2.0)
    assert await it.is_on(1, "h1")


@in_a_fabric
async def test_nothing_is_read_about_bindings_that_are_as_they_should_be(it: Fabric) -> None:
    """Every conductor read all its cell's ports, servers and hosts twice a minute, from both stores, and found nothing to do."""
    await _serve(it.cell)
    await _approve(it.cell, "h1")
    await it.begin(1, 2)
    for number in (1, 2):
        await _have(it, number, "h1")
        await until(functools.partial(it.is_on, number, "h1"))
    asked: list[str] = []
    reach = it.cell.network_reaches["c1"]
    get = reach.get

    async def noted(*keys: str) -> Snapshot:
        asked.extend(keys)
        return await get(*keys)

    with mock.patch.object(reach, "get", noted):
        await asyncio.sleep(300)

    assert not [key for key in asked if key.startswith(PORT_BINDING.under())]


@in_a_fabric
async def test_a_port_that_is_another_servers_is_not_bound(it: Fabric) -> None:
    await _serve(it.cell)
    await _approve(it.cell, "h1")
    await it.begin(1)
    await it.put({PORT.at("nebula", port_id(1)): a_port(1, instance_id=instance_id(7))})

    await _have(it, 1, "h1")

    await until(lambda: it.is_nowhere(1))
    await it.put({PORT.at("nebula", port_id(1)): a_port(1)})
    await until(lambda: it.is_on(1, "h1"), within_s=2.0)
    await it.put({PORT.at("nebula", port_id(1)): a_port(1, instance_id="")})
    await until(lambda: it.is_nowhere(1), within_s=2.0)


@in_a_fabric
async def test_bindings_of_another_cell_are_left_alone(it: Fabric) -> None:
    theirs = PortBinding(
        port_id=port_id(1), network_id=NET.id, instance_id=instance_id(1), cell="west", host="h1"
    )
    await it.begin(1)
    await it.put({PORT_BINDING.at(NET.id, port_id(1)): theirs})

    await _serve(it.cell)
    await until(lambda: it.is_on(1, "h1"))

    assert await it.binding(1) == theirs


@in_a_fabric
async def test_two_conductors_and_lost_answers_leave_one_binding(it: Fabric) -> None:
    reaches = []
    for name in ("c1", "c2"):
        await _serve(it.cell, name)
        reaches.append(it.cell.network_reaches[name])
    await _approve(it.cell, "h1")
    await it.begin(1, 2, 3)
    reaches[0].answers_to_lose = reaches[1].answers_to_lose = 2

    for number in (1, 2, 3):
        await _have(it, number, "h1")

    for number in (1, 2, 3):
        await until(functools.partial(it.is_on, number, "h1"))


@in_a_fabric
async def test_a_conductor_that_cannot_see_the_networks_takes_nothing_away(it: Fabric) -> None:
    service = await _serve(it.cell)
    await _approve(it.cell, "h1")
    await it.begin(1)
    async with Hosts({"c1:7000": service}) as hosts:
        machine = hosts.start("h1")
        await _have(it, 1, "h1")
        await soon(lambda: _ports(machine) == [port_id(1)])
        it.cell.network_reaches["c1"].is_cut = True
        now = await it.cell.instance(1)
        await it.cell.put({INSTANCE.at(now.id): replace(now, host="")})
        await it.cell.sleep(30)

        assert _ports(machine) == [port_id(1)]
        it.cell.network_reaches["c1"].is_cut = False
        await soon(lambda: not _ports(machine))


@in_a_fabric
async def test_a_plan_that_cannot_be_followed_is_told_of_and_tried_again(it: Fabric) -> None:
    service = await _serve(it.cell)
    await _approve(it.cell, "h1")
    await it.begin(1)
    async with Hosts({"c1:7000": service}) as hosts:
        machine = hosts.start("h1")
        machine.fail_next["follow"] = deque([FaultCode.NETWORK_FAILED] * 3)
        await _have(it, 1, "h1")

        await soon(lambda: _fault(service) == FaultCode.NETWORK_FAILED)
        await soon(lambda: _ports(machine) == [port_id(1)])
        await soon(lambda: _fault(service) == "")


@in_a_fabric
async def test_a_plan_that_cannot_be_made_ends_no_session(it: Fabric) -> None:
    """A record that no host can have broke the session, and each one after it: nothing at all was done on that host any more."""
    service = await _serve(it.cell)
    await _approve(it.cell, "h1")
    await it.begin(1)
    group_key = SECURITY_GROUP.at("nebula", "group-1")
    (rule,) = a_group(22).rules
    broken = replace(rule, ether_type=EtherType.IPV6, remote_cidr="fd00::%zone/64")
    async with Hosts({"c1:7000": service}) as hosts:
        machine = hosts.start("h1")
        await _have(it, 1, "h1")
        await soon(lambda: _ports(machine) == [port_id(1)])

        await it.put({group_key: replace(a_group(22), rules=(broken,))})
        await asyncio.sleep(20)
        state = service.read_plan_state("h1")
        await it.put({group_key: a_group(443)})

        await soon(lambda: _opened(machine) == [PortRange(first=443, last=443)])
        assert state is not None
        assert not state.is_current
        session = (await it.cell.store.get(SESSION.at("h1"))).value(SESSION.at("h1"))
        assert session is not None
        assert decode(Session, session).epoch == 1


def _fault(service: ConductorService) -> str | None:
    try:
        state = service.read_plan_state("h1")
    except Exception:  # noqa: BLE001 - no session yet
        return None
    return None if state is None else state.fault_code


@in_a_fabric
async def test_a_router_leads_out_from_one_host_and_from_another_when_that_is_lost(it: Fabric) -> None:
    service = await _serve(it.cell)
    await _approve(it.cell, "h1", "h2")
    await it.begin(1)
    await it.lead_out()
    async with Hosts({"c1:7000": service}) as hosts:
        machines = {name: hosts.start(name) for name in ("h1", "h2")}
        for name in machines:
            await until(functools.partial(_is_up, it.cell, name))
        assert await it.gateway() is None
        await _have(it, 1, "h1")
        await until(lambda: it.leads_out_from("h1"))
        await soon(lambda: _is_gateway(machines["h1"]) is True)

        # As a sweep does when a host has been silent for long.
        session = await it.cell.session("h1")
        await it.cell.put({SESSION.at("h1"): replace(session, epoch=99, state=SessionState.UNREACHABLE)})
        await until(lambda: it.leads_out_from("h2"), within_s=5.0)

        await soon(lambda: _is_gateway(machines["h2"]) is True)
        assert [each.id for each in _plan(machines["h2"]).networks] == [NET.id]
        await it.store.commit(Txn(delete=(ROUTER.at("nebula", ROUTER_1.id),)))
        await until(lambda: it.leads_out_from(""))


def _is_gateway(machine: FakeMachine) -> bool | None:
    outsides = [router.outside for router in _plan(machine).routers]
    return outsides[0].is_gateway if outsides and outsides[0] is not None else None


@in_a_fabric
async def test_a_host_that_knows_no_plans_is_told_none(it: Fabric) -> None:
    service = await _serve(it.cell)
    await _approve(it.cell, "h1")
    await it.begin(1)
    host = await it.cell.up(service, "h1")

    await _have(it, 1, "h1")

    assert await host.hears_nothing_of(PlanPart, for_s=5.0)
    assert service.read_plan_state("h1") is None


@in_a_fabric
async def test_a_burst_of_changes_makes_few_plans_and_each_is_newer(it: Fabric) -> None:
    service = await _serve(it.cell)
    await _approve(it.cell, "h1")
    await it.begin(1)
    host = it.cell.dial(service, "h1")
    await host.say(Hello(boot_id="b", agent_version="1", highest_epoch=0, follows_plans=True))
    first = await host.hear(PlanPart)
    host.epoch = first.epoch
    await host.say(Inventory(epoch=host.epoch))
    await _have(it, 1, "h1")
    for number in range(1, 50):
        await it.put({SECURITY_GROUP.at("nebula", "group-1"): a_group(*range(1, 1 + number))})
        await it.cell.sleep(0.001)

    await host.say(PlanFollowed(epoch=host.epoch, revision=first.revision))
    second = await host.hear(PlanPart)

    assert second.revision > first.revision
    assert len(unpack_plan(second.data).filters.groups[0].rules) == 49
    assert await host.hears_nothing_of(PlanPart, for_s=3.0)


@in_a_fabric
async def test_who_follows_what_it_was_never_told_is_struck(it: Fabric) -> None:
    service = await _serve(it.cell)
    await _approve(it.cell, "h1")
    host = it.cell.dial(service, "h1")
    await host.say(Hello(boot_id="b", agent_version="1", highest_epoch=0, follows_plans=True))
    told = await host.hear(PlanPart)

    for more in (1, 2, 3):
        await host.say(PlanFollowed(epoch=told.epoch, revision=told.revision + more))

    assert "bad messages" in (await host.farewell()).reason


@in_a_fabric
async def test_a_host_that_follows_nothing_over_and_over_fills_no_log(it: Fabric) -> None:
    """Each time was a line of half a kilobyte, of the host's own words, as fast as it could say so."""
    service = await _serve(it.cell)
    await _approve(it.cell, "h1")
    host = it.cell.dial(service, "h1")
    await host.say(Hello(boot_id="b", agent_version="1", highest_epoch=0, follows_plans=True))
    told = await host.hear(PlanPart)

    with capture_logs() as lines:
        for _ in range(500):
            await host.say(
                PlanFollowed(
                    epoch=told.epoch,
                    revision=told.revision,
                    fault_code=FaultCode.NETWORK_FAILED,
                    fault_message="no" * 200,
                )
            )
        await soon(lambda: _fault(service) == FaultCode.NETWORK_FAILED)
        await asyncio.sleep(5)

    said = [each for each in lines if each["event"] == "plan.not_followed"]
    assert 0 < len(said) < 50
