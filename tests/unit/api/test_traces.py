"""A packet through the model as projects have made it, and through what the hosts say of it. The books are checked after every test."""

from __future__ import annotations

import pytest

from fabric.api.cells import Cells
from fabric.api.traces import TraceHandlers
from fabric.clock import SystemClock
from fabric.errors import InvalidRequest, NotFound
from fabric.model.binding import PortBinding, RouterGateway
from fabric.model.host import Session, SessionState
from fabric.model.identity import Principal
from fabric.model.instance import Location
from fabric.model.network_plan import PlanState
from fabric.model.quota import Charge, NetworkLimits
from fabric.pb.network.v1 import security_group_service_pb2 as grp
from fabric.pb.network.v1 import trace_service_pb2 as pb
from fabric.store.base import Snapshot, Txn
from fabric.store.codec import encode
from fabric.store.keys import PORT_BINDING, ROUTER_GATEWAY, SESSION
from fabric.store.memory import MemoryStore
from tests.unit.api.network_world import ADMIN, OTHER, OWN, NetworkWorld, nebula

PASSES, BLOCKED, UNKNOWN = (
    pb.TRACE_OUTCOME_PASSES,
    pb.TRACE_OUTCOME_BLOCKED,
    pb.TRACE_OUTCOME_UNKNOWN,
)


async def placed(world: NetworkWorld, name: str, host: str = "h1") -> str:
    """A port of the nebula's, on a host; its address."""
    made = await world.port("nebula_net", name)
    binding = PortBinding(
        port_id=made.id, network_id=made.network, instance_id="i", cell="c1", host=host, placement_epoch=1
    )
    session = Session(host=host, epoch=1, state=SessionState.UP, conductor="c:1")
    await world.store.commit(Txn(put={PORT_BINDING.at(made.network, made.id): encode(binding)}))
    await world.cell.commit(Txn(put={SESSION.at(host): encode(session)}))
    return made.fixed_ips[0].ip_address


async def trace(
    world: NetworkWorld,
    source: str,
    destination: str,
    *,
    protocol: str = "tcp",
    port: int | None = 22,
    who: Principal = OWN,
) -> tuple[int, list[tuple[str, int]]]:
    request = pb.ReadTraceRequest(source=source, destination=destination, protocol=protocol, port=port)
    found = await world.traces.read_trace(request, who)
    return found.outcome, [(each.kind, each.outcome) for each in found.steps]


async def test_members_of_one_group_reach_each_other_and_hosts_vouch_for_it(world: NetworkWorld) -> None:
    await nebula(world)
    await placed(world, "web")
    address = await placed(world, "db", "h2")

    by_name = await trace(world, "web", "db")
    by_address = await trace(world, "web", address)

    assert by_name == by_address
    assert by_name == (
        PASSES,
        [
            ("host", PASSES),
            ("egress", PASSES),
            ("route", PASSES),
            ("ingress", PASSES),
            ("host", PASSES),
        ],
    )


async def test_what_no_rule_lets_in_is_blocked_until_one_does(world: NetworkWorld) -> None:
    await nebula(world)
    await world.group("closed")
    await placed(world, "web")
    await placed(world, "db")
    await world.update("Port", "db", security_groups=["closed"])

    before, _ = await trace(world, "web", "db")
    await world.rule(
        "closed", direction=grp.DIRECTION_INGRESS, protocol="tcp", port_range_min=22, port_range_max=22
    )
    after, _ = await trace(world, "web", "db")

    assert (before, after) == (BLOCKED, PASSES)
    assert (await trace(world, "web", "db", port=80))[0] == BLOCKED


async def test_a_floating_ip_is_reached_as_whoever_the_sender_is_outside(world: NetworkWorld) -> None:
    await nebula(world)
    await placed(world, "web")
    await placed(world, "db")
    floating = await world.floating_ip("public", port="db")
    router = await world.get("Router", "nebula_router")

    lost = await trace(world, "web", floating.ip_address)
    gateway = RouterGateway(router_id=router.id, cell="c1", host="h1", tunnel_address="192.0.2.1")
    await world.store.commit(Txn(put={ROUTER_GATEWAY.at(router.id): encode(gateway)}))
    led = await trace(world, "web", floating.ip_address)

    assert lost[1][-1] == ("route", BLOCKED)
    # From outside it is no member of the default group any more.
    assert led[1][2:4] == [("route", PASSES), ("ingress", BLOCKED)]
    assert (await trace(world, "web", "192.0.2.77"))[1][-1] == ("ingress", UNKNOWN)


async def test_a_host_that_has_not_followed_is_named_beside_what_the_model_says(world: NetworkWorld) -> None:
    await nebula(world)
    await placed(world, "web")
    await placed(world, "db", "h2")
    world.conductors.states["h2"] = None

    outcome, steps = await trace(world, "web", "db")

    assert (outcome, steps[-1]) == (UNKNOWN, ("host", UNKNOWN))


async def test_what_is_not_the_projects_is_not_there(world: NetworkWorld) -> None:
    await nebula(world)
    await placed(world, "web")

    with pytest.raises(NotFound):
        await trace(world, "web", "192.0.2.1", who=OTHER)
    with pytest.raises(NotFound):
        await trace(world, "web", "nobody")
    with pytest.raises(InvalidRequest, match="protocol"):
        await trace(world, "web", "192.0.2.1", protocol="any")
    with pytest.raises(InvalidRequest, match="family"):
        await trace(world, "web", "2001:db8::1")
    with pytest.raises(InvalidRequest, match="zone"):
        await trace(world, "web", "fe80::1%eth0")


async def test_what_a_host_says_of_a_fault_is_not_passed_on(world: NetworkWorld) -> None:
    """Its words are about all that is on it, other projects' networks too, and a hostile one chooses them (security.md, section 5)."""
    await nebula(world)
    await placed(world, "web")
    await placed(world, "db", "h2")
    world.conductors.states["h2"] = PlanState(
        revision=9,
        followed=8,
        told_age_ms=50,
        followed_age_ms=0,
        fault_code="NETWORK_FAILED",
        fault_message="the host could not wire the server's ports: cfb-of-another-project: no such device",
        is_current=True,
    )

    found = await world.traces.read_trace(
        pb.ReadTraceRequest(source="web", destination="db", protocol="tcp", port=22), OWN
    )

    assert found.steps[-1].outcome == UNKNOWN
    assert "could not wire" in found.steps[-1].detail
    assert "another-project" not in found.steps[-1].detail


@pytest.mark.parametrize("protocol", ["icmp", "ipv6-icmp"])
@pytest.mark.parametrize(("cidr", "family"), [("10.7.0.0/24", 4), ("fd00:7::/64", 6)])
async def test_icmp_is_the_one_of_the_packets_family(
    world: NetworkWorld, protocol: str, cidr: str, family: int
) -> None:
    """People say icmp and mean the family's, in rules as in questions: a rule for it was said not to allow a ping over IPv6."""
    await world.network("net")
    await world.subnet("net", cidr)
    group = await world.group("pinged")
    ether_type = grp.ETHER_TYPE_IPV4 if family == 4 else grp.ETHER_TYPE_IPV6
    await world.rule(group.name, direction=grp.DIRECTION_INGRESS, ether_type=ether_type, protocol="icmp")
    for name in ("one", "two"):
        await world.port("net", name, security_groups=[group.name])

    _, steps = await trace(world, "one", "two", protocol=protocol, port=None)

    assert [outcome for kind, outcome in steps if kind in {"egress", "ingress"}] == [PASSES, PASSES]


async def test_somebody_elses_router_is_not_said_to_be_missing(world: NetworkWorld) -> None:
    """At the gateway of a shared network is a router of whose the network is: by which way it leads is not this project's to know."""
    await world.network("common", ADMIN, shared=True)
    await world.subnet("common", "10.8.0.0/24", "common-subnet", ADMIN)
    await world.port("common", "web")

    _, without = await trace(world, "web", "192.0.2.1")
    await world.router("theirs", ADMIN, external_network="public")
    await world.add_interface("theirs", "common-subnet", ADMIN)
    _, with_one = await trace(world, "web", "192.0.2.1")

    assert without[-1] == ("route", BLOCKED)
    assert with_one[-1] == ("route", UNKNOWN)


async def test_an_administrator_sees_what_the_ports_own_project_would(world: NetworkWorld) -> None:
    """The way was looked up among the administrator's own routers, so that every server of a project had none."""
    await nebula(world)
    address = await placed(world, "web")
    made = await world.get("Port", "web")

    class OneServer:
        async def location(self, word: str, principal: Principal) -> Location:
            return Location(
                instance_id="i",
                project_id="own",
                user_id="ann",
                name=word,
                cell="c1",
                charge=Charge(),
                port_ids=(made.id,),
            )

    world.traces = TraceHandlers(
        world.desk,
        servers=OneServer(),
        cells=Cells({"c1": world.cell}, clock=SystemClock()),
        conductors=world.conductors,
    )
    router = await world.get("Router", "nebula_router")
    gateway = RouterGateway(router_id=router.id, cell="c1", host="h1", tunnel_address="192.0.2.1")
    await world.store.commit(Txn(put={ROUTER_GATEWAY.at(router.id): encode(gateway)}))

    _, steps = await trace(world, "server", "192.0.2.77", who=ADMIN)
    _, inside = await trace(world, "server", address, who=ADMIN)

    assert steps[2] == ("route", PASSES)
    assert inside[3][0] == "ingress"
    assert inside[3][1] == PASSES


class Counting(MemoryStore):
    """How often it was read."""

    reads = 0

    async def get(self, *keys: str) -> Snapshot:
        self.reads += 1
        return await super().get(*keys)


async def test_a_large_group_is_read_at_once() -> None:
    """Its members were read one after the other: in a project of some thousand servers, of which all are in the default group, a trace
    took longer than a call may.
    """
    store = Counting()
    world = NetworkWorld(store, NetworkLimits(ports=-1))
    await world.network("net")
    await world.subnet("net", "10.6.0.0/16")
    for number in range(40):
        await world.port("net", f"p{number}")
    before = store.reads

    _, steps = await trace(world, "p0", "p39")

    assert ("ingress", PASSES) in steps
    assert store.reads - before < 40
