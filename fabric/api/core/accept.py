"""Accepting a create: from the words of a request and the things they name to a placement request, its cost, and the first write."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fabric.api.core.boot_volume import RootVolume
from fabric.errors import InvalidRequest, NoCapacity
from fabric.model.flavor import Flavor
from fabric.model.host import CellCapacity, Resources
from fabric.model.image import Image, ImageFormat, ImageState
from fabric.model.instance import Answered, Build, Guest, ImageRef, Location, Request, VolumeImage
from fabric.model.keypair import Keypair
from fabric.model.network import Network, Port
from fabric.model.traits import PLAIN_FIRMWARE, SECURE_BOOT_TRAIT
from fabric.model.volume import GuestVolume, VolumeEntry
from fabric.quota.core import Admission, charge_of
from fabric.store.keys import ANSWERED, BUILD, LOCATION

GIB = 1 << 30

TRAIT = "trait:"
"""What the names of properties begin with that ask a trait of hosts, or forbid it."""

TRAIT_VALUES = ("required", "forbidden")

SECURE_BOOT = "os_secure_boot"
"""The property that asks for Secure Boot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a create names, looked up: everything that goes into the server's request.

    With a `root` the server boots from that volume, and the image is what the volume was made of: it says where the server can run.
    `read` has the keys of what was looked up in the catalogue, and their revisions: it must be there, as it is, when the server is made.
    """

    name: str
    flavor: Flavor
    image: Image
    network: Network | None = None
    """The hosts' own network, where the server is to have an address of it."""
    ports: tuple[Port, ...] = ()
    kernel: Image | None = None
    ramdisk: Image | None = None
    keypair: Keypair | None = None
    zone: str = ""
    user_data: bytes = b""
    metadata: Mapping[str, str] | None = None
    config_drive: bool = True
    root: RootVolume | None = None
    read: Mapping[str, int] = field(default_factory=dict)


def request_for(asked: Asked, *, instance_id: str, project_id: str, user_id: str, now_ms: int) -> Request:
    """The placement request. Raises InvalidRequest, naming the field, where the flavor and the image do not go together."""
    _check_fit(asked)
    traits = {**traits_of(asked.flavor.properties), **image_traits(asked.image)}
    guest = Guest(
        id=instance_id,
        name=asked.name,
        hostname=hostname_of(asked.name, instance_id),
        project_id=project_id,
        user_id=user_id,
        vcpus=asked.flavor.vcpus,
        ram_mib=asked.flavor.ram_mib,
        disk_gib=asked.flavor.disk_gib or _gib_of(asked.image),
        image=ref_of(asked.image),
        kernel=ref_of(asked.kernel) if asked.kernel is not None else None,
        ramdisk=ref_of(asked.ramdisk) if asked.ramdisk is not None else None,
        kernel_args=asked.image.properties.get("os_command_line", ""),
        firmware=firmware_of(asked.image),
        secure_boot=boots_securely(asked.image),
        public_keys={asked.keypair.name: asked.keypair.public_key} if asked.keypair is not None else {},
        user_data=asked.user_data,
        metadata=dict(asked.metadata or {}),
        availability_zone=asked.zone,
        config_drive=asked.config_drive,
        create_time_ms=now_ms,
        ports=asked.ports,
    )
    if asked.root is not None:
        guest = _booting_from(asked.root.entry, guest)
    network = asked.network
    return Request(
        guest=guest,
        zone=asked.zone,
        architecture=asked.image.properties.get("hw_architecture", ""),
        required_traits=tuple(sorted(name for name, how in traits.items() if how == "required")),
        forbidden_traits=tuple(sorted(name for name, how in traits.items() if how == "forbidden")),
        network_id="" if network is None else network.id,
        network_name="" if network is None else network.name,
        network_mtu=0 if network is None else network.mtu,
        dns_servers=() if network is None else network.dns_servers,
        flavor_id=asked.flavor.id,
        flavor_name=asked.flavor.name,
        key_name=asked.keypair.name if asked.keypair is not None else "",
        create_time_ms=now_ms,
        root_ends_with_instance=asked.root is not None and asked.root.ends_with_instance,
    )


def _booting_from(entry: VolumeEntry, guest: Guest) -> Guest:
    """The guest with a volume as its root disk."""
    made_of = entry.image
    return replace(
        guest,
        image=None,
        disk_gib=0,
        volumes=(GuestVolume(id=entry.id, size_gib=entry.size_gib, is_root=True, directory=entry.directory),),
        volume_images=() if made_of is None else (VolumeImage(volume_id=entry.id, image=ref_of(made_of)),),
    )


PLEDGE_MS = 10_000
"""How long what was accepted for a cell counts there, if the cell does not say anew what it can take: that may have gone elsewhere."""


@dataclass(frozen=True, slots=True)
class Pledged:
    """What one API server has accepted for a cell since the cell last said what it can take."""

    capacity_time_ms: int
    last_ms: int
    amount: Resources


def pledged(
    before: Mapping[str, Pledged], capacity: CellCapacity, request: Request, *, now_ms: int
) -> Mapping[str, Pledged]:
    """The pledges with one create more, accepted for the cell of this capacity."""
    amount = _owed(before, capacity, now_ms=now_ms) + request.guest.resources()
    return {**before, capacity.cell: Pledged(capacity.update_time_ms, now_ms, amount)}


def unpledged(
    capacities: Iterable[CellCapacity], pledges: Mapping[str, Pledged], *, now_ms: int
) -> dict[str, CellCapacity]:
    """What each cell can take beside what was just accepted for it: a burst is not sent to one cell whole."""
    return {
        each.cell: replace(each, free=each.free - _owed(pledges, each, now_ms=now_ms)) for each in capacities
    }


def _owed(pledges: Mapping[str, Pledged], capacity: CellCapacity, *, now_ms: int) -> Resources:
    known = pledges.get(capacity.cell)
    if known is None or known.capacity_time_ms != capacity.update_time_ms:
        return Resources()
    return known.amount if now_ms - known.last_ms < PLEDGE_MS else Resources()


def first_cell(cells: Sequence[str], capacities: Mapping[str, CellCapacity], request: Request) -> str:
    """The cell to try first: of those that seem to have room, the one with the most free memory; else the first by name.

    A hint: the scheduler moves the build where it finds room (host protocol, section 4). Raises InvalidRequest when no cell exists.
    """
    if not cells:
        raise InvalidRequest("no cell is enabled to place servers in", field="availability_zone")
    need = request.guest.resources()

    def seems_to_fit(name: str) -> bool:
        known = capacities.get(name)
        return (
            known is not None
            and known.largest.covers(need)
            and known.free.covers(need)
            and (not request.zone or request.zone in known.zones)
        )

    def free_ram_mib(name: str) -> int:
        known = capacities.get(name)
        return known.free.ram_mib if known is not None else Resources().ram_mib

    fitting = [name for name in cells if seems_to_fit(name)]
    return max(sorted(fitting or cells), key=free_ram_mib)


def check_room(cells: Sequence[str], capacities: Mapping[str, CellCapacity], request: Request) -> None:
    """Whether a host may have room, by what every cell has last said of the most that one host has free of each.

    Says no only where it must: a cell that has said nothing may have room, and so may one whose hosts are out of addresses, where the
    server is to have none of theirs. Raises NoCapacity.
    """
    need = request.guest.resources()
    known = [capacities[name] for name in cells if name in capacities]
    if not request.network_id or len(known) < len(cells):
        return
    in_zone = [each for each in known if not request.zone or request.zone in each.zones]
    if any(each.largest.covers(need) for each in in_zone):
        return
    where = f" in zone {request.zone}" if request.zone else ""
    raise NoCapacity(
        f"no host{where} has {need.vcpus} vCPUs, {need.ram_mib} MiB of memory and {need.disk_gib} GiB of disk free"
    )


def admission(request: Request, *, cell: str, answered: Answered, now_ms: int, op_id: str) -> Admission:
    """The first durable write of a create, but for the quota: request_id, index and build, all or nothing.

    The request_id's key is the mark by which a lost answer is settled (R12).
    """
    guest = request.guest
    cost = charge_of(request)
    location = Location(
        instance_id=guest.id,
        project_id=guest.project_id,
        user_id=guest.user_id,
        name=guest.name,
        cell=cell,
        charge=cost,
        create_time_ms=now_ms,
        op_id=op_id,
        port_ids=tuple(port.id for port in guest.tenant_ports),
    )
    build = Build(
        instance_id=guest.id,
        cell=cell,
        request=request,
        project_id=guest.project_id,
        create_time_ms=now_ms,
        op_id=op_id,
        request_id=answered.request_id,
    )
    answer_key = ANSWERED.at(answered.project_id, answered.request_id)
    location_key, build_key = LOCATION.at(guest.id), BUILD.at(cell, guest.id)
    return Admission(
        charge=cost,
        mark=answer_key,
        unchanged={answer_key: 0, location_key: 0, build_key: 0},
        put={
            answer_key: answered,
            location_key: location,
            build_key: build,
        },
    )


def hostname_of(name: str, instance_id: str) -> str:
    """What the guest calls itself: the server's name as a DNS label (RFC 1123), as the reference does."""
    label = re.sub(r"[^a-z0-9-]+", "-", name.lower().replace("_", "-")).strip("-")[:63].rstrip("-")
    return label or f"server-{instance_id[:8]}"


def check_image(image: Image) -> None:
    """Whether a server can be made from the image at all. Raises InvalidRequest."""
    if image.state is not ImageState.ACTIVE:
        raise InvalidRequest(f"image {image.name} is not usable: it is {image.state.name}", field="image")
    if image.format not in {ImageFormat.RAW, ImageFormat.QCOW2}:
        raise InvalidRequest(
            f"image {image.name} is a {image.format.name.lower()}, not a disk to boot from", field="image"
        )


def contradicts_itself(properties: Mapping[str, str]) -> bool:
    """Whether an image's properties insist on Secure Boot by a firmware that has none."""
    return properties.get(SECURE_BOOT) == "required" and properties.get("hw_firmware_type") != "uefi"


def firmware_of(image: Image) -> str:
    """What the image boots by: `bios` unless it says so otherwise."""
    return image.properties.get("hw_firmware_type", PLAIN_FIRMWARE)


def boots_securely(image: Image) -> bool:
    """Whether the image insists on Secure Boot."""
    return image.properties.get(SECURE_BOOT) == "required"


def check_boots_as_it_asks(image: Image, *, field: str = "image") -> None:
    """Whether guests can boot the way that the image insists on. Its own check refuses one that cannot; it may be older than that.

    Raises InvalidRequest, naming the field.
    """
    if contradicts_itself(image.properties):
        raise InvalidRequest(
            f"image {image.name} has {SECURE_BOOT}=required, which takes hw_firmware_type=uefi: give it that, too",
            field=field,
        )


def check_fits_volume(image: Image, size_gib: int, *, field: str) -> None:
    """Whether a volume of this size can be made of the image. Raises InvalidRequest, naming the field."""
    check_image(image)
    needs_gib = max(image.min_disk_gib, _gib_of(image))
    if size_gib < needs_gib:
        raise InvalidRequest(
            f"the volume is to have {size_gib} GiB; image {image.name} needs {needs_gib}", field=field
        )


def _check_fit(asked: Asked) -> None:
    image, flavor = asked.image, asked.flavor
    if asked.root is None:
        check_image(image)
    check_boots_as_it_asks(image, field="image" if asked.root is None else "volume")
    if flavor.ram_mib < image.min_ram_mib:
        raise InvalidRequest(
            f"flavor {flavor.name} has {flavor.ram_mib} MiB of memory; image {image.name} needs {image.min_ram_mib}",
            field="flavor",
        )
    needs_gib = 0 if asked.root is not None else max(image.min_disk_gib, _gib_of(image))
    if flavor.disk_gib and flavor.disk_gib < needs_gib:
        raise InvalidRequest(
            f"flavor {flavor.name} has a disk of {flavor.disk_gib} GiB; image {image.name} needs {needs_gib}",
            field="flavor",
        )


def _gib_of(image: Image) -> int:
    return -(-image.virtual_size_bytes // GIB)


def ref_of(image: Image) -> ImageRef:
    """What a host needs of an image, fixed: images do not change once they are active."""
    return ImageRef(
        id=image.id,
        name=image.name,
        format=image.format,
        sha256=image.sha256,
        size_bytes=image.size_bytes,
        virtual_size_bytes=image.virtual_size_bytes,
    )


def image_traits(image: Image) -> dict[str, str]:
    """What an image says of hosts' traits: each required or forbidden."""
    traits = traits_of(image.properties)
    if boots_securely(image):
        traits[SECURE_BOOT_TRAIT] = "required"
    return traits


def traits_of(properties: Mapping[str, str]) -> dict[str, str]:
    """What properties say of traits: each required or forbidden."""
    return {name.removeprefix(TRAIT): how for name, how in properties.items() if name.startswith(TRAIT)}
