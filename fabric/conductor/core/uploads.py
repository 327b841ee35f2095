"""What a host may hand in as an image: the disk of an instance on it, as the image that the latest action names, and nothing else.

A host is not trusted: what it may send is known before its first byte, from the record alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from fabric.errors import NotFound, Reason, TooMuch
from fabric.model.image import ImageOffer
from fabric.model.instance import ImageRef, Instance, OneShot
from fabric.model.states import TaskState, Want

_GIB: Final = 1 << 30
_TABLES_BYTES: Final = 16 << 20
_TABLES_SHARE: Final = 512
"""What a qcow2 image may have beside its data: 16 MiB, and a 512th of the disk. Its tables take a 6,500th, with clusters of 64 KiB."""


def check(now: Instance | None, host: str, offer: ImageOffer) -> Instance:
    """The record of the instance whose disk is offered, where the offer is what was asked of this host.

    Raises:
        NotFound: nobody wants this image of this host (any more).
        TooMuch: it is larger than the instance's disk can be.
    """
    if (
        now is None
        or now.host != host
        or now.placement_epoch != offer.placement_epoch
        or now.want is Want.ABSENT
        or now.task is TaskState.NONE
        or now.action.kind is not OneShot.SNAPSHOT
        or now.action.image_id != offer.image_id
        or now.observed_action >= now.action.seq
    ):
        raise NotFound("no such image is wanted of this host", host=host, image=offer.image_id)
    guest = now.request.guest
    largest_bytes = max(guest.disk_gib * _GIB, 0 if guest.image is None else guest.image.virtual_size_bytes)
    most_bytes = offer.virtual_size_bytes + offer.virtual_size_bytes // _TABLES_SHARE + _TABLES_BYTES
    if offer.virtual_size_bytes > largest_bytes or offer.size_bytes > most_bytes:
        raise TooMuch(
            f"the image is larger than the server's disk of {largest_bytes} bytes",
            reason=Reason.TOO_LARGE,
            limit=largest_bytes,
        )
    return now


def handed_in(now: Instance, image: ImageRef, *, now_ms: int, op_id: str) -> Instance:
    """The record with the image that its snapshot has become."""
    return replace(now, uploaded=image, update_time_ms=now_ms, op_id=op_id)


def pause_s(sent_bytes: int, elapsed_s: float, *, bytes_per_s: float) -> float:
    """How long to wait before more is taken, so that no more comes than that on average."""
    return max(0.0, sent_bytes / bytes_per_s - elapsed_s)
