"""What a snapshot is made of: a copy of the root disk as it is at one instant, and its way out through the conductor.

Each can be given up at any await and done again: a copy is whole under its name or not there, and an image is handed in once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog

from fabric.errors import FabricError, NotFound, Reason, TooMuch, Unavailable
from fabric.model.image import ImageOffer
from fabric.model.session import Order
from hostd.commands.site import Site
from hostd.core.faults import FaultCode, fault_text
from hostd.core.steps import Capture, HandIn
from hostd.images.base import DiskCopy, DiskError

_log = structlog.get_logger(__name__)

ROOT_SERIAL: Final = "root"


async def capture(site: Site, order: Order, step: Capture) -> DiskCopy:
    """Copy the guest's root disk, unless that was done before. Raises DiskError, DriverError."""
    place = (order.guest.id, order.placement_epoch, step.action_seq)
    made = await site.disks.find_copy(*place)
    if made is not None:
        return made
    target = await site.disks.begin_copy(*place)
    if step.is_on:
        await site.driver.copy_disk(order.guest.id, ROOT_SERIAL, target)
    else:
        await site.disks.copy_root(*place)
    return await site.disks.seal_copy(*place)


async def hand_in(site: Site, order: Order, step: HandIn, show: Callable[[int], None]) -> None:
    """Hand a copy in. One that nobody wants any more needs no handing in.

    Raises DiskError: IMAGE_UPLOAD_FAILED where it may succeed later, IMAGE_REJECTED where it will not.
    """
    place = (order.guest.id, order.placement_epoch, step.action_seq)
    offer = ImageOffer(
        image_id=order.action_image_id,
        instance_id=order.guest.id,
        placement_epoch=order.placement_epoch,
        sha256=step.copy.sha256,
        size_bytes=step.copy.size_bytes,
        virtual_size_bytes=step.copy.virtual_size_bytes,
    )
    try:
        await site.hand_over(offer, lambda: site.disks.read_copy(*place), show)
    except NotFound as unwanted:
        _log.info(
            "image.unwanted", instance=order.guest.id, image=order.action_image_id, reason=unwanted.message
        )
    except FabricError as refused:
        _log.warning(
            "image.not_taken", instance=order.guest.id, image=order.action_image_id, reason=refused.message
        )
        code = _code_of(refused)
        raise DiskError(code, fault_text(code)) from refused


def _code_of(refused: FabricError) -> FaultCode:
    may_pass = isinstance(refused, Unavailable) or (
        isinstance(refused, TooMuch) and refused.reason is not Reason.TOO_LARGE
    )
    return FaultCode.IMAGE_UPLOAD_FAILED if may_pass else FaultCode.IMAGE_REJECTED
