"""Volumes and interfaces through the handlers, and through the conductor's core as their host tells of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fabric.api.volumes import VolumeHandlers
from fabric.clock import Clock
from fabric.conductor import records
from fabric.conductor.core import flow, repair
from fabric.conductor.core.draft import Draft
from fabric.errors import (
    AlreadyExists,
    InvalidRequest,
    NoCapacity,
    NotFound,
    QuotaExceeded,
    WrongState,
)
from fabric.ids import RandomIds
from fabric.model.host import Host, Resources, Session, SessionState, Use
from fabric.model.instance import Assignment, Instance, Tombstone
from fabric.model.quota import Charge, Quota
from fabric.model.session import HostState, Released, Status
from fabric.model.states import PowerState
from fabric.model.volume import VOLUME_EPOCH, Volume, VolumeState
from fabric.network.addresses import port_at
from fabric.pb.compute.v1 import instance_service_pb2
from fabric.pb.volume.v1 import volume_service_pb2 as pb
from fabric.rpc.method import methods
from fabric.rpc.validate import validate
from fabric.store.base import Txn
from fabric.store.codec import encode
from fabric.store.keys import (
    ASSIGNMENT,
    HOST,
    INSTANCE,
    OVER,
    QUOTA,
    SESSION,
    TOMBSTONE,
    USE,
    VOLUME,
    VOLUME_END,
    VOLUME_ENTRY,
    VOLUME_NAME,
)
from tests.unit.api.test_instances import WHO, World, in_a_world

METHODS = {
    each.action: each
    for each in methods(instance_service_pb2.DESCRIPTOR.services_by_name["InstanceService"])
    if each.action
}
H1 = Host(
    name="h1",
    cell="c1",
    zone="",
    capacity=Resources(vcpus=8, ram_mib=8192, disk_gib=20),
    guest_cidr="10.66.0.0/24",
    slots=16,
)


class Volumes(World):
    """A world with volumes, and a host that is heard."""

    def __init__(self) -> None:
        super().__init__()
        clock: Clock = self.handlers._clock
        self.volumes = VolumeHandlers(
            self.store,
            self.views,
            image=self.catalogue.image,
            clock=clock,
            ids=RandomIds(),
            jitter=lambda: 0.5,
        )

    async def ready(self, *servers: str) -> list[str]:
        limit = Charge(instances=9, vcpus=100, ram_mib=100_000, volumes=3, volume_gib=40)
        used = (await self.read(self.store, QUOTA, "p")).used
        await self.store.commit(
            Txn(put={QUOTA.at("p"): encode(Quota(project_id="p", limit=limit, used=used))})
        )
        await self.cells["c1"].commit(Txn(put={HOST.at("h1"): encode(H1)}))
        return [await self._server(name, slot) for slot, name in enumerate(servers)]

    async def _server(self, name: str, slot: int) -> str:
        server = await self.placed(name)
        cell = self.cells["c1"]
        record: Instance = await self.read(cell, INSTANCE, server)
        order: Assignment = await self.read(cell, ASSIGNMENT, "h1", server)
        use: Use = await self.read(cell, USE, "h1") or Use(host="h1")
        port = port_at(H1, slot, instance_id=server, request=record.request)
        use = use.plus(record.request.guest.resources(), slot, op_id="op")
        await cell.commit(
            Txn(
                put={
                    INSTANCE.at(server): encode(replace(record, slot=slot, ports=(port,))),
                    ASSIGNMENT.at("h1", server): encode(
                        replace(order, guest=replace(order.guest, ports=(port,)))
                    ),
                    USE.at("h1"): encode(use),
                }
            )
        )
        return server

    async def make(self, name: str = "data", size_gib: int = 5, directory: str = "") -> pb.Volume:
        volume = pb.Volume(name=name, size_gib=size_gib, directory=directory)
        request = pb.CreateVolumeRequest(request_id=self.rid(), volume=volume)
        return (await self.volumes.create_volume(request, WHO)).volume

    async def show(self, word: str = "data") -> pb.Volume:
        return (await self.volumes.get_volume(pb.GetVolumeRequest(volume=word), WHO)).volume

    async def end(self, word: str = "data", request_id: str = "") -> None:
        request = pb.DeleteVolumeRequest(request_id=request_id or self.rid(), volume=word)
        await self.volumes.delete_volume(request, WHO)

    async def used_once(self, server: str, name: str = "data") -> str:
        """A volume that a server had, and has let go of."""
        made = await self.make(name)
        for action in ("attach-volume", "detach-volume"):
            await self.act(action, server, volume=made.id)
            await self.told(server)
        return made.id

    async def forgotten(self, volume_id: str) -> None:
        """Its host has removed its data, and the reconciler its row."""
        await self.released(volume_id)
        entry = await self.read(self.store, VOLUME_ENTRY, "p", volume_id)
        delete = (VOLUME_ENTRY.at("p", volume_id), VOLUME_NAME.at("p", entry.name))
        await self.store.commit(Txn(delete=delete))

    async def act(
        self, action: str, server: str, request_id: str = "", **fields: Any
    ) -> instance_service_pb2.Instance:
        method = METHODS[action]
        request = method.request(request_id=request_id or self.rid(), instance=server, **fields)
        answer: instance_service_pb2.Instance = (
            await vars(self.handlers)[method.attribute](request, WHO)
        ).instance
        return answer

    async def told(self, server: str, state: HostState = HostState.ACTIVE, fault: str = "") -> None:
        """The host says that the latest generation is so."""
        cell = self.cells["c1"]
        record: Instance = await self.read(cell, INSTANCE, server)
        power = {HostState.ACTIVE: PowerState.RUNNING}.get(state, PowerState.NOSTATE)
        status = Status(
            epoch=1,
            instance_id=server,
            placement_epoch=1,
            generation=record.generation,
            action_seq=0,
            state=state,
            power=power,
            fault_code=fault,
        )
        draft = Draft(await records.read(cell, flow.status_reads("h1", status)))
        draft.add(await records.read(cell, draft.missing(flow.move_reads(draft, status))))
        assert flow.take_status(draft, "h1", 1, status, now_ms=1, op_id="op") == flow.ACCEPTED
        assert await records.commit(cell, draft)

    async def released(self, thing: str) -> None:
        cell = self.cells["c1"]
        word = Released(epoch=1, instance_id=thing, placement_epoch=VOLUME_EPOCH)
        draft = Draft(await records.read(cell, flow.release_reads("h1", word)))
        draft.add(await records.read(cell, draft.missing(flow.freed_reads(draft, "h1", word))))
        assert flow.take_released(draft, "h1", 1, word, now_ms=1, op_id="op") == flow.ACCEPTED
        assert await records.commit(cell, draft)

    async def use(self) -> Use:
        use: Use = await self.read(self.cells["c1"], USE, "h1")
        return use

    async def volume(self, volume_id: str) -> Volume:
        volume: Volume = await self.read(self.cells["c1"], VOLUME, volume_id)
        return volume


def volumes_test(claim: Any) -> Any:
    return in_a_world(claim, kind=Volumes)


@volumes_test
async def test_a_volume_is_made_charged_found_and_ended(world: Volumes) -> None:
    await world.ready()
    made = await world.make()

    assert (made.status, made.size_gib, made.cell, made.host) == ("available", 5, "", "")
    assert (await world.show(made.id)).name == "data"
    assert (await world.read(world.store, QUOTA, "p")).used.volume_gib == 5
    with pytest.raises(AlreadyExists):
        await world.make()
    await world.end()
    with pytest.raises(NotFound):
        await world.show()
    used = (await world.read(world.store, QUOTA, "p")).used
    assert (used.volumes, used.volume_gib) == (0, 0)


@volumes_test
async def test_a_list_goes_on_after_the_longest_name_there_can_be(world: Volumes) -> None:
    """A token holds the name that a page ended with, and names are counted in characters: of 255 that take four bytes each it was longer
    than tokens may be, so the second page was refused.
    """
    await world.ready()
    for end in "ab":
        await world.make("\N{FLOPPY DISK}" * 254 + end)

    first = await world.volumes.list_volumes(pb.ListVolumesRequest(page_size=1), WHO)
    request = pb.ListVolumesRequest(page_size=1, page_token=first.next_page_token)
    validate(request)
    rest = await world.volumes.list_volumes(request, WHO)

    assert [each.name[-1] for each in (*first.volumes, *rest.volumes)] == ["a", "b"]


@volumes_test
async def test_volumes_have_a_quota(world: Volumes) -> None:
    await world.ready()

    with pytest.raises(QuotaExceeded, match="GiB of volumes"):
        await world.make(size_gib=41)
    for number in range(3):
        await world.make(f"v{number}", 1)
    with pytest.raises(QuotaExceeded, match="3 volumes"):
        await world.make("one-more", 1)


@volumes_test
async def test_a_volume_is_attached_to_one_server_at_a_time(world: Volumes) -> None:
    one, two = await world.ready("one", "two")
    made = await world.make()
    begun = await world.act("attach-volume", one, volume="data")

    assert [each.state for each in begun.status.volumes] == ["ATTACHING"]
    with pytest.raises(WrongState, match="one server at a time"):
        await world.act("attach-volume", two, volume="data")
    await world.told(one)
    shown = await world.show()
    assert (shown.status, shown.instance_id, shown.cell) == ("in-use", one, "c1")
    assert (await world.get(one)).status.volumes[0].state == "ATTACHED"
    order: Assignment = await world.read(world.cells["c1"], ASSIGNMENT, "h1", one)
    assert [(each.id, each.size_gib) for each in order.guest.volumes] == [(made.id, 5)]
    assert (await world.use()).volumes_gib == 5


@volumes_test
async def test_a_volume_goes_on_when_its_guest_has_let_go_of_it(world: Volumes) -> None:
    one, two = await world.ready("one", "two")
    made = await world.make()
    await world.act("attach-volume", one, volume="data")
    await world.told(one)
    await world.act("detach-volume", one, volume="data")

    assert (await world.show()).status == "detaching"
    await world.told(one, fault="DEVICE_HELD")
    assert (await world.show()).status == "detaching"
    with pytest.raises(WrongState, match="still being detached"):
        await world.act("attach-volume", two, volume="data")
    with pytest.raises(WrongState, match="detach"):
        await world.end()
    await world.told(one)
    assert (await world.show()).status == "available"
    await world.act("attach-volume", two, volume=made.id)
    assert (await world.volume(made.id)).instance_id == two


@volumes_test
async def test_an_attachment_that_fails_is_taken_back(world: Volumes) -> None:
    (one,) = await world.ready("one")
    await world.make()
    await world.act("attach-volume", one, volume="data")
    await world.told(one, fault="DISK_FULL")

    assert (await world.show()).status == "in-use"
    await world.told(one)
    assert (await world.show()).status == "available"
    assert (await world.get(one)).status.fault.code == "DISK_FULL"


@volumes_test
async def test_a_volume_that_was_used_ends_when_its_host_has_removed_it(world: Volumes) -> None:
    (one,) = await world.ready("one")
    made = await world.make()
    await world.act("attach-volume", one, volume="data")
    await world.told(one)
    await world.act("detach-volume", one, volume="data")
    await world.told(one)
    await world.end()
    await world.end()

    assert (await world.show()).status == "deleting"
    assert await world.read(world.cells["c1"], TOMBSTONE, "h1", made.id) is not None
    with pytest.raises(WrongState, match="being deleted"):
        await world.act("attach-volume", one, volume="data")
    await world.released(made.id)
    assert (await world.volume(made.id)).state is VolumeState.DELETED
    assert await world.read(world.cells["c1"], VOLUME_END, made.id) is not None
    assert (await world.use()).volumes_gib == 0


@volumes_test
async def test_a_late_retry_of_a_delete_leaves_a_new_volume_of_that_name_alone(world: Volumes) -> None:
    """A volume that was used is deleted in its cell, which remembers the request; the new one of that name, never used, was looked up in
    the global store alone, which had never heard of the request: the retry deleted somebody's new data.
    """
    (one,) = await world.ready("one")
    first = await world.used_once(one)
    await world.end("data", "same")
    await world.forgotten(first)
    new = await world.make("data")

    await world.end("data", "same")

    assert (await world.show("data")).id == new.id


@volumes_test
async def test_a_late_retry_leaves_a_new_volume_alone_that_is_used(world: Volumes) -> None:
    (one,) = await world.ready("one")
    await world.make("data")
    await world.end("data", "same")
    new = await world.used_once(one)

    await world.end("data", "same")

    assert (await world.show("data")).status == "available"
    assert (await world.volume(new)).state is VolumeState.AVAILABLE


@pytest.mark.parametrize("word", ["id", "name"])
def test_a_late_retry_of_a_delete_is_answered_as_the_first(word: str) -> None:
    @volumes_test
    async def though_its_row_is_gone(world: Volumes) -> None:
        (one,) = await world.ready("one")
        volume_id = await world.used_once(one)
        asked = {"id": volume_id, "name": "data"}[word]
        await world.end(asked, "same")
        await world.forgotten(volume_id)

        await world.end(asked, "same")

        with pytest.raises(NotFound):
            await world.end(asked, "another")

    though_its_row_is_gone()


@volumes_test
async def test_a_late_retry_of_an_attachment_leaves_a_new_volume_of_that_name_alone(world: Volumes) -> None:
    """The first use of a volume has it belong to the server's cell for good. A retry of what was done long ago did that to whatever volume
    had the name by then.
    """
    (one,) = await world.ready("one")
    first = await world.make("data")
    await world.act("attach-volume", one, request_id="same", volume="data")
    await world.told(one)
    await world.act("detach-volume", one, volume=first.id)
    await world.told(one)
    await world.end(first.id)
    await world.forgotten(first.id)
    await world.make("data")

    again = await world.act("attach-volume", one, request_id="same", volume="data")

    assert again.id == one
    assert (await world.show("data")).cell == ""


@volumes_test
async def test_volumes_outlive_their_server_but_for_those_that_end_with_it(world: Volumes) -> None:
    (one,) = await world.ready("one")
    keeps, goes = await world.make("keeps"), await world.make("goes")
    await world.act("attach-volume", one, volume="keeps")
    await world.act("attach-volume", one, volume="goes", delete_on_termination=True)
    await world.told(one)
    await world.delete(one)
    await world.told(one, HostState.ABSENT)

    assert (await world.show("keeps")).status == "available"
    assert (await world.show("goes")).status == "deleting"
    assert await world.read(world.cells["c1"], TOMBSTONE, "h1", goes.id) is not None
    assert (await world.volume(keeps.id)).host == "h1"


@volumes_test
async def test_the_volumes_of_a_server_on_a_silent_host_are_free_when_it_is_back(world: Volumes) -> None:
    (one,) = await world.ready("one")
    made = await world.make()
    await world.act("attach-volume", one, volume="data")
    await world.told(one)
    await world.delete(one)
    cell = world.cells["c1"]
    silent = Session(host="h1", epoch=1, state=SessionState.UNREACHABLE)
    await cell.commit(Txn(put={SESSION.at("h1"): encode(silent)}))
    draft = Draft(await records.read(cell, repair.overdue_reads("h1", one)))
    draft.add(await records.read(cell, draft.missing(repair.further_reads(draft, one))))
    now_ms = 10**15
    assert repair.end_overdue(draft, "h1", one, now_ms=now_ms, op_id="op")
    assert await records.commit(cell, draft)

    assert await world.read(cell, OVER, one) is not None
    assert (await world.volume(made.id)).instance_id == one
    up = Session(host="h1", epoch=1, state=SessionState.UP)
    await cell.commit(Txn(put={SESSION.at("h1"): encode(up)}))
    await world.released(one)
    assert (await world.show()).status == "available"


@volumes_test
async def test_a_volume_stays_on_the_host_where_it_was_first_attached(world: Volumes) -> None:
    (one,) = await world.ready("one")
    made = await world.make()
    elsewhere = Volume(id=made.id, project_id="p", state=VolumeState.AVAILABLE, host="h2", size_gib=5)
    await world.cells["c1"].commit(Txn(put={VOLUME.at(made.id): encode(elsewhere)}))

    with pytest.raises(WrongState, match="another host"):
        await world.act("attach-volume", one, volume="data")
    entry = await world.read(world.store, VOLUME_ENTRY, "p", made.id)
    await world.store.commit(Txn(put={VOLUME_ENTRY.at("p", made.id): encode(replace(entry, cell="c2"))}))
    with pytest.raises(WrongState, match="cell c2"):
        await world.act("attach-volume", one, volume="data")


@volumes_test
async def test_a_volume_takes_room_of_its_host_and_no_more_than_there_is(world: Volumes) -> None:
    (one,) = await world.ready("one")
    await world.make("large", 20)

    with pytest.raises(NoCapacity, match="19 GiB"):
        await world.act("attach-volume", one, volume="large")
    assert (await world.use()).volumes_gib == 0


@volumes_test
async def test_a_volume_grows_while_nobody_has_it_and_takes_the_room_when_it_is_next_attached(
    world: Volumes,
) -> None:
    (one,) = await world.ready("one")
    await world.make()

    async def grow(size_gib: int) -> pb.Volume:
        request = pb.UpdateVolumeRequest(request_id=world.rid(), volume="data", size_gib=size_gib)
        request.update_mask.paths.append("size_gib")
        return (await world.volumes.update_volume(request, WHO)).volume

    assert (await grow(8)).size_gib == 8
    with pytest.raises(InvalidRequest, match="shrink"):
        await grow(7)
    await world.act("attach-volume", one, volume="data")
    assert (await world.use()).volumes_gib == 8
    with pytest.raises(WrongState, match="larger"):
        await grow(9)


@volumes_test
async def test_a_volume_that_is_not_there_is_the_requests_fault(world: Volumes) -> None:
    (one,) = await world.ready("one")
    await world.make()

    with pytest.raises(InvalidRequest, match="no volume 'other'"):
        await world.act("attach-volume", one, volume="other")
    with pytest.raises(WrongState, match="not attached"):
        await world.act("detach-volume", one, volume="data")


@volumes_test
async def test_another_interface_has_an_address_of_its_own_until_the_host_has_let_go(
    world: Volumes,
) -> None:
    (one,) = await world.ready("one")
    begun = await world.act("attach-interface", one, network="default")

    first, added = begun.status.addresses
    assert (first.address, added.address) == ("10.66.0.10", "10.66.0.11")
    assert first.mac != added.mac
    order: Assignment = await world.read(world.cells["c1"], ASSIGNMENT, "h1", one)
    assert [port.address for port in order.guest.ports] == [first.address, added.address]
    await world.told(one)
    with pytest.raises(WrongState, match="goes with the server"):
        await world.act("detach-interface", one, port=first.port_id)
    await world.act("detach-interface", one, port=added.address)
    assert (await world.use()).slots == (0, 1)
    await world.told(one)
    assert (await world.use()).slots == (0,)


@volumes_test
async def test_a_server_that_ends_gives_back_every_address(world: Volumes) -> None:
    one, _ = await world.ready("one", "two")
    await world.act("attach-interface", one, network="default")
    await world.told(one)
    await world.delete(one)
    await world.told(one, HostState.ABSENT)

    use = await world.use()
    assert (use.slots, use.instances) == ((1,), 1)


@volumes_test
async def test_a_volume_in_a_shared_directory_goes_to_any_host_that_shares_it(world: Volumes) -> None:
    (one,) = await world.ready("one")
    made = await world.make("data", directory="nfs1")
    assert made.directory == "nfs1"

    with pytest.raises(WrongState, match="VOLUMES_NFS1"):
        await world.act("attach-volume", one, volume="data")
    sharing = replace(H1, traits=("VOLUMES_NFS1",))
    elsewhere = Volume(
        id=made.id, project_id="p", state=VolumeState.AVAILABLE, host="h2", size_gib=5, directory="nfs1"
    )
    await world.cells["c1"].commit(
        Txn(put={HOST.at("h1"): encode(sharing), VOLUME.at(made.id): encode(elsewhere)})
    )
    await world.act("attach-volume", one, volume="data")
    await world.told(one)
    record = await world.volume(made.id)
    assert (record.host, record.instance_id, record.claimed_gib) == ("h1", one, 0)
    assert (await world.use()).volumes_gib == 0
    order: Assignment = await world.read(world.cells["c1"], ASSIGNMENT, "h1", one)
    assert [each.directory for each in order.guest.volumes] == ["nfs1"]


@volumes_test
async def test_a_volume_in_a_shared_directory_is_removed_by_the_host_that_had_it_last(world: Volumes) -> None:
    (one,) = await world.ready("one")
    made = await world.make("data", directory="nfs1")
    sharing = replace(H1, traits=("VOLUMES_NFS1",))
    await world.cells["c1"].commit(Txn(put={HOST.at("h1"): encode(sharing)}))
    await world.act("attach-volume", one, volume="data")
    await world.told(one)
    await world.act("detach-volume", one, volume="data")
    await world.told(one)
    await world.end()

    tombstone: Tombstone = await world.read(world.cells["c1"], TOMBSTONE, "h1", made.id)
    assert tombstone.directory == "nfs1"
    await world.released(made.id)
    assert (await world.volume(made.id)).state is VolumeState.DELETED
    assert (await world.use()).volumes_gib == 0
