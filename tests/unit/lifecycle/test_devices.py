"""Volumes and interfaces of a record: on their way until the host has said so, taken back where it could not be done."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fabric.errors import WrongState
from fabric.lifecycle.core import Freed, Gone, Refused, Said, begin, settle
from fabric.lifecycle.devices import (
    LEAVES_ITS_HOST,
    Dropped,
    added_slots,
    dropped,
    tenant_ports_of,
    volumes_of,
    with_port,
    with_volume,
    without_port,
    without_volume,
)
from fabric.model.faults import FaultCode
from fabric.model.instance import Instance, OneShot, Request
from fabric.model.network import FIRST_GUEST, NO_SLOT, Port, slot_of
from fabric.model.session import HostState
from fabric.model.states import Action, PowerState, TaskState, VmState, Want
from fabric.model.volume import GuestVolume
from tests.unit.lifecycle.records import GUEST, NOW_MS

VOLUME = GuestVolume(id="00000000-0000-7000-8000-000000000011", size_gib=3)
FIRST, ADDED = (
    Port(
        id=f"port-{slot}",
        network_id="n",
        network_name="default",
        mac=f"fa:16:3e:00:00:{slot:02x}",
        address=f"10.66.0.{FIRST_GUEST + slot}",
        prefix_length=24,
        gateway="10.66.0.1",
    )
    for slot in (4, 7)
)
TENANT = replace(FIRST, id="tenant", network_id="t", mac="fa:16:3e:00:00:aa", address="10.0.0.9", vni=7)
POWERS = {HostState.STOPPED: PowerState.SHUTDOWN, HostState.ABSENT: PowerState.NOSTATE}
RUNNING = Instance(
    id=GUEST.id,
    request=Request(guest=GUEST),
    vm_state=VmState.ACTIVE,
    power=PowerState.RUNNING,
    host="h1",
    placement_epoch=1,
    slot=4,
    observed_generation=1,
    ports=(FIRST,),
)


def said(
    now: Instance, *, fault: str = "", state: HostState = HostState.ACTIVE, power: PowerState | None = None
) -> Instance | Gone | Freed | Refused:
    word = Said(
        host="h1",
        placement_epoch=1,
        generation=now.generation,
        action_seq=0,
        state=state,
        power=POWERS.get(state, PowerState.RUNNING) if power is None else power,
        fault_code=fault,
        fault_message="why",
    )
    return settle(now, word, now_ms=NOW_MS, op_id="op")


def told(
    now: Instance, *, fault: str = "", state: HostState = HostState.ACTIVE, power: PowerState | None = None
) -> Instance:
    after = said(now, fault=fault, state=state, power=power)
    assert isinstance(after, Instance)
    return after


def test_a_slot_is_told_by_the_address_that_it_gave() -> None:
    assert (slot_of(FIRST), slot_of(ADDED)) == (4, 7)


def test_a_volume_is_the_servers_when_its_host_has_said_so() -> None:
    asked = with_volume(RUNNING, VOLUME)

    assert (asked.generation, len(asked.plugs)) == (2, 1)
    done = told(asked)
    assert (done.request.guest.volumes, done.plugs, done.fault) == ((VOLUME,), (), None)
    assert dropped(asked, done) == Dropped()


def test_a_volume_that_leaves_is_free_only_when_the_host_has_said_so() -> None:
    had = told(with_volume(RUNNING, VOLUME))
    leaving = without_volume(had, VOLUME.id)

    assert leaving.request.guest.volumes == ()
    assert (volumes_of(leaving), dropped(had, leaving)) == ((VOLUME.id,), Dropped())
    assert dropped(leaving, told(leaving)) == Dropped(volumes=(VOLUME.id,))


@pytest.mark.parametrize("fault", [FaultCode.DEVICE_HELD, FaultCode.SNAPSHOT_FAILED])
def test_a_volume_is_not_free_by_a_word_with_a_fault(fault: FaultCode) -> None:
    leaving = without_volume(told(with_volume(RUNNING, VOLUME)), VOLUME.id)

    after = told(leaving, fault=fault)

    assert volumes_of(after) == (VOLUME.id,)
    assert after.fault is not None


def test_who_lets_go_late_frees_the_volume_and_ends_the_fault() -> None:
    leaving = without_volume(told(with_volume(RUNNING, VOLUME)), VOLUME.id)
    kept = told(leaving, fault=FaultCode.DEVICE_HELD)
    assert kept.generation == leaving.generation

    free = told(kept)

    assert (dropped(kept, free), free.fault) == (Dropped(volumes=(VOLUME.id,)), None)


def test_a_volume_that_could_not_be_plugged_in_is_taken_back_whole() -> None:
    asked = with_volume(RUNNING, VOLUME)

    failed = told(asked, fault=FaultCode.DISK_FULL)

    assert failed.request.guest.volumes == ()
    assert (failed.generation, failed.vm_state) == (asked.generation + 1, VmState.ACTIVE)
    assert failed.fault is not None
    assert failed.fault.code == FaultCode.DISK_FULL
    assert volumes_of(failed) == (VOLUME.id,)
    assert dropped(failed, told(failed)) == Dropped(volumes=(VOLUME.id,))


def test_an_interface_takes_its_slot_until_the_host_has_let_go_of_it() -> None:
    had = told(with_port(RUNNING, ADDED))
    leaving = without_port(had, ADDED.id)

    assert (leaving.ports, dropped(had, leaving)) == ((FIRST,), Dropped())
    assert dropped(leaving, told(leaving)) == Dropped(slots=(7,))


def test_a_port_of_a_tenant_network_is_the_servers_until_its_host_has_let_go_of_it() -> None:
    asked = with_port(RUNNING, TENANT)
    had = told(asked)
    leaving = without_port(had, TENANT.id)
    gone = told(leaving)

    assert (had.ports, had.request.guest.ports, had.plugs) == ((FIRST, TENANT), (TENANT,), ())
    assert (leaving.ports, leaving.request.guest.ports) == ((FIRST,), ())
    assert tenant_ports_of(leaving) == (TENANT.id,)
    assert added_slots(leaving) == ()
    assert dropped(had, leaving) == Dropped()
    assert dropped(leaving, gone) == Dropped(ports=(TENANT.id,))


def test_a_port_of_a_tenant_network_that_could_not_be_plugged_in_is_given_back() -> None:
    failed = told(with_port(RUNNING, TENANT), fault=FaultCode.INTERFACE_ATTACH_FAILED)

    assert (failed.ports, failed.request.guest.ports) == ((FIRST,), ())
    assert dropped(failed, told(failed)) == Dropped(ports=(TENANT.id,))


def test_the_ports_of_a_server_that_leaves_its_host_are_not_given_back() -> None:
    had = told(with_port(RUNNING, TENANT))
    offloaded = replace(had, host="", slot=0, ports=())

    assert dropped(had, offloaded).ports == ()


@pytest.mark.parametrize("action", [Action.RESIZE, Action.MIGRATE])
def test_a_server_goes_to_another_host_with_its_volumes_in_a_shared_directory(action: Action) -> None:
    shared = replace(VOLUME, directory="nfs1")
    had = told(with_volume(RUNNING, shared))

    begun = begin(had, action, now_ms=NOW_MS, op_id="op")
    assert begun.request.guest.volumes == (shared,)
    with pytest.raises(WrongState, match="on its way"):
        begin(without_volume(had, VOLUME.id), action, now_ms=NOW_MS, op_id="op")
    with pytest.raises(WrongState, match="on its host"):
        begin(told(with_volume(had, replace(VOLUME, id=ADDED.id))), action, now_ms=NOW_MS, op_id="op")


@pytest.mark.parametrize("directory", ["", "nfs1"])
def test_a_server_is_put_away_with_its_volumes_but_not_while_one_is_on_its_way(directory: str) -> None:
    had = told(with_volume(RUNNING, replace(VOLUME, directory=directory)))

    begun = begin(had, Action.SHELVE, now_ms=NOW_MS, op_id="op", image_id="im")
    assert (begun.action.kind, begun.carrier_id) == (OneShot.SNAPSHOT, "im")
    assert dropped(begun, replace(begun, host="", slot=0, ports=())) == Dropped()
    with pytest.raises(WrongState, match="on its way"):
        begin(without_volume(had, VOLUME.id), Action.SHELVE, now_ms=NOW_MS, op_id="op")
    with pytest.raises(WrongState, match="added interfaces"):
        begin(told(with_port(had, ADDED)), Action.SHELVE, now_ms=NOW_MS, op_id="op")


def test_what_boots_from_a_volume_is_put_away_without_an_image_and_keeps_the_volume() -> None:
    root = replace(VOLUME, is_root=True, directory="nfs1")
    guest = replace(GUEST, image=None, disk_gib=0, volumes=(root,))
    running = replace(RUNNING, request=replace(RUNNING.request, guest=guest))

    begun = begin(running, Action.SHELVE, now_ms=NOW_MS, op_id="op")
    shelved = told(begun, state=HostState.STOPPED)
    leaving = begin(shelved, Action.SHELVE_OFFLOAD, now_ms=NOW_MS, op_id="op")
    gone = said(leaving, state=HostState.ABSENT)

    assert (begun.action, begun.want, begun.generation) == (running.action, Want.STOP, 2)
    assert (shelved.vm_state, shelved.task, shelved.fault) == (VmState.SHELVED, TaskState.NONE, None)
    assert isinstance(gone, Freed)
    assert (gone.after.vm_state, gone.after.host) == (VmState.SHELVED_OFFLOADED, "")
    assert (volumes_of(gone.after), dropped(leaving, gone.after)) == ((VOLUME.id,), Dropped())
    with pytest.raises(WrongState, match="delete the server, which keeps the volume"):
        begin(running, Action.RESIZE, now_ms=NOW_MS, op_id="op")


@pytest.mark.parametrize(("directory", "task"), [("", TaskState.NONE), ("nfs1", TaskState.UNSHELVING)])
def test_a_host_that_fails_to_raise_a_server_is_left_for_another_only_where_its_volumes_go_too(
    directory: str, task: TaskState
) -> None:
    guest = replace(GUEST, volumes=(replace(VOLUME, directory=directory),))
    raised = replace(
        RUNNING,
        request=replace(RUNNING.request, guest=guest),
        vm_state=VmState.SHELVED_OFFLOADED,
        task=TaskState.UNSHELVING,
        power=PowerState.NOSTATE,
    )

    after = told(raised, state=HostState.ERROR, power=PowerState.NOSTATE, fault=FaultCode.VOLUME_UNREACHABLE)

    assert (after.host, after.task, after.vm_state) == ("", task, VmState.SHELVED_OFFLOADED)
    assert after.fault is not None
    assert (after.fault.code, volumes_of(after)) == (FaultCode.VOLUME_UNREACHABLE, (VOLUME.id,))


@pytest.mark.parametrize("action", sorted(LEAVES_ITS_HOST - {Action.SHELVE_OFFLOAD}))
def test_a_server_on_tenant_networks_may_leave_its_host(action: Action) -> None:
    had = told(with_port(RUNNING, TENANT))

    assert begin(had, action, now_ms=NOW_MS, op_id="op").task.name
    with pytest.raises(WrongState, match="on its way"):
        begin(without_port(had, TENANT.id), action, now_ms=NOW_MS, op_id="op")


def test_the_address_of_the_placement_itself_is_not_an_added_one_wherever_it_stands() -> None:
    last = replace(RUNNING, ports=(TENANT, FIRST))
    none = replace(RUNNING, slot=NO_SLOT, ports=(TENANT, ADDED))

    assert (added_slots(last), added_slots(none)) == ((), (7,))


def test_a_server_that_has_ended_has_nothing() -> None:
    had = with_port(told(with_volume(RUNNING, VOLUME)), ADDED)

    assert dropped(had, None) == Dropped(volumes=(VOLUME.id,), slots=(7,))


def test_a_word_that_is_known_otherwise_still_settles_devices() -> None:
    leaving = without_volume(told(with_volume(RUNNING, VOLUME)), VOLUME.id)
    seen = replace(leaving, observed_generation=leaving.generation)

    assert told(seen).plugs == ()
    stale = settle(
        seen,
        Said(
            host="h1",
            placement_epoch=1,
            generation=1,
            action_seq=0,
            state=HostState.ACTIVE,
            power=PowerState.RUNNING,
        ),
        now_ms=NOW_MS,
        op_id="op",
    )
    assert stale is Refused.STALE


@pytest.mark.parametrize(
    ("action", "tied"),
    [
        *((action, with_volume(RUNNING, VOLUME)) for action in (Action.MIGRATE, Action.RESIZE)),
        *(
            (action, with_port(RUNNING, ADDED))
            for action in sorted(LEAVES_ITS_HOST - {Action.SHELVE_OFFLOAD})
        ),
    ],
)
def test_a_server_with_devices_of_its_host_does_not_leave_it(action: Action, tied: Instance) -> None:
    with pytest.raises(WrongState, match="first"):
        begin(tied, action, now_ms=NOW_MS, op_id="op")

    assert begin(RUNNING, action, now_ms=NOW_MS, op_id="op").task.name
