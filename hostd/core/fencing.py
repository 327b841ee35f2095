"""What this host may do at all: epochs, permits, and which orders are too old (rules R1, R2 and R5 of the host protocol).

Nothing here waits or asks the time: instants are seconds of the boot clock, handed in.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from fabric.ids import is_id
from fabric.model.instance import OneShot
from fabric.model.session import Order, Release
from fabric.model.states import Want
from hostd.commands.journal import JournalRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """The highest epoch this host was granted, and since when its permit to start guests counts.

    `renewed_s` is when the last acknowledged Hello or beat was *sent*; None after power-on, which is no permit.
    """

    epoch: int
    permit_s: float = 0.0
    renewed_s: float | None = None

    def hears(self, epoch: int) -> bool:
        """Whether a message of this epoch counts (R1). An older one is from a conductor that has lost this host."""
        return epoch == self.epoch

    def permits_start(self, now_s: float) -> bool:
        """Whether a guest may be started now (R5)."""
        return self.renewed_s is not None and 0 <= now_s - self.renewed_s < self.permit_s

    def grant(self, epoch: int, *, permit_s: float, hello_sent_s: float) -> Fence | None:
        """The fence of a new session, None where the epoch is not newer than every one before: then it is no session."""
        if epoch <= self.epoch:
            return None
        return Fence(epoch=epoch, permit_s=permit_s, renewed_s=hello_sent_s)

    def renew(self, beat_sent_s: float) -> Fence:
        """A beat was acknowledged. Acknowledgements may overtake each other; the latest sending counts."""
        if self.renewed_s is not None and beat_sent_s <= self.renewed_s:
            return self
        return replace(self, renewed_s=beat_sent_s)


class Refusal(enum.StrEnum):
    """Why an order is not taken up."""

    MALFORMED = "the order names no instance, no placement, or nothing wanted"
    OLD_PLACEMENT = "a newer placement was accepted before"
    OLD_GENERATION = "a newer generation was accepted before"
    RELEASED = "this placement was released, and is not to come back"


def accept(row: JournalRow | None, order: Order, *, presume_made: bool = False) -> JournalRow | Refusal:
    """The row to journal before acting on an order, or why the order is too old (R2, R3).

    A placement new to the journal owes no one-shot action: its first boot is newer than what was asked of the copy before. Only a rebuild
    is owed, which is to make its disk. A guest that is wanted off owes no reboot, and one that is wanted gone owes nothing. A rebuild or a
    snapshot that was begun under an earlier generation is over: who asks for something else has given it up.

    After the journal was lost this may skip one action that was under way; the other choice would be to reboot every guest that was ever
    rebooted. `presume_made` is said then of what the first snapshot orders: nobody knows whether its disks were made, and to fail a create
    that was under way is better than to give a server an empty disk for its own.
    """
    if not is_id(order.guest.id) or order.placement_epoch < 1 or order.want is Want.UNSPECIFIED:
        return Refusal.MALFORMED
    ends = order.want is Want.ABSENT
    rebuilds = order.action is OneShot.REBUILD and not ends
    if row is None or order.placement_epoch > row.placement_epoch:
        return JournalRow(
            instance_id=order.guest.id,
            placement_epoch=order.placement_epoch,
            generation=order.generation,
            # Where its disk is presumed, a rebuild is presumed to have begun: what is left of it is to see whether there is one.
            action_started=order.action_seq - (rebuilds and not presume_made),
            action_done=order.action_seq - rebuilds,
            released=ends,
            made=presume_made,
        )
    if order.placement_epoch < row.placement_epoch:
        return Refusal.OLD_PLACEMENT
    if row.released and not ends:
        return Refusal.RELEASED
    if order.generation < row.generation:
        return Refusal.OLD_GENERATION
    if order.action in {OneShot.REBUILD, OneShot.SNAPSHOT}:
        is_given_up = order.generation > row.generation and order.action_seq == row.action_started
        moot = order.action_seq if ends or is_given_up else 0
    else:
        moot = order.action_seq if order.want is not Want.RUN else 0
    return replace(
        row,
        generation=order.generation,
        action_started=max(row.action_started, moot),
        action_done=max(row.action_done, moot),
        released=ends,
    )


def accept_release(row: JournalRow | None, release: Release) -> JournalRow:
    """The row to journal before a release is acted upon: from then on, no order of those placements counts."""
    if row is None or row.placement_epoch <= release.placement_epoch:
        return JournalRow(
            instance_id=release.instance_id, placement_epoch=release.placement_epoch, released=True
        )
    return row


def is_newest(row: JournalRow, order: Order) -> bool:
    """Whether the journal knows nothing newer than the order: asked again immediately before each step (R2)."""
    return (row.placement_epoch, row.generation) == (order.placement_epoch, order.generation)
