"""Values of the fabric as messages of the public API, for everything but servers (`instance_view`) and networks
(`network_messages`).

What a message shows is decided here alone; a test goes through every field of every message, so that one that is added and forgotten
fails.
"""

from __future__ import annotations

from fabric.api.instance_view import timestamp
from fabric.model.flavor import Flavor
from fabric.model.host import Host, HostReport, Session, SessionState, Use
from fabric.model.identity import Project, User
from fabric.model.image import Image
from fabric.model.keypair import Keypair
from fabric.model.quota import Charge, Quota
from fabric.pb.compute.v1 import flavor_service_pb2, host_service_pb2, keypair_service_pb2
from fabric.pb.identity.v1 import project_service_pb2, user_service_pb2
from fabric.pb.image.v1 import image_service_pb2


def flavor_message(flavor: Flavor, mod_revision: int) -> flavor_service_pb2.Flavor:
    return flavor_service_pb2.Flavor(
        id=flavor.id,
        name=flavor.name,
        vcpus=flavor.vcpus,
        ram_mib=flavor.ram_mib,
        disk_gib=flavor.disk_gib,
        description=flavor.description,
        properties=dict(flavor.properties),
        create_time=timestamp(flavor.create_time_ms),
        etag=str(mod_revision),
    )


def keypair_message(keypair: Keypair) -> keypair_service_pb2.Keypair:
    return keypair_service_pb2.Keypair(
        id=keypair.id,
        name=keypair.name,
        public_key=keypair.public_key,
        fingerprint=keypair.fingerprint,
        user_id=keypair.user_id,
        create_time=timestamp(keypair.create_time_ms),
    )


def image_message(image: Image) -> image_service_pb2.Image:
    # Numbers of the two enums are the same: a test compares their names.
    message = image_service_pb2.Image(
        id=image.id,
        name=image.name,
        project_id=image.project_id,
        state=image.state.name,
        size_bytes=image.size_bytes,
        virtual_size_bytes=image.virtual_size_bytes,
        sha256=image.sha256,
        min_disk_gib=image.min_disk_gib,
        min_ram_mib=image.min_ram_mib,
        kernel_id=image.kernel_id,
        ramdisk_id=image.ramdisk_id,
        properties=dict(image.properties),
        create_time=timestamp(image.create_time_ms),
    )
    message.format = image_service_pb2.ImageFormat.ValueType(image.format)
    message.visibility = image_service_pb2.Visibility.ValueType(image.visibility)
    return message


def user_message(user: User) -> user_service_pb2.User:
    return user_service_pb2.User(
        id=user.id,
        name=user.name,
        default_project_id=user.default_project_id,
        system_admin=user.system_admin,
        create_time=timestamp(user.create_time_ms),
        disabled=user.disabled,
    )


def project_message(project: Project, quota: Quota | None) -> project_service_pb2.Project:
    return project_service_pb2.Project(
        id=project.id,
        name=project.name,
        description=project.description,
        create_time=timestamp(project.create_time_ms),
        quota_limit=None if quota is None else _amounts(quota.limit),
        quota_used=None if quota is None else _amounts(quota.used),
    )


def _amounts(charge: Charge) -> project_service_pb2.QuotaAmounts:
    return project_service_pb2.QuotaAmounts(
        instances=charge.instances,
        vcpus=charge.vcpus,
        ram_mib=charge.ram_mib,
        volumes=charge.volumes,
        volume_gib=charge.volume_gib,
    )


def charge_value(amounts: project_service_pb2.QuotaAmounts, default: Charge) -> Charge:
    """Limits as somebody asked for them. Those of volumes came later than the others: left out, they are the default's."""
    return Charge(
        instances=amounts.instances,
        vcpus=amounts.vcpus,
        ram_mib=amounts.ram_mib,
        volumes=amounts.volumes or default.volumes,
        volume_gib=amounts.volume_gib or default.volume_gib,
    )


def host_message(
    host: Host, mod_revision: int, *, session: Session | None, use: Use | None, report: HostReport | None
) -> host_service_pb2.Host:
    """A host: what was approved, and what is. One that never came has no session, and reads as UNREACHABLE."""
    status = host_service_pb2.HostStatus(
        state=(SessionState.UNREACHABLE if session is None else session.state).name,
        epoch=0 if session is None else session.epoch,
    )
    if use is not None:
        status.claimed_vcpus = use.taken.vcpus
        status.claimed_ram_mib = use.taken.ram_mib
        status.claimed_disk_gib = use.taken.disk_gib
        status.instances = use.instances
    if report is not None:
        status.hypervisor = report.hypervisor
        status.measured_vcpus = report.total.vcpus
        status.measured_ram_mib = report.total.ram_mib
        status.measured_disk_gib = report.total.disk_gib
        status.health = report.health
        status.directories.extend(report.directories)
        reported = timestamp(report.report_time_ms)
        if reported is not None:
            status.report_time.CopyFrom(reported)
    return host_service_pb2.Host(
        name=host.name,
        cell=host.cell,
        spec=host_service_pb2.HostSpec(
            availability_zone=host.zone,
            vcpus=host.capacity.vcpus,
            ram_mib=host.capacity.ram_mib,
            disk_gib=host.capacity.disk_gib,
            traits=host.traits,
            cert_serial=host.cert_serial,
            guest_cidr=host.guest_cidr,
            disabled=not host.enabled,
            disabled_reason=host.disabled_reason,
            tunnel_address=host.tunnel_address,
            physical_networks=host.physical_networks,
        ),
        status=status,
        create_time=timestamp(host.create_time_ms),
        etag=str(mod_revision),
    )
