"""Guests, orders and releases as a conductor would send them: what tests of a host are made of."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import replace
from typing import Final

from fabric.model.image import ImageFormat
from fabric.model.instance import Guest, ImageRef, OneShot
from fabric.model.network import Port
from fabric.model.session import Order, Release
from fabric.model.states import Want
from fabric.model.volume import GuestVolume

IMAGE_BYTES: Final = b"an image of a guest that does nothing at all" * 40
IMAGE: Final = ImageRef(
    id=str(uuid.UUID(int=7)),
    name="tiny",
    format=ImageFormat.QCOW2,
    sha256=hashlib.sha256(IMAGE_BYTES).hexdigest(),
    size_bytes=len(IMAGE_BYTES),
    virtual_size_bytes=1 << 20,
)
VOLUME: Final = GuestVolume(id=str(uuid.UUID(int=0x70000000000040008000000000000001)), size_gib=3)
SNAPSHOT_ID: Final = str(uuid.UUID(int=9))


def instance_id(number: int = 1) -> str:
    return str(uuid.UUID(int=1000 + number))


def guest(number: int = 1) -> Guest:
    return Guest(
        id=instance_id(number),
        name=f"server-{number}",
        hostname=f"server-{number}",
        project_id=str(uuid.UUID(int=5)),
        user_id=str(uuid.UUID(int=6)),
        vcpus=1,
        ram_mib=256,
        disk_gib=2,
        image=IMAGE,
        ports=(
            Port(
                id=str(uuid.UUID(int=2000 + number)),
                network_id=str(uuid.UUID(int=8)),
                network_name="default",
                mac=f"02:00:00:00:00:{number:02x}",
                address=f"10.0.0.{number + 10}",
                prefix_length=24,
                gateway="10.0.0.1",
            ),
        ),
    )


def order(
    want: Want = Want.RUN,
    *,
    number: int = 1,
    placement_epoch: int = 1,
    generation: int = 1,
    action_seq: int = 0,
    action: OneShot = OneShot.NONE,
    stop_timeout_s: int = 60,
    epoch: int = 1,
    action_image_id: str = "",
) -> Order:
    return Order(
        epoch=epoch,
        placement_epoch=placement_epoch,
        generation=generation,
        want=want,
        action_seq=action_seq,
        action=action,
        stop_timeout_s=stop_timeout_s,
        guest=guest(number),
        action_image_id=action_image_id,
    )


def snapshot(want: Want = Want.RUN, *, generation: int = 2, action_seq: int = 1) -> Order:
    """An order to hand the first guest's disk in."""
    return order(
        want,
        generation=generation,
        action_seq=action_seq,
        action=OneShot.SNAPSHOT,
        action_image_id=SNAPSHOT_ID,
    )


def release(*, number: int = 1, placement_epoch: int = 1, epoch: int = 1) -> Release:
    return Release(epoch=epoch, instance_id=instance_id(number), placement_epoch=placement_epoch)


def with_volume(before: Order, *volumes: GuestVolume) -> Order:
    """The order for a guest with these volumes, and no others."""
    return replace(before, guest=replace(before.guest, volumes=volumes))


def with_ports(before: Order, *numbers: int) -> Order:
    """The order for a guest with the ports that guests of these numbers have."""
    ports = tuple(port for number in numbers for port in guest(number).ports)
    return replace(before, guest=replace(before.guest, ports=ports))
