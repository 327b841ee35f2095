"""What a project may still use: arithmetic on its quota record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fabric.errors import Bug, QuotaExceeded
from fabric.model.instance import Request
from fabric.model.quota import Charge, Quota

COUNTED = (
    ("instances", "servers"),
    ("vcpus", "vCPUs"),
    ("ram_mib", "MiB of memory"),
    ("volumes", "volumes"),
    ("volume_gib", "GiB of volumes"),
)
"""What is counted, and its words for people."""


def charge_of(request: Request) -> Charge:
    """What a server costs its project."""
    return Charge(instances=1, vcpus=request.guest.vcpus, ram_mib=request.guest.ram_mib)


def charge(quota: Quota, asked: Charge, *, op_id: str) -> Quota:
    """The quota with `asked` charged to it.

    Raises:
        QuotaExceeded: a limit would be passed; names the first, with the limit, what is used and what was asked.
    """
    used = quota.used + asked
    for name, words in COUNTED:
        limit, after, more = getattr(quota.limit, name), getattr(used, name), getattr(asked, name)
        if more and after > limit:
            raise QuotaExceeded(
                f"the project may use {limit} {words}: {after - more} are used, {more} more were asked for",
                resource=name,
                limit=limit,
                used=after - more,
                asked=more,
            )
    return replace(quota, used=used, op_id=op_id)


def refund(quota: Quota, given_back: Charge, *, op_id: str) -> Quota:
    """The quota with `given_back` no longer charged. Raises Bug when more would be given back than was ever charged."""
    used = quota.used - given_back
    if min(getattr(used, name) for name, _ in COUNTED) < 0:
        raise Bug("a refund of more than was charged", project=quota.project_id)
    return replace(quota, used=used, op_id=op_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """One thing to be charged for, and what is written when it is.

    `mark` is a key that is compared as absent and put with a value that nobody else ever writes (R12).
    """

    charge: Charge
    mark: str
    unchanged: Mapping[str, int]
    put: Mapping[str, object]
    """Records, as values."""
    encoded: Mapping[str, bytes] = field(default_factory=dict)
    """Records, as they are stored: what others have drawn up."""
