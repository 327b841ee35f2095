"""What becomes of tenant networks when the machine restarts, when others meddle, and beside what is not ours."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fabric.model.firewall import RuleGroup
from fabric.model.network_plan import NetworkPlan
from hostd.core.faults import FaultCode
from hostd.core.overlay import bridge_name, service_port_name, tunnel_name
from hostd.core.tap_names import tap_name
from hostd.core.tenant_services import host_prefix, service_namespace
from hostd.network.base import NetworkError
from hostd.network.netns import add_namespace, remove_namespace
from tests.conformance.namespaces import ip
from tests.integration.hostd.tenant_hosts import (
    Fabric,
    TenantGuest,
    TenantNetwork,
    a_fabric,
    leftovers,
    service_namespaces,
)

MISSING = [name for name in ("ip", "bridge", "nft", "dnsmasq", "nsenter") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.owns_machine,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}"),
]

NETWORK, OTHER = TenantNetwork("one", 0x11), TenantNetwork("two", 0x22)
GUEST, NEIGHBOUR = TenantGuest(NETWORK, 0, 11), TenantGuest(NETWORK, 1, 12)


@pytest.fixture
def fabric() -> Iterator[Fabric]:
    with a_fabric() as made:
        yield made


def links(fabric: Fabric) -> set[str]:
    shown = ip("-brief", "link", "show", netns=fabric.hosts[0])
    return {line.split()[0].partition("@")[0] for line in shown.splitlines()}


def run(fabric: Fabric, *command: str) -> str:
    inside = ("ip", "netns", "exec", fabric.hosts[0], *command)
    return subprocess.run(inside, check=True, capture_output=True, text=True).stdout


async def gone(fabric: Fabric, name: str) -> None:
    """Wait for a link into a namespace that was deleted: the kernel takes it some time after."""
    async with asyncio.timeout(10):
        while name in links(fabric):
            await asyncio.sleep(0.02)


async def test_a_machine_that_restarts_has_its_networks_again_without_being_told(fabric: Fabric) -> None:
    """Only the disk is left: the plan is on it, so a guest may be started before any conductor is there."""
    wires = fabric.wires(0)
    await wires.prepare()
    await wires.follow(fabric.plan(0, (GUEST, NEIGHBOUR)))
    await wires.plug(GUEST.wiring)
    await wires.close()
    before = links(fabric)
    ip("link", "del", tap_name(GUEST.port.id), netns=fabric.hosts[0])
    for name in (tunnel_name(NETWORK.id), bridge_name(NETWORK.id), "cellfabric0"):
        ip("link", "del", name, netns=fabric.hosts[0])
    for name in service_namespaces(fabric.hosts[0]):
        await remove_namespace(name)
    await gone(fabric, service_port_name(NETWORK.id))
    run(fabric, "nft", "flush", "ruleset")
    assert links(fabric) == {"lo", "under0"}

    successor = fabric.wires(0)
    await successor.prepare()
    assert await successor.plugged() == {}
    # As before, but for the guest.
    assert links(fabric) == before - {tap_name(GUEST.port.id)}
    await successor.plug(GUEST.wiring)

    assert links(fabric) == before
    entries = run(fabric, "bridge", "fdb", "show", "dev", tunnel_name(NETWORK.id))
    assert f"{NEIGHBOUR.port.mac} dst 192.0.2.2" in entries
    assert tap_name(GUEST.port.id) in run(fabric, "nft", "list", "map", "bridge", "cellfabric-ports", "door")
    await successor.dismantle()
    await successor.close()
    assert leftovers(fabric.hosts[0], fabric.states[0]) == []


async def test_a_daemon_that_starts_anew_makes_nothing_anew(fabric: Fabric) -> None:
    """A link that is made again is another to the kernel, and what it carried has stopped for a moment."""
    wires = fabric.wires(0)
    await wires.prepare()
    await wires.follow(fabric.plan(0, (GUEST, NEIGHBOUR)))
    await wires.plug(GUEST.wiring)
    await wires.close()
    before = ip("-o", "link", "show", netns=fabric.hosts[0]), run(fabric, "bridge", "fdb", "show")
    said = subprocess.Popen(
        ("ip", "netns", "exec", fabric.hosts[0], "ip", "-o", "monitor", "link", "neigh"),
        stdout=subprocess.PIPE,
        text=True,
    )

    successor = fabric.wires(0)
    await successor.prepare()
    await successor.follow(fabric.plan(0, (GUEST, NEIGHBOUR)))
    await successor.plug(GUEST.wiring)

    said.terminate()
    heard, _ = said.communicate(timeout=10)
    assert "Deleted" not in heard
    assert (ip("-o", "link", "show", netns=fabric.hosts[0]), run(fabric, "bridge", "fdb", "show")) == before
    await successor.dismantle()
    await successor.close()


async def test_what_others_took_away_comes_back_with_the_next_audit(fabric: Fabric) -> None:
    wires = fabric.wires(0)
    await wires.prepare()
    await wires.follow(fabric.plan(0, (GUEST, NEIGHBOUR)))
    await wires.plug(GUEST.wiring)
    before = links(fabric)
    entries = run(fabric, "bridge", "fdb", "show")

    ip("link", "del", tunnel_name(NETWORK.id), netns=fabric.hosts[0])
    run(fabric, "nft", "delete", "table", "bridge", "cellfabric-ports")
    await remove_namespace(service_namespace(f"/run/netns/{fabric.hosts[0]}", NETWORK.id))
    await wires.prepare()

    assert links(fabric) == before
    assert sorted(_static(run(fabric, "bridge", "fdb", "show"))) == sorted(_static(entries))
    assert tap_name(GUEST.port.id) in run(fabric, "nft", "list", "map", "bridge", "cellfabric-ports", "door")
    await wires.dismantle()
    await wires.close()


def _static(entries: str) -> list[str]:
    return [line for line in entries.splitlines() if "static" in line]


async def test_what_carries_our_mark_and_nobody_wants_goes_and_nothing_else_does(fabric: Fabric) -> None:
    host, past = fabric.hosts[0], "a network of long ago"
    prefix = host_prefix(f"/run/netns/{host}")
    strays = {f"{prefix}000000000001", service_namespace(f"/run/netns/{host}", past)}
    foreign = f"cfn-{'0' * 8}-{'1' * 12}"
    for name in (*strays, foreign):
        await add_namespace(name)
    try:
        ip("link", "add", bridge_name(past), "type", "bridge", netns=host)
        ip("link", "add", service_port_name(past), "type", "veth", "peer", "name", "x", netns=host)
        ip("link", "add", "cfb-other", "type", "bridge", netns=host)
        ip("link", "add", "br-other", "type", "bridge", netns=host)
        ip("neighbour", "add", "10.0.0.9", "lladdr", "02:00:00:00:00:09", "dev", "br-other", netns=host)
        run(fabric, "nft", "add table inet other")
        folder = fabric.states[0] / "dhcp-networks" / past
        folder.mkdir(parents=True)

        wires = fabric.wires(0)
        await wires.prepare()
        # Nothing is a stray for want of a plan.
        assert bridge_name(past) in links(fabric)
        await wires.follow(NetworkPlan())

        assert links(fabric) == {"lo", "under0", "cellfabric0", "cfb-other", "br-other"}
        assert service_namespaces(host) == []
        assert not folder.exists()
        await wires.dismantle()
        await wires.close()
        assert {"cfb-other", "br-other"} <= links(fabric)
        assert "10.0.0.9" in ip("neighbour", "show", netns=host)
        assert run(fabric, "nft", "list", "tables") == "table inet other\n"
        assert Path("/run/netns", foreign).exists()
    finally:
        await remove_namespace(foreign)


async def test_a_name_of_ours_that_is_somebody_elses_is_said_and_left_alone(fabric: Fabric) -> None:
    host = fabric.hosts[0]
    ip("link", "add", bridge_name(NETWORK.id), "type", "bridge", netns=host)
    ip("link", "set", bridge_name(NETWORK.id), "alias", "an operator's", netns=host)
    wires = fabric.wires(0)

    with pytest.raises(NetworkError) as refused:
        await wires.follow(fabric.plan(0, (GUEST,)))

    assert refused.value.code == FaultCode.NETWORK_FAILED
    assert "an operator's" in ip("link", "show", "dev", bridge_name(NETWORK.id), netns=host)
    ip("link", "del", bridge_name(NETWORK.id), netns=host)
    await wires.follow(fabric.plan(0, (GUEST,)))
    await wires.dismantle()
    await wires.close()


async def test_what_is_wrong_in_one_network_stands_in_no_other_ones_way(fabric: Fabric) -> None:
    """But is told to whoever made the plan, and tried again."""
    theirs = TenantGuest(OTHER, 0, 11)
    plan = fabric.plan(0, (theirs, GUEST))
    first, second = plan.networks
    (*_, six) = first.subnets
    broken = replace(first, subnets=(replace(six, service_address="nowhere"),))
    wires = fabric.wires(0)
    await wires.prepare()

    with pytest.raises(NetworkError):
        await wires.follow(replace(plan, networks=(broken, second)))

    assert tap_name(GUEST.port.id) in run(fabric, "nft", "list", "map", "bridge", "cellfabric-ports", "door")
    served = service_namespace(f"/run/netns/{fabric.hosts[0]}", NETWORK.id)
    assert "10.0.0.2/24" in ip("address", "show", "dev", "service0", netns=served)
    await wires.plug(GUEST.wiring)
    with pytest.raises(NetworkError):
        await wires.plug(theirs.wiring)
    await wires.prepare()
    await wires.unplug(GUEST.wiring.guest.id, 1)

    await wires.follow(plan)
    await wires.plug(theirs.wiring)
    await wires.dismantle()
    await wires.close()


async def test_what_cannot_be_taken_away_stands_in_nobodys_way(fabric: Fabric) -> None:
    """It did: a plan counted as followed only when all was gone that it did not want, and until then no guest on a tenant network began."""
    stray = Path("/run/netns", f"{host_prefix(f'/run/netns/{fabric.hosts[0]}')}000000000001")
    wires = fabric.wires(0)
    await wires.prepare()
    # No namespace, and `ip netns delete` takes no folder away.
    stray.mkdir()
    try:
        with pytest.raises(NetworkError):
            await wires.follow(fabric.plan(0, (GUEST,)))

        assert [each.mac for each in await wires.plug(GUEST.wiring)] == [GUEST.port.mac]
    finally:
        stray.rmdir()
    await wires.follow(fabric.plan(0, (GUEST,)))
    await wires.dismantle()
    await wires.close()


async def test_a_guest_whose_ports_no_plan_filters_is_not_plugged(fabric: Fabric) -> None:
    wires = fabric.wires(0)
    await wires.follow(fabric.plan(0, (TenantGuest(OTHER, 0, 11),)))

    with pytest.raises(NetworkError) as refused:
        await wires.plug(GUEST.wiring)

    assert refused.value.code == FaultCode.NETWORK_PLAN_MISSING
    assert await wires.plugged() == {}
    await wires.dismantle()
    await wires.close()


class Gates:
    """Failpoints of which these are shut until they are opened."""

    def __init__(self, *names: str) -> None:
        self.reached = {name: asyncio.Event() for name in names}
        self.open = {name: asyncio.Event() for name in names}

    async def reach(self, name: str) -> None:
        if name in self.open:
            self.reached[name].set()
            await self.open[name].wait()


async def test_a_plan_that_comes_while_a_guest_is_plugged_is_gone_by_at_once(fabric: Fabric) -> None:
    """A rule must hold within a second, however many guests wait to be plugged one after the other."""
    before, after = "hostd.wires.recorded", "hostd.wires.plugged"
    gates = Gates(before, after)
    wires = fabric.wires(0, gates)
    await wires.prepare()
    await wires.follow(fabric.plan(0, (GUEST,)))
    plugging = asyncio.create_task(wires.plug(GUEST.wiring))
    await gates.reached[before].wait()

    following = asyncio.create_task(wires.follow(fabric.plan(0, (GUEST,), RuleGroup(id="newer"))))
    await asyncio.sleep(0)
    gates.open[before].set()
    await gates.reached[after].wait()

    # It is not its turn yet, and its filter is there.
    assert not following.done()
    assert "group-everything" not in run(fabric, "nft", "list", "table", "bridge", "cellfabric-ports")
    gates.open[after].set()
    await plugging
    await following
    await wires.dismantle()
    await wires.close()


async def test_a_record_that_cannot_be_read_goes_with_its_guest_and_not_before(fabric: Fabric) -> None:
    """Nobody knew whose it was, so it stayed for good, with the guest's user data."""
    record = fabric.states[0] / "wires" / f"{GUEST.wiring.guest.id}.json"
    wires = fabric.wires(0)
    await wires.follow(fabric.plan(0, (GUEST,)))
    await wires.plug(GUEST.wiring)
    await wires.close()
    record.write_bytes(b"{")

    # Its tap says that the guest is here.
    successor = fabric.wires(0)
    assert await successor.plugged() == {GUEST.wiring.guest.id: 1}
    await successor.unplug(GUEST.wiring.guest.id, 1)
    assert not record.exists()

    # As after a restart of the machine, which takes every tap.
    record.write_bytes(b"{")
    await successor.prepare()
    assert not record.exists()
    await successor.dismantle()
    await successor.close()
