"""Servers, as the command line prints them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fabric.cli.output import Cell, Plain, Value, when

if TYPE_CHECKING:
    from fabric.client.instances import Instance, InstanceDiagnostics

COLUMNS = ("ID", "Name", "Status", "Networks", "Image", "Flavor")
LONG_COLUMNS = (
    *COLUMNS,
    "Task State",
    "Power State",
    "Availability Zone",
    "Cell",
    "Host",
    "Project ID",
    "Created",
)


def volumes(instance: Instance) -> Cell:
    """The volumes it has, or has not let go of yet: lines for people, a list for programs."""
    found: list[Plain] = [
        {
            "id": it.volume_id,
            "state": it.state.lower(),
            "device": f"/dev/disk/by-id/virtio-{it.serial}",
            "bootable": it.is_root,
        }
        for it in instance.status.volumes
    ]
    lines = (
        f"{it.volume_id} ({it.state.lower()}{', it boots from this' if it.is_root else ''})"
        for it in instance.status.volumes
    )
    return Cell(found, "\n".join(lines))


def image_name(instance: Instance) -> str:
    """The name of what its disk started as; the reference's words where that is a volume."""
    if any(it.is_root for it in instance.status.volumes):
        return "N/A (booted from volume)"
    return instance.spec.image_name


def image(instance: Instance) -> Cell:
    """What its disk started as."""
    spec = instance.spec
    name = image_name(instance)
    return Cell({"id": spec.image_id, "name": name}, f"{name} ({spec.image_id})" if spec.image_id else name)


def addresses(instance: Instance) -> Cell:
    """The addresses by network."""
    by_network: dict[str, list[str]] = {}
    for it in instance.status.addresses:
        by_network.setdefault(it.network_name, []).append(it.address)
    text = "; ".join(f"{network}={', '.join(them)}" for network, them in by_network.items())
    return Cell({network: tuple(them) for network, them in by_network.items()}, text)


def row(instance: Instance, *, long: bool) -> Sequence[Value]:
    """A line of a list."""
    spec, status = instance.spec, instance.status
    short = (
        instance.id,
        instance.name,
        status.state,
        addresses(instance),
        image_name(instance),
        spec.flavor_name,
    )
    if not long:
        return short
    return (
        *short,
        status.task_state,
        status.power_state,
        status.availability_zone,
        status.cell,
        status.host,
        instance.project_id,
        when(instance.create_time),
    )


def view(instance: Instance) -> dict[str, Value]:
    """Every field. The names are those of `openstack server show`, where it has them."""
    spec, status = instance.spec, instance.status
    return {
        "id": instance.id,
        "name": instance.name,
        "status": status.state,
        "task_state": status.task_state,
        "vm_state": status.vm_state,
        "power_state": status.power_state,
        "progress": status.progress,
        "fault": _fault(instance),
        "addresses": addresses(instance),
        "volumes_attached": volumes(instance),
        "flavor": Cell(
            {
                "id": spec.flavor_id,
                "name": spec.flavor_name,
                "vcpus": spec.vcpus,
                "ram": spec.ram_mib,
                "disk": spec.disk_gib,
            },
            f"{spec.flavor_name} ({spec.vcpus} vCPU, {spec.ram_mib} MiB, {spec.disk_gib} GiB)",
        ),
        "image": image(instance),
        "key_name": spec.key_name,
        "config_drive": spec.config_drive,
        "availability_zone": status.availability_zone or spec.availability_zone,
        "cell": status.cell,
        "host": status.host,
        "host_status": status.host_state,
        "placement": status.placement.explanation,
        "placement_refusals": _refusals(instance),
        "placement_suggestion": status.placement.suggestion,
        "properties": dict(sorted(spec.metadata.items())),
        "tags": list(instance.tags),
        "locked": instance.locked,
        "locked_reason": instance.locked_reason,
        "project_id": instance.project_id,
        "user_id": instance.user_id,
        "created": when(instance.create_time),
        "updated": when(instance.update_time),
        "launched_at": when(status.launch_time),
        "purged_at": when(status.purge_time),
    }


def line(instance: Instance, before: Instance) -> str:
    """Where a server is, in one line, for whoever waits since `before`: a fault of that time is of something else."""
    status = instance.status
    words = [f"{instance.name}: {status.state}", status.task_state, status.progress]
    if status.fault.message and status.fault != before.status.fault:
        words.append(f"({status.fault.message})")
    return " ".join(word for word in words if word)


def why(instance: Instance) -> str:
    """Why a server is not where it should be: its fault, and what each filter had against the hosts."""
    status = instance.status
    said = f"{status.fault.code}: {status.fault.message}" if status.HasField("fault") else "nobody says why"
    lines = [said, *_refusal_lines(instance)]
    if status.placement.suggestion:
        lines.append(status.placement.suggestion)
    return "\n  ".join(lines)


def _fault(instance: Instance) -> Value:
    if not instance.status.HasField("fault"):
        return None
    fault = instance.status.fault
    at = when(fault.time)
    return Cell(
        {"code": fault.code, "message": fault.message, "created": at},
        f"{fault.code}: {fault.message}" + (f" ({at})" if at else ""),
    )


def _refusals(instance: Instance) -> Cell:
    value: list[Plain] = [
        {"filter": it.filter, "reason": it.reason, "hosts": it.hosts}
        for it in instance.status.placement.refusals
    ]
    return Cell(value, "\n".join(_refusal_lines(instance)))


def _refusal_lines(instance: Instance) -> list[str]:
    return [
        f"{it.hosts} {'host' if it.hosts == 1 else 'hosts'}: {it.reason} ({it.filter})"
        for it in instance.status.placement.refusals
    ]


def counters(found: InstanceDiagnostics) -> dict[str, Value]:
    """What a server has used. The names are those of `openstack server show --diagnostics`, less what is the host's business."""
    cpus: list[Mapping[str, Plain]] = [
        {"id": number, "time_ms": time_ms} for number, time_ms in enumerate(found.vcpu_time_ms)
    ]
    memory: Mapping[str, Plain] = {
        "maximum_kib": found.memory_kib,
        "resident_kib": found.memory_resident_kib,
        "unused_kib": found.memory_unused_kib,
    }
    disks: list[Mapping[str, Plain]] = [
        {
            "device": each.device,
            "read_bytes": each.read_bytes,
            "read_requests": each.read_requests,
            "write_bytes": each.write_bytes,
            "write_requests": each.write_requests,
        }
        for each in found.disks
    ]
    nics: list[Mapping[str, Plain]] = [
        {
            "mac_address": each.mac,
            "rx_octets": each.rx_bytes,
            "rx_packets": each.rx_packets,
            "rx_errors": each.rx_errors,
            "rx_drop": each.rx_drops,
            "tx_octets": each.tx_bytes,
            "tx_packets": each.tx_packets,
            "tx_errors": each.tx_errors,
            "tx_drop": each.tx_drops,
        }
        for each in found.interfaces
    ]
    return {
        "state": found.power_state,
        "uptime": found.uptime_s,
        "num_cpus": len(cpus),
        "cpu_details": Cell(cpus, _lines(cpus)),
        "memory_details": Cell(memory, _lines([memory])),
        "num_disks": len(disks),
        "disk_details": Cell(disks, _lines(disks)),
        "num_nics": len(nics),
        "nic_details": Cell(nics, _lines(nics)),
    }


def _lines(records: Sequence[Mapping[str, object]]) -> str:
    """One line for each, of its fields in order."""
    return "\n".join(" ".join(f"{name}={value}" for name, value in each.items()) for each in records)
