"""Tickets and consoles, from the API server to a guest that only pretends, on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from fabric.api.consoles import TICKET_S, ConsoleOptions
from fabric.deadlines import within
from fabric.errors import Ambiguous, FabricError, NotFound, PermissionDenied, Unavailable, WrongState
from fabric.model.console import ConsoleEnd, ConsoleKind
from fabric.model.states import PowerState, TaskState, VmState, Want
from fabric.store.base import Committed, Refused, Txn
from fabric.store.keys import CONSOLE_TICKET, INSTANCE, TOKEN
from tests.console_chain import Chain, Viewer, a_chain
from tests.unit.conductor.worlds import run

SERIAL, VNC = ConsoleKind.SERIAL, ConsoleKind.VNC


def in_chain(claim: Callable[[Chain], Awaitable[None]], options: ConsoleOptions | None = None) -> None:
    async def world() -> None:
        async with a_chain(options) as chain:
            await claim(chain)

    run(world)


async def attached(chain: Chain, viewer: Viewer, *, take_over: bool = False) -> asyncio.Task[ConsoleEnd]:
    """Somebody at the serial console, of whom something has been heard."""
    issued = await chain.apis[0].issue("web", SERIAL, chain.me)
    ticket = await chain.apis[1].redeem(issued.secret, SERIAL, principal=chain.me)
    being = asyncio.ensure_future(chain.apis[1].carry(ticket, viewer, take_over=take_over))
    await viewer.typed.put(b"hello\r")
    seeing = asyncio.ensure_future(viewer.sees(b"heard: hello"))
    await asyncio.wait({being, seeing}, return_when=asyncio.FIRST_COMPLETED)
    seeing.cancel()
    if being.done():
        being.result()
    return being


def test_what_is_typed_reaches_the_guest_and_what_it_says_comes_back() -> None:
    async def claim(chain: Chain) -> None:
        viewer = Viewer()

        being = await attached(chain, viewer)

        assert b"hello\r\n" in viewer.shown
        await viewer.typed.put(None)
        assert await being is ConsoleEnd.UNSPECIFIED

    in_chain(claim)


def test_a_ticket_is_good_once_on_whichever_server() -> None:
    async def claim(chain: Chain) -> None:
        issued = await chain.apis[0].issue("web", SERIAL, chain.me)
        tries = [
            chain.apis[number % 2].redeem(issued.secret, SERIAL, principal=chain.me) for number in range(40)
        ]

        ends = await asyncio.gather(*tries, return_exceptions=True)

        assert sum(not isinstance(end, BaseException) for end in ends) == 1
        assert sum(isinstance(end, PermissionDenied) for end in ends) == 39

    in_chain(claim)


def test_a_ticket_is_stored_by_its_digest_alone() -> None:
    async def claim(chain: Chain) -> None:
        issued = await chain.apis[0].issue("web", SERIAL, chain.me)

        (entry,) = (await chain.store.list(CONSOLE_TICKET.under())).entries.values()

        assert issued.secret not in entry.key
        assert issued.secret.encode() not in entry.value
        assert entry.lease_id

    in_chain(claim)


def test_a_ticket_opens_nothing_else_and_for_nobody_else() -> None:
    async def claim(chain: Chain) -> None:
        issued = await chain.apis[0].issue("web", SERIAL, chain.me)
        others = (
            (SERIAL, replace(chain.me, user_id="somebody else")),
            (SERIAL, replace(chain.me, project_id="elsewhere")),
            (VNC, chain.me),
            (VNC, None),
        )
        for kind, who in others:
            with pytest.raises(PermissionDenied) as refused:
                await chain.apis[0].redeem(issued.secret, kind, principal=who)
            assert refused.value.message == "the ticket is not valid; make a new one"

        assert (await chain.apis[0].redeem(issued.secret, SERIAL, principal=chain.me)).kind is SERIAL

    in_chain(claim)


@pytest.mark.parametrize("secret", ["", "x", "x" * 129, "é", "\0"])
def test_what_is_no_ticket_is_refused_in_the_same_words(secret: str) -> None:
    async def claim(chain: Chain) -> None:
        with pytest.raises(PermissionDenied, match="the ticket is not valid"):
            await chain.apis[0].redeem(secret, VNC)

    in_chain(claim)


def test_a_ticket_is_too_old_after_a_minute() -> None:
    async def claim(chain: Chain) -> None:
        issued = await chain.apis[0].issue("web", SERIAL, chain.me)

        await asyncio.sleep(TICKET_S + 0.1)

        with pytest.raises(PermissionDenied):
            await chain.apis[0].redeem(issued.secret, SERIAL, principal=chain.me)

    in_chain(claim)


@pytest.mark.parametrize("is_late", [False, True])
def test_a_ticket_is_good_while_the_token_is_that_it_was_made_with(is_late: bool) -> None:
    """Who was kept out had a minute left to open a console, and a quarter of one inside: a browser shows the ticket and no token."""

    async def claim(chain: Chain) -> None:
        issued = await chain.apis[0].issue("web", VNC, chain.me)
        commit = chain.store.commit

        async def ended(txn: Txn) -> Committed | Refused:
            await commit(Txn(delete=(TOKEN.at(chain.me.token_id),)))
            return await commit(txn)

        if is_late:
            chain.store.commit = ended  # type: ignore[method-assign]  # between the look and the use
        else:
            await commit(Txn(delete=(TOKEN.at(chain.me.token_id),)))

        with pytest.raises(PermissionDenied, match="the ticket is not valid"):
            await chain.apis[1].redeem(issued.secret, VNC)

    in_chain(claim)


def test_a_ticket_whose_use_is_not_certain_opens_nothing() -> None:
    async def claim(chain: Chain) -> None:
        issued = await chain.apis[0].issue("web", SERIAL, chain.me)
        commit = chain.store.commit

        async def lost(txn: Txn) -> Committed | Refused:
            await commit(txn)
            raise Ambiguous("lost")

        chain.store.commit = lost  # type: ignore[method-assign]  # the answer that does not come back

        with pytest.raises(Unavailable, match="make a new one"):
            await chain.apis[0].redeem(issued.secret, SERIAL, principal=chain.me)
        chain.store.commit = commit  # type: ignore[method-assign]  # and it does again
        with pytest.raises(PermissionDenied):
            await chain.apis[0].redeem(issued.secret, SERIAL, principal=chain.me)

    in_chain(claim)


def test_a_foreign_server_has_no_console_to_make_a_ticket_for() -> None:
    async def claim(chain: Chain) -> None:
        with pytest.raises(NotFound):
            await chain.apis[0].issue("web", SERIAL, replace(chain.me, project_id="elsewhere"))

    in_chain(claim)


def test_who_comes_second_to_a_serial_port_is_refused_or_takes_it_over() -> None:
    async def claim(chain: Chain) -> None:
        first, second, third = Viewer(), Viewer(), Viewer()
        being = await attached(chain, first)

        with pytest.raises(WrongState, match="somebody else has"):
            await attached(chain, second)
        await attached(chain, third, take_over=True)

        assert await being is ConsoleEnd.TAKEN_OVER
        assert first.why is ConsoleEnd.TAKEN_OVER

    in_chain(claim)


def test_a_console_that_was_left_is_free_at_once() -> None:
    async def claim(chain: Chain) -> None:
        for _ in range(3):
            viewer = Viewer()
            being = await attached(chain, viewer)
            await viewer.typed.put(None)
            await being

    in_chain(claim)


def test_the_log_goes_on_beside() -> None:
    async def claim(chain: Chain) -> None:
        await attached(chain, Viewer())

        log = await chain.conductor.read_console_log("h1", chain.instance_id, 1, 1000)

        assert b"heard: hello" in log

    in_chain(claim)


def test_a_console_ends_with_its_guest() -> None:
    async def claim(chain: Chain) -> None:
        being = await attached(chain, Viewer())

        chain.machine.cut(chain.instance_id)

        assert await being is ConsoleEnd.GUEST_OFF
        with pytest.raises(WrongState, match=r"SHUTOFF|shut itself down"):
            await attached(chain, Viewer())

    in_chain(claim)


def test_who_wants_the_console_of_a_server_that_is_being_stopped_hears_of_the_stop() -> None:
    async def claim(chain: Chain) -> None:
        record = await chain.world.instance(1)
        await chain.world.put(
            {INSTANCE.at(record.id): replace(record, want=Want.STOP, task=TaskState.POWERING_OFF)}
        )

        with pytest.raises(WrongState, match="it is ACTIVE with powering_off under way"):
            await chain.apis[0].issue("web", SERIAL, chain.me)

    in_chain(claim)


def test_a_server_that_is_to_be_off_has_no_console() -> None:
    async def claim(chain: Chain) -> None:
        record = await chain.world.instance(1)
        await chain.world.put(
            {INSTANCE.at(record.id): replace(record, want=Want.STOP, vm_state=VmState.STOPPED)}
        )

        with pytest.raises(WrongState, match="it is SHUTOFF"):
            await chain.apis[0].issue("web", SERIAL, chain.me)

    in_chain(claim)


def test_a_console_ends_when_the_record_says_that_the_server_is_elsewhere() -> None:
    async def claim(chain: Chain) -> None:
        being = await attached(chain, Viewer())
        record = await chain.world.instance(1)

        await chain.world.put({INSTANCE.at(record.id): replace(record, placement_epoch=2)})

        assert await being is ConsoleEnd.MOVED

    in_chain(claim)


def test_a_ticket_does_not_follow_a_server_to_another_place() -> None:
    async def claim(chain: Chain) -> None:
        issued = await chain.apis[0].issue("web", SERIAL, chain.me)
        ticket = await chain.apis[0].redeem(issued.secret, SERIAL, principal=chain.me)
        record = await chain.world.instance(1)
        await chain.world.put({INSTANCE.at(record.id): replace(record, placement_epoch=2)})
        await asyncio.sleep(1.0)

        with pytest.raises(WrongState, match="not where it was"):
            await chain.apis[0].carry(ticket, Viewer())

    in_chain(claim)


def test_a_console_ends_with_the_token_that_it_was_asked_for_with() -> None:
    async def claim(chain: Chain) -> None:
        being = await attached(chain, Viewer())

        await chain.store.commit(Txn(delete=(f"token/{chain.me.token_id}",)))

        assert await being is ConsoleEnd.REVOKED

    in_chain(claim)


def test_a_console_ends_within_two_seconds_of_its_token() -> None:
    """The store was asked every 15 seconds, while the watch next to it knew at once (goal G14)."""

    async def claim(chain: Chain) -> None:
        following = asyncio.create_task(chain.apis[1]._tokens.run())
        await asyncio.sleep(1.0)
        being = await attached(chain, Viewer())

        await chain.store.commit(Txn(delete=(TOKEN.at(chain.me.token_id),)))

        async with within(2.0):
            assert await being is ConsoleEnd.REVOKED
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    in_chain(claim)


def test_a_console_in_which_nothing_happens_ends() -> None:
    async def claim(chain: Chain) -> None:
        being = await attached(chain, Viewer())

        assert await being is ConsoleEnd.IDLE

    in_chain(claim, ConsoleOptions(idle_s=30.0))


def test_no_console_lasts_for_ever() -> None:
    async def claim(chain: Chain) -> None:
        viewer = Viewer()
        being = await attached(chain, viewer)

        async def go_on() -> None:
            while not being.done():
                await viewer.typed.put(b"more\r")
                await asyncio.sleep(5.0)

        going = asyncio.ensure_future(go_on())

        assert await being is ConsoleEnd.TOO_LONG
        going.cancel()

    in_chain(claim, ConsoleOptions(idle_s=30.0, longest_s=120.0))


def test_a_session_that_is_lost_takes_its_consoles_along() -> None:
    async def claim(chain: Chain) -> None:
        being = await attached(chain, Viewer())

        for session in chain.conductor._here["h1"]:
            session.lost("a test")

        assert await being is ConsoleEnd.HOST_LOST

    in_chain(claim)


def test_a_slow_viewer_holds_up_the_writer_and_nothing_piles_up() -> None:
    async def claim(chain: Chain) -> None:
        class Slow(Viewer):
            reading = asyncio.Event()

            async def send(self, data: bytes) -> None:
                await self.reading.wait()
                await super().send(data)

        viewer = Slow()
        issued = await chain.apis[0].issue("web", SERIAL, chain.me)
        ticket = await chain.apis[0].redeem(issued.secret, SERIAL, principal=chain.me)
        being = asyncio.ensure_future(chain.apis[0].carry(ticket, viewer))
        line = b"x" * 19 + b"\r"
        for _ in range(400):
            await viewer.typed.put(line)
        await asyncio.sleep(10.0)

        stuck = viewer.typed.qsize()
        viewer.reading.set()
        await asyncio.sleep(10.0)

        assert stuck > 0
        assert viewer.typed.qsize() == 0
        assert viewer.shown.count(b"heard: ") == 400
        being.cancel()
        await asyncio.gather(being, return_exceptions=True)

    in_chain(claim)


def test_a_screen_shows_the_same_to_several_and_not_to_too_many() -> None:
    async def claim(chain: Chain) -> None:
        viewers = [Viewer() for _ in range(4)]
        carried = []
        for viewer in viewers:
            issued = await chain.apis[0].issue("web", VNC, chain.me)
            ticket = await chain.apis[0].redeem(issued.secret, VNC)
            carried.append(asyncio.ensure_future(chain.apis[0].carry(ticket, viewer)))
            await viewer.sees(b"RFB 003.008\n")

        issued = await chain.apis[0].issue("web", VNC, chain.me)
        ticket = await chain.apis[0].redeem(issued.secret, VNC)
        with pytest.raises(WrongState, match="somebody else has"):
            await chain.apis[0].carry(ticket, Viewer())
        for viewer in viewers:
            await viewer.typed.put(None)
        assert await asyncio.gather(*carried) == [ConsoleEnd.UNSPECIFIED] * 4

    in_chain(claim)


def test_a_host_without_a_session_is_said_to_be_away() -> None:
    async def claim(chain: Chain) -> None:
        issued = await chain.apis[0].issue("web", SERIAL, chain.me)
        ticket = await chain.apis[0].redeem(issued.secret, SERIAL, principal=chain.me)
        chain.conductor._granted.clear()

        with pytest.raises(Unavailable, match="no session"):
            await chain.apis[0].carry(ticket, Viewer())

    in_chain(claim)


def test_counters_are_read_and_passwords_set_through_the_host() -> None:
    async def claim(chain: Chain) -> None:
        found = await chain.conductor.read_diagnostics("h1", chain.instance_id, 1)

        assert found.power is PowerState.RUNNING
        assert found.memory_kib > 0
        await chain.conductor.set_password("h1", chain.instance_id, 1, "r-1", "root", "a secret")
        assert chain.machine.passwords == {(chain.instance_id, "root"): "a secret"}

    in_chain(claim)


def test_a_guest_without_an_agent_is_told_apart_from_a_host_that_is_away() -> None:
    async def claim(chain: Chain) -> None:
        chain.machine.agentless.add(chain.instance_id)

        with pytest.raises(WrongState, match="qemu-guest-agent") as refused:
            await chain.conductor.set_password("h1", chain.instance_id, 1, "r-1", "root", "a canary")

        assert "canary" not in str(refused.value)
        for wrong in (
            chain.conductor.read_diagnostics("h1", chain.instance_id, 2),
            chain.conductor.read_diagnostics("h1", "00000000-0000-4000-8000-00000000dead", 1),
        ):
            with pytest.raises(FabricError, match="the host has no such server"):
                await wrong

    in_chain(claim)
