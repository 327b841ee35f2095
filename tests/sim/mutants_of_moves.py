"""Mutants of servers that go from host to host."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import fabric.scheduler.moves as scheduler_moves
from fabric.api.core import intent, moves
from fabric.conductor.core import placement
from fabric.lifecycle.moves import dues, places
from fabric.model.instance import Place
from fabric.scheduler.core import moving
from fabric.store import keys
from tests.sim.mutant import Mutant, Swap, committing


def _confirm_without_tombstone() -> tuple[Swap, ...]:
    right = moves.let_go

    def careless(other: Place, instance_id: str, **named: Any) -> Any:
        put, deleted = right(other, instance_id, **named)
        buried = keys.TOMBSTONE.at(other.host, instance_id)
        return {key: value for key, value in put.items() if key != buried}, deleted

    return ((intent, "let_go", careless),)


def _epochs_given_out_twice() -> tuple[Swap, ...]:
    """The next epoch is counted from the copy that there is, not from all there ever were."""
    return ((moving, "next_epoch", lambda now: now.placement_epoch + 1),)


def _larger_for_nothing() -> tuple[Swap, ...]:
    """What a larger flavor costs more is charged when the move is over, not before it begins."""
    return ((moving, "most", lambda one, _: one),)


def _left_is_kept() -> tuple[Swap, ...]:
    return ((placement, "left", lambda now, after: () if after is not None else places(now)),)


def _images_are_kept() -> tuple[Swap, ...]:
    right = dues
    return ((placement, "dues", lambda now, after: replace(right(now, after), discard_id="")),)


MOVE_MUTANTS: Final = (
    Mutant(
        name="move_claim_without_compare",
        without="the claim of a move compares the record and the work that it was asked for by",
        within=300,
        swaps=committing(scheduler_moves, keys.INSTANCE.under(), keys.MOVE.under()),
    ),
    Mutant(
        name="confirm_without_tombstone",
        without="a confirmed move has its old copy forgotten",
        within=150,
        swaps=_confirm_without_tombstone,
    ),
    Mutant(
        name="epochs_given_out_twice",
        without="a claim's placement epoch is above every one before",
        within=300,
        swaps=_epochs_given_out_twice,
    ),
    Mutant(
        name="larger_for_nothing",
        without="what a larger flavor costs more is charged before the claim",
        within=60,
        swaps=_larger_for_nothing,
    ),
    Mutant(
        name="left_is_kept",
        without="what a record names no more is let go of with it",
        within=60,
        swaps=_left_is_kept,
    ),
    Mutant(
        name="images_are_kept",
        without="an image that only carried a server's disk is discarded",
        within=60,
        swaps=_images_are_kept,
    ),
)
