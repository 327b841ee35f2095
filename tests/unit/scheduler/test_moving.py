"""Claims of moves: what the records that a claim compares must still allow."""

from __future__ import annotations

from dataclasses import replace

from fabric.model.host import Host, Resources, Session, SessionState, Use
from fabric.model.instance import Assignment, Instance, MoveWanted, Request
from fabric.model.placement import Decision
from fabric.model.quota import Charge
from fabric.model.states import TaskState, VmState, Want
from fabric.model.volume import GuestVolume, Volume, VolumeState
from fabric.scheduler.core.moving import Claimed, Found, Waiting, claim, most, wants
from fabric.scheduler.core.picture import Seen
from fabric.store import keys
from tests.unit.scheduler.worlds import host, request

LARGE = Resources(vcpus=2, ram_mib=1024, disk_gib=4)
CHOSEN = host("e2", capacity=Resources(vcpus=4, ram_mib=4096, disk_gib=8))


def _claimed(chosen: Host, use: Use) -> Claimed | None:
    asked = Instance(
        id="i-1",
        request=request(instance_id="i-1"),
        vm_state=VmState.ACTIVE,
        task=TaskState.RESIZE_PREP,
        want=Want.RUN,
        host="e1",
        placement_epoch=1,
        slot=0,
        generation=2,
    )
    work = MoveWanted(instance_id="i-1", request=request(LARGE, instance_id="i-1"), image_id="carrier")
    order = Assignment(
        instance_id="i-1",
        placement_epoch=1,
        generation=2,
        want=Want.RUN,
        action=asked.action,
        guest=asked.request.guest,
    )
    return claim(
        Waiting(work=Seen(work, 1), instance=Seen(asked, 2), order=Seen(order, 3)),
        Found(
            host=Seen(chosen, 4),
            session=Seen(Session(host="e2", epoch=1, state=SessionState.UP), 5),
            use=Seen(use, 6),
        ),
        Decision(considered=1, host="e2", cell="east"),
        now_ms=7,
        op_id="op-1",
    )


def test_a_move_takes_no_room_that_a_volume_took_since_it_was_decided() -> None:
    """The claim compared what servers had claimed of the disk and left out what volumes had: the use record that it compares said that
    the disk was full, and the move was claimed on it all the same.
    """
    assert _claimed(CHOSEN, Use(host="e2", volumes_gib=4)) is not None
    assert _claimed(CHOSEN, Use(host="e2", volumes_gib=5)) is None


def test_a_move_goes_to_no_host_that_was_closed_since_it_was_decided() -> None:
    assert _claimed(replace(CHOSEN, enabled=False), Use(host="e2")) is None


def _raised(volume: Volume, *, chosen: str = "e2", is_root: bool = True) -> Claimed | None:
    """A shelved server with this volume, claimed for a host."""
    mine = GuestVolume(id="v-1", size_gib=volume.size_gib, is_root=is_root, directory=volume.directory)
    asked = request(instance_id="i-1")
    asked = replace(asked, guest=replace(asked.guest, image=None, disk_gib=0, volumes=(mine,)))
    waiting = Waiting(
        work=Seen(MoveWanted(instance_id="i-1", request=asked), 1),
        instance=Seen(shelved(asked), 2),
        order=Seen(),
        volumes={"v-1": Seen(volume, 3)},
    )
    return claim(
        waiting,
        Found(
            host=Seen(replace(CHOSEN, name=chosen), 4),
            session=Seen(Session(host=chosen, epoch=1, state=SessionState.UP), 5),
            use=Seen(Use(host=chosen, volumes_gib=8), 6),
        ),
        Decision(considered=1, host=chosen, cell="east"),
        now_ms=7,
        op_id="op-1",
    )


def shelved(asked: Request) -> Instance:
    return Instance(
        id="i-1",
        request=asked,
        vm_state=VmState.SHELVED_OFFLOADED,
        task=TaskState.UNSHELVING,
        placement_epoch=1,
        highest_epoch=1,
        generation=5,
    )


SHARED = Volume(
    id="v-1",
    project_id="p-1",
    state=VolumeState.IN_USE,
    host="e1",
    size_gib=5,
    instance_id="i-1",
    directory="nfs1",
)


def test_a_claim_for_a_shelved_server_compares_its_volumes_which_go_to_its_new_host() -> None:
    claimed = _raised(SHARED)

    assert claimed is not None
    assert claimed.change.unchanged[keys.VOLUME.at("v-1")] == 3
    assert claimed.change.put[keys.VOLUME.at("v-1")] == replace(
        SHARED, host="e2", update_time_ms=7, op_id="op-1"
    )
    order = claimed.change.put[keys.ASSIGNMENT.at("e2", "i-1")]
    assert isinstance(order, Assignment)
    assert (order.guest.image, order.guest.standalone, order.placement_epoch) == (None, False, 2)


def test_no_room_is_claimed_again_for_volumes_that_were_the_servers_all_the_while() -> None:
    local = replace(SHARED, directory="", host="e2")

    claimed = _raised(local)
    assert claimed is not None
    assert claimed.use.volumes_gib == 8


def test_a_shelved_server_is_not_claimed_where_its_volumes_are_not_or_without_them() -> None:
    assert _raised(replace(SHARED, directory="")) is None
    assert _raised(replace(SHARED, instance_id="i-2")) is None


def test_a_shelved_server_asks_for_the_host_of_its_files_or_for_hosts_that_share_its_directories() -> None:
    asked = request(instance_id="i-1")
    work = MoveWanted(instance_id="i-1", request=asked)
    files = {"v-1": Seen(replace(SHARED, directory="", host="e3"), 3), "v-2": Seen(SHARED, 3)}

    assert wants(work, shelved(asked), cell="east", volumes=files).host == "e3"
    assert wants(work, shelved(asked), cell="east", volumes={"v-2": files["v-2"]}).host == ""
    guest = replace(asked.guest, volumes=(GuestVolume(id="v-2", size_gib=5, directory="nfs1"),))
    there = wants(replace(work, request=replace(asked, guest=guest)), shelved(asked), cell="east")
    assert "VOLUMES_NFS1" in there.required_traits


def test_the_most_of_two_charges_is_enough_for_either_of_everything() -> None:
    """What volumes are charged came later, and was left out: one that is charged with its server would have been given back by a move."""
    one = Charge(instances=1, vcpus=4, ram_mib=512, volumes=1, volume_gib=5)
    other = Charge(instances=1, vcpus=2, ram_mib=1024, volumes=0, volume_gib=9)

    assert most(one, other) == Charge(instances=1, vcpus=4, ram_mib=1024, volumes=1, volume_gib=9)
