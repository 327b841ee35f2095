from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fabric.api.cells import Cells
from fabric.api.hosts import HostHandlers
from fabric.errors import AlreadyExists, Conflict, InvalidRequest, NotFound, Reason, Unavailable, WrongState
from fabric.model.host import Host, Resources, Session, SessionState, Use
from fabric.model.identity import Principal
from fabric.pb.compute.v1 import host_service_pb2 as pb
from fabric.store.base import Snapshot, Txn
from fabric.store.codec import decode, encode
from fabric.store.keys import HOST, SESSION, USE
from fabric.store.memory import MemoryStore
from tests.unit.store.virtual import LoopClock, run

ADMIN = Principal(user_id="a", project_id="admin", system_admin=True)


class Silent(MemoryStore):
    """A cell's store that answers nothing, as one behind a broken network."""

    is_silent = False

    async def get(self, *keys: str) -> Snapshot:
        await self._wait()
        return await super().get(*keys)

    async def list(self, prefix: str) -> Snapshot:
        await self._wait()
        return await super().list(prefix)

    async def _wait(self) -> None:
        if self.is_silent:
            await asyncio.sleep(3600)


def _host(name: str = "h1", cell: str = "c1", cidr: str = "10.100.1.0/24", **spec: object) -> pb.Host:
    fields: dict[str, Any] = {
        "availability_zone": "nova",
        "vcpus": 4,
        "ram_mib": 4096,
        "disk_gib": 40,
        "guest_cidr": cidr,
        **spec,
    }
    return pb.Host(name=name, cell=cell, spec=pb.HostSpec(**fields))


class World:
    def __init__(self) -> None:
        self.stores = {name: Silent(name) for name in ("c1", "c2")}
        self.handlers = HostHandlers(
            Cells(self.stores, clock=LoopClock()), clock=LoopClock(), jitter=lambda: 0.5
        )
        self.requests = 0

    def request_id(self) -> str:
        self.requests += 1
        return str(self.requests)

    async def create(self, host: pb.Host) -> pb.Host:
        request = pb.CreateHostRequest(request_id=self.request_id(), host=host)
        return (await self.handlers.create_host(request, ADMIN)).host

    async def update(self, host: pb.Host, etag: str = "") -> pb.Host:
        request = pb.UpdateHostRequest(request_id=self.request_id(), host=host, etag=etag)
        return (await self.handlers.update_host(request, ADMIN)).host

    async def listed(self) -> tuple[list[str], list[str], float]:
        begin_s = asyncio.get_running_loop().time()
        answer = await self.handlers.list_hosts(pb.ListHostsRequest(), ADMIN)
        took_s = asyncio.get_running_loop().time() - begin_s
        return [f"{each.cell}/{each.name}" for each in answer.hosts], list(answer.unreachable_cells), took_s


def in_a_world(claim: Callable[[World], Awaitable[None]]) -> Callable[[], None]:
    def test() -> None:
        async def world() -> None:
            await claim(World())

        run(world())

    test.__name__ = claim.__name__
    return test


@in_a_world
async def test_an_approved_host_is_in_its_cell_with_what_was_approved(world: World) -> None:
    made = await world.create(_host(traits=["GPU", "GPU"], cert_serial="ab"))

    store = world.stores["c1"]
    host = decode(Host, (await store.get(HOST.at("h1"))).value(HOST.at("h1")) or b"")
    assert host.capacity == Resources(vcpus=4, ram_mib=4096, disk_gib=40)
    assert (host.traits, host.enabled, host.slots) == (("GPU",), True, 245)
    assert made.status.state == "UNREACHABLE"


@in_a_world
async def test_what_is_seen_of_a_host_is_shown_beside_what_was_approved(world: World) -> None:
    """What volumes have of its disk was left out: a host that took no more servers looked empty."""
    await world.create(_host())
    session = Session(host="h1", epoch=3, state=SessionState.UP)
    use = Use(
        host="h1",
        claimed=Resources(vcpus=1, ram_mib=512, disk_gib=1),
        instances=1,
        slots=(0,),
        volumes_gib=5,
    )
    await world.stores["c1"].commit(Txn(put={SESSION.at("h1"): encode(session), USE.at("h1"): encode(use)}))

    shown = (await world.handlers.get_host(pb.GetHostRequest(host="h1"), ADMIN)).host

    assert (shown.status.state, shown.status.epoch) == ("UP", 3)
    assert (shown.status.claimed_ram_mib, shown.status.claimed_disk_gib) == (512, 6)
    assert shown.status.instances == 1


@in_a_world
async def test_a_change_made_of_an_older_look_takes_nothing_back(world: World) -> None:
    """A host is written whole. A trait added by what was read before its certificate was replaced brought the old certificate back, which
    was perhaps replaced because somebody else has it.
    """
    before = await world.create(_host(cert_serial="aa"))
    replaced = await world.update(_host(cert_serial="bb"), before.etag)

    with pytest.raises(Conflict) as raised:
        await world.update(_host(cert_serial="aa", traits=["GPU"]), before.etag)

    assert raised.value.reason is Reason.CHANGED_MEANWHILE
    shown = await world.update(_host(cert_serial="bb", traits=["GPU"]), replaced.etag)
    assert (shown.spec.cert_serial, list(shown.spec.traits)) == ("bb", ["GPU"])
    assert len({before.etag, replaced.etag, shown.etag}) == 3


@in_a_world
async def test_a_silent_cell_is_named_within_a_second_and_the_others_are_listed(world: World) -> None:
    await world.create(_host("h1", "c1"))
    await world.create(_host("h2", "c2", "10.100.2.0/24"))
    world.stores["c1"].is_silent = True

    hosts, away, took_s = await world.listed()

    assert (hosts, away) == (["c2/h2"], ["c1"])
    assert took_s < 1.0
    world.stores["c1"].is_silent = False
    await asyncio.sleep(2)
    assert await world.listed() == (["c1/h1", "c2/h2"], [], 0.0)


@in_a_world
async def test_a_host_that_may_be_in_a_silent_cell_is_not_said_to_be_absent(world: World) -> None:
    world.stores["c1"].is_silent = True

    with pytest.raises(Unavailable) as raised:
        await world.handlers.get_host(pb.GetHostRequest(host="h1"), ADMIN)

    assert raised.value.facts["cell"] == "c1"


@in_a_world
async def test_a_change_in_a_silent_cell_fails_within_two_seconds_naming_it(world: World) -> None:
    world.stores["c1"].is_silent = True
    begin_s = asyncio.get_running_loop().time()

    with pytest.raises(Unavailable) as raised:
        await world.create(_host())

    assert asyncio.get_running_loop().time() - begin_s <= 2.0
    assert (raised.value.reason, raised.value.facts["cell"]) == (Reason.CELL_UNAVAILABLE, "c1")


@in_a_world
async def test_one_name_in_two_cells_asks_for_the_cell(world: World) -> None:
    await world.create(_host("h1", "c1"))
    await world.create(_host("h1", "c2", "10.100.2.0/24"))

    with pytest.raises(InvalidRequest) as raised:
        await world.handlers.get_host(pb.GetHostRequest(host="h1"), ADMIN)

    assert raised.value.reason is Reason.NAME_AMBIGUOUS
    found = await world.handlers.get_host(pb.GetHostRequest(host="h1", cell="c2"), ADMIN)
    assert found.host.cell == "c2"


@in_a_world
async def test_a_subnet_does_not_change_under_the_guests_that_live_in_it(world: World) -> None:
    await world.create(_host())
    use = Use(host="h1", claimed=Resources(), instances=1, slots=(0,))
    await world.stores["c1"].commit(Txn(put={USE.at("h1"): encode(use)}))

    with pytest.raises(WrongState):
        await world.update(_host(cidr="10.100.9.0/24"))
    assert (await world.update(_host(vcpus=8, disabled=True))).spec.vcpus == 8


@in_a_world
async def test_what_is_there_and_what_is_not_are_told_apart(world: World) -> None:
    await world.create(_host())

    with pytest.raises(AlreadyExists):
        await world.create(_host(vcpus=8))
    with pytest.raises(NotFound):
        await world.update(_host("h9"))
    with pytest.raises(NotFound):
        await world.handlers.get_host(pb.GetHostRequest(host="h9"), ADMIN)


@in_a_world
async def test_a_host_says_where_its_tunnels_end_and_what_it_leads_to(world: World) -> None:
    made = await world.create(
        _host(tunnel_address="2001:DB8:0::5", physical_networks=["external", "external", "dc2"])
    )

    assert made.spec.tunnel_address == "2001:db8::5"
    assert list(made.spec.physical_networks) == ["external", "dc2"]
    for wrong in ("here", "10.0.0.1/24", "::", "224.0.0.1", "127.0.0.1", "169.254.1.1", "fd00::5%eth0"):
        with pytest.raises(InvalidRequest, match=r"host\.spec\.tunnel_address"):
            await world.update(_host(tunnel_address=wrong))
