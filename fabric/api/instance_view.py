"""Servers as people are shown them: from the cell's record, the index row, or the build request, whichever is all there is."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from fabric.lifecycle.table import UNKNOWN, shown
from fabric.model.host import Session, SessionState
from fabric.model.instance import Build, Fault, Instance, Location, Request
from fabric.model.network import FloatingIp, Port
from fabric.model.placement import Decision
from fabric.model.states import TaskState, VmState
from fabric.model.volume import GuestVolume, serial_of
from fabric.pb.compute.v1 import instance_service_pb2 as pb


def timestamp(ms: int) -> Timestamp | None:
    """Milliseconds since 1970 on the wire; None, which is "not set", for 0."""
    if not ms:
        return None
    return Timestamp(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)


def from_record(
    record: Instance,
    *,
    cell: str,
    session: Session | None,
    zone: str,
    mod_revision: int,
    shows_host: bool,
    progress: str = "",
) -> pb.Instance:
    """A server that its cell knows. `shows_host` is for administrators: tenants do not learn where their neighbours are."""
    message = _frame(record.request, update_time_ms=record.update_time_ms)
    message.etag = str(mod_revision)
    message.tags.extend(record.tags)
    message.locked, message.locked_reason = record.locked, record.locked_reason
    message.locked_by_admin = record.locked_by_admin
    message.status.CopyFrom(
        pb.InstanceStatus(
            state=shown(record.vm_state, record.task),
            vm_state=record.vm_state.name.lower(),
            task_state="" if record.task is TaskState.NONE else record.task.name.lower(),
            progress=progress,
            power_state=record.power.name.lower(),
            power_seen_time=timestamp(record.power_seen_ms),
            cell=cell,
            host=record.host if shows_host else "",
            host_state=_host_state(session) if record.host else "",
            availability_zone=zone or record.request.zone,
            addresses=_addresses(record.ports if record.host else record.request.guest.ports),
            fault=_fault(record.fault),
            placement=_decision(record.decision),
            launch_time=timestamp(record.launch_time_ms),
            generation=record.generation,
            observed_generation=record.observed_generation,
            purge_time=timestamp(record.purge_time_ms),
            volumes=_volumes(record),
        )
    )
    return message


def from_build(build: Build) -> pb.Instance:
    """A server that was accepted and has no host yet."""
    message = _frame(build.request, update_time_ms=build.create_time_ms)
    task = TaskState.DELETING if build.cancelled else TaskState.SCHEDULING
    message.status.CopyFrom(
        pb.InstanceStatus(
            state=shown(VmState.BUILDING, task),
            vm_state=VmState.BUILDING.name.lower(),
            task_state=task.name.lower(),
            power_state="nostate",
            addresses=_addresses(build.request.guest.ports),
            cell=build.cell,
            generation=1,
            volumes=[_attached(each, "ATTACHING") for each in build.request.guest.volumes],
        )
    )
    return message


def from_location(location: Location, *, reason: str) -> pb.Instance:
    """A server of which only the index is known: its cell cannot be reached, or its end is being written."""
    message = pb.Instance(
        id=location.instance_id,
        name=location.name,
        project_id=location.project_id,
        user_id=location.user_id,
        create_time=timestamp(location.create_time_ms),
        spec=pb.InstanceSpec(vcpus=location.charge.vcpus, ram_mib=location.charge.ram_mib),
    )
    message.status.CopyFrom(pb.InstanceStatus(state=UNKNOWN, cell=location.cell, host_state=reason))
    return message


def _frame(request: Request, *, update_time_ms: int) -> pb.Instance:
    guest = request.guest
    return pb.Instance(
        id=guest.id,
        name=guest.name,
        project_id=guest.project_id,
        user_id=guest.user_id,
        create_time=timestamp(request.create_time_ms),
        update_time=timestamp(update_time_ms),
        spec=pb.InstanceSpec(
            flavor_id=request.flavor_id,
            flavor_name=request.flavor_name,
            vcpus=guest.vcpus,
            ram_mib=guest.ram_mib,
            disk_gib=guest.disk_gib,
            image_id="" if guest.image is None else guest.image.id,
            image_name="" if guest.image is None else guest.image.name,
            network_name=request.network_name or next((it.network_name for it in guest.ports), ""),
            key_name=request.key_name,
            availability_zone=request.zone,
            metadata=dict(guest.metadata),
            config_drive=guest.config_drive,
        ),
    )


def _host_state(session: Session | None) -> str:
    return session.state.name if session is not None else SessionState.UNREACHABLE.name


FIXED, FLOATING = "FIXED", "FLOATING"
"""What kinds of addresses there are, in people's words."""


def _addresses(ports: Sequence[Port]) -> list[pb.Address]:
    return [
        pb.Address(
            network_name=port.network_name,
            address=each.address,
            mac=port.mac,
            port_id=port.id,
            kind=FIXED,
            network_id=port.network_id,
        )
        for port in ports
        for each in port.addresses
    ]


def floating_address(fixed: pb.Address, floating_ip: FloatingIp) -> pb.Address:
    """The address of a floating IP, as one of the network that it leads into (as the reference lists it)."""
    shown = pb.Address()
    shown.CopyFrom(fixed)
    shown.address, shown.kind = floating_ip.address, FLOATING
    return shown


def _fault(fault: Fault | None) -> pb.Fault | None:
    if fault is None:
        return None
    return pb.Fault(code=fault.code, message=fault.message, time=timestamp(fault.time_ms))


def _decision(decision: Decision | None) -> pb.PlacementDecision | None:
    """What people are told; which hosts there are is not theirs to know, so examples and weights stay inside."""
    if decision is None:
        return None
    explanation = decision.explain() if not decision.host else f"placed among {decision.considered} hosts"
    return pb.PlacementDecision(
        considered=decision.considered,
        explanation=explanation,
        refusals=[
            pb.PlacementRefusal(filter=each.filter, reason=each.reason, hosts=each.hosts)
            for each in decision.refusals
        ],
        suggestion=decision.suggestion,
        time=timestamp(decision.decide_time_ms),
    )


def _volumes(record: Instance) -> list[pb.AttachedVolume]:
    """The server's volumes, those that it has not let go of yet last."""
    coming = {each.volume_id for each in record.plugs if not each.is_leaving}
    wanted = [
        _attached(each, "ATTACHING" if each.id in coming else "ATTACHED")
        for each in record.request.guest.volumes
    ]
    leaving = [
        pb.AttachedVolume(volume_id=each.volume_id, serial=serial_of(each.volume_id), state="DETACHING")
        for each in record.plugs
        if each.is_leaving and each.volume_id
    ]
    return wanted + leaving


def _attached(volume: GuestVolume, state: str) -> pb.AttachedVolume:
    return pb.AttachedVolume(
        volume_id=volume.id,
        size_gib=volume.size_gib,
        serial=volume.serial,
        state=state,
        is_root=volume.is_root,
    )
