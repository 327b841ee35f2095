"""A record that does not parse holds up what is to be done about it, and nothing else."""

from __future__ import annotations

import asyncio

from fabric.model.instance import Over, Refund
from fabric.store import codec, keys
from fabric.store.base import Txn
from tests.unit.scheduler.stage import WALL_MS, Stage, builds, host, play
from tests.unit.scheduler.test_renames import rename

NO_RECORD = b"\xff"


def test_a_charge_that_cannot_be_given_back_keeps_no_other_from_it() -> None:
    """Thirty refunds share a transaction, and the first thirty were tried again and again with the broken one among them."""

    async def world(stage: Stage) -> None:
        await stage.open()
        await stage.accept(*builds(3))
        for number in range(3):
            server = f"i-{number}"
            records = {
                keys.REFUND.at(server): codec.encode(Refund(instance_id=server, project_id="p-1")),
                keys.OVER.at(server): codec.encode(Over(instance_id=server, over_time_ms=WALL_MS)),
            }
            await stage.cells["east"].commit(Txn(put=records))
        await stage.globe.commit(Txn(put={keys.LOCATION.at("i-0"): NO_RECORD}))
        stage.schedule()
        await asyncio.sleep(20)

        assert await stage.held(keys.REFUND) == {keys.REFUND.at("i-0")}
        assert (await stage.quota()).used.instances == 1

    play(world)


def test_a_name_that_cannot_be_brought_keeps_no_other_from_the_index() -> None:
    """They were brought one after the other, and the first was tried for ever."""

    async def world(stage: Stage) -> None:
        await stage.open(host("e1"))
        await stage.accept(*builds(2))
        stage.schedule()
        await asyncio.sleep(2)
        await stage.globe.commit(Txn(put={keys.LOCATION.at("i-0"): NO_RECORD}))
        for server in ("i-0", "i-1"):
            await rename(stage, server, "new")
        await asyncio.sleep(20)

        assert await stage.held(keys.RENAMED) == {keys.RENAMED.at("i-0")}

    play(world)


def test_an_end_that_cannot_be_read_keeps_no_other_from_being_forgotten() -> None:
    """Every round over what has been remembered long enough ended at the broken one, so nothing was ever forgotten again."""

    async def world(stage: Stage) -> None:
        await stage.open()
        old_ms = WALL_MS - 25 * 3600 * 1000
        over = codec.encode(Over(instance_id="i-9", over_time_ms=old_ms))
        await stage.cells["east"].commit(
            Txn(put={keys.OVER.at("broken"): NO_RECORD, keys.OVER.at("i-9"): over})
        )
        stage.schedule()
        await asyncio.sleep(1300)

        left = (await stage.cells["east"].list(keys.OVER.under())).entries
        assert list(left) == [keys.OVER.at("broken")]

    play(world)
