"""fabric.compute.v1.ConsoleService, and what the browsers' door stands on: tickets, and the consoles that they open.

A ticket is a secret of 256 bits, good once, for a minute, for one console of one placement of one server. It is stored by its digest, and
used by deleting it: of several who come with it at once, to whichever API server, one deletes it, and the others are turned away.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import quote

import structlog

from fabric.api.catalogue import Catalogue
from fabric.api.cells import Cells
from fabric.api.placed import Whereabouts, find_placed
from fabric.clock import Clock
from fabric.deadlines import within
from fabric.errors import Ambiguous, Bug, InvalidRequest, PermissionDenied, Unavailable, WrongState
from fabric.identity.tokens import Tokens
from fabric.ids import Ids
from fabric.lifecycle.table import shown
from fabric.model.console import ConsoleEnd, ConsoleKind, ConsoleTicket
from fabric.model.identity import Principal
from fabric.model.states import TaskState, Want
from fabric.pb.compute.v1 import console_service_pb2 as pb
from fabric.rpc import frames, relay
from fabric.rpc.stream import Stream
from fabric.store import codec
from fabric.store.base import Committed, Refused, Store, Txn
from fabric.store.keys import INSTANCE, SESSION, TOKEN, console_ticket_key
from fabric.store.settle import commit_settled

log = structlog.get_logger()

PREFIX: Final = "fab_ticket_"
"""So that people, scanners and the log see what they have found."""

TICKET_S: Final = 60.0
"""How long a ticket waits to be used."""

HELLO_S: Final = 10.0
"""How long who attaches may take to show a ticket."""

PLACE_CHECK_S: Final = 2.0
TOKEN_LOOK_S: Final = 1.0
"""How often what the watch on tokens has told is looked at: a console ends within two seconds of its token."""

TOKEN_CHECK_S: Final = 15.0
"""How often the store itself is asked, should the watch have missed it."""

_LONGEST_TICKET: Final = 128

_ON: Final = frozenset({Want.RUN, Want.PAUSE})
"""What is wanted of a guest that has its consoles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleOptions:
    """What an operator decides of consoles. `url` is where browsers find them, empty where they do not."""

    idle_s: float = 1800.0
    longest_s: float = 3540.0
    url: str = ""


class Carried(frames.Speech, Protocol):
    """A console on its way through a conductor."""

    async def close(self) -> None:
        """Hang up."""
        ...


class ConsoleConductors(Protocol):
    """The conductors, as far as consoles are opened through them."""

    async def open_console(self, where: Whereabouts, kind: ConsoleKind, *, take_over: bool) -> Carried:
        """Open a console. Raises WrongState where somebody has it or the guest is off, TooMuch, Unavailable."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A new ticket: the secret, stored nowhere, and what it opens."""

    secret: str
    ticket: ConsoleTicket


class Consoles:
    """Makes tickets, takes them, and carries consoles. It keeps nothing of its own."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        cells: Cells,
        conductors: ConsoleConductors,
        tokens: Tokens,
        options: ConsoleOptions,
        clock: Clock,
        ids: Ids,
    ) -> None:
        self._catalogue = catalogue
        self._store: Store = catalogue.store
        self._cells = cells
        self._conductors = conductors
        self._tokens = tokens
        self._options = options
        self._clock = clock
        self._ids = ids

    # ---------------------------------------------------------------- tickets

    async def issue(self, word: str, kind: ConsoleKind, principal: Principal) -> Issued:
        """A ticket for a console of a server that is to be on. Raises NotFound, WrongState, Unavailable."""
        placed = await find_placed(self._catalogue, self._cells, word, principal, what="console")
        record = placed.record
        if record.want not in _ON:
            state = shown(record.vm_state, record.task)
            busy = f" with {record.task.name.lower()} under way" if record.task is not TaskState.NONE else ""
            raise WrongState(f"the server has no console: it is {state}{busy}", instance=record.id)
        secret = PREFIX + base64.urlsafe_b64encode(self._ids.new_secret(32)).rstrip(b"=").decode()
        key = console_ticket_key(secret)
        ticket = ConsoleTicket(
            instance_id=record.id,
            instance_name=record.request.guest.name,
            cell=placed.cell,
            host=record.host,
            placement_epoch=record.placement_epoch,
            kind=kind,
            user_id=principal.user_id,
            project_id=principal.project_id,
            token_id=principal.token_id,
            expire_time_ms=self._clock.now_ms() + int(TICKET_S * 1000),
        )
        lease = await self._store.grant(TICKET_S)
        txn = Txn(unchanged={key: 0}, put={key: codec.encode(ticket)}, leases={key: lease.id})
        if not isinstance(await commit_settled(self._store, txn, mark=key), Committed):
            raise Bug("a fresh ticket was there already")
        return Issued(secret=secret, ticket=ticket)

    def url_of(self, issued: Issued) -> str:
        """What a browser opens. The ticket is behind the `#`, which no browser sends to a server or to another page."""
        return f"{self._options.url}/#ticket={quote(issued.secret)}" if self._options.url else ""

    async def redeem(
        self, secret: str, kind: ConsoleKind, *, principal: Principal | None = None
    ) -> ConsoleTicket:
        """Use a ticket up. `principal` is who shows it, where that is known: a browser shows the ticket alone.

        Raises:
            PermissionDenied: in the same words for unknown, used, expired, and made for something or somebody else.
            Unavailable: the store cannot tell, and the ticket may be used up.
        """
        if not secret.isascii() or not 0 < len(secret) <= _LONGEST_TICKET:
            raise _refused()
        key = console_ticket_key(secret)
        seen = await self._store.get(key)
        stored = seen.value(key)
        if stored is None:
            raise _refused()
        ticket = codec.decode(ConsoleTicket, stored)
        is_theirs = principal is None or (principal.user_id, principal.project_id) == (
            ticket.user_id,
            ticket.project_id,
        )
        if ticket.kind is not kind or not is_theirs or ticket.expire_time_ms <= self._clock.now_ms():
            raise _refused()
        token = TOKEN.at(ticket.token_id)
        held = await self._store.get(token)
        if token not in held.entries:
            raise _refused()  # whoever made it has been kept out since, or has logged out
        try:
            outcome = await self._store.commit(
                Txn(unchanged={key: seen.seen(key), token: held.seen(token)}, delete=(key,))
            )
        except Ambiguous:
            # Whether it was us who deleted it cannot be told, because nothing is left to tell it by. Twice is worse than not at all.
            raise Unavailable("the store did not say whether the ticket is used; make a new one") from None
        if isinstance(outcome, Refused):
            raise _refused()
        return ticket

    # ---------------------------------------------------------------- consoles

    async def carry(
        self,
        ticket: ConsoleTicket,
        viewer: frames.Speech,
        *,
        take_over: bool = False,
        opened: Callable[[], Awaitable[None]] | None = None,
    ) -> ConsoleEnd:
        """Carry a console between a viewer and the conductor until it is over. `opened` is awaited once there is one.

        Raises:
            WrongState: the server is not where it was, is off, or somebody else has the console.
            InvalidRequest: the viewer said what no viewer says.
            Unavailable, TooMuch: not now.
        """
        view = self._cells[ticket.cell]
        held = await view.sessions.find(SESSION.at(ticket.host))
        if held is None or not held.value.conductor or not await self._is_there(ticket):
            raise WrongState("the server is not where it was when the ticket was made; make a new one")
        where = Whereabouts(
            conductor=held.value.conductor,
            host=ticket.host,
            instance_id=ticket.instance_id,
            placement_epoch=ticket.placement_epoch,
        )
        console = await self._conductors.open_console(where, ticket.kind, take_over=take_over)
        who = {"instance": ticket.instance_id, "user": ticket.user_id, "kind": ticket.kind.name.lower()}
        log.info("console.opened", **who)
        why = ConsoleEnd.UNSPECIFIED
        try:
            if opened is not None:
                await opened()
            why = await relay.join(
                viewer,
                console,
                clock=self._clock,
                idle_s=self._options.idle_s,
                watches=(
                    self._until_too_long,
                    lambda: self._until_moved(ticket),
                    lambda: self._until_revoked(ticket),
                ),
            )
        finally:
            await console.close()
            log.info("console.over", why=why.name, **who)
        return why

    async def _is_there(self, ticket: ConsoleTicket) -> bool:
        key = INSTANCE.at(ticket.instance_id)
        held = await self._cells[ticket.cell].instances.find(key)
        return held is not None and (held.value.host, held.value.placement_epoch) == (
            ticket.host,
            ticket.placement_epoch,
        )

    async def _until_too_long(self) -> ConsoleEnd:
        await asyncio.sleep(self._options.longest_s)
        return ConsoleEnd.TOO_LONG

    async def _until_moved(self, ticket: ConsoleTicket) -> ConsoleEnd:
        """A host that the server has left could go on pretending: that the record says so is enough."""
        while True:
            await asyncio.sleep(PLACE_CHECK_S)
            try:
                if not await self._is_there(ticket):
                    return ConsoleEnd.MOVED
            except Unavailable:
                continue

    async def _until_revoked(self, ticket: ConsoleTicket) -> ConsoleEnd:
        hearings, asked_s = self._tokens.hearings, self._clock.boot_s()
        while True:
            await asyncio.sleep(TOKEN_LOOK_S)
            if self._tokens.has_ended(ticket.token_id):
                return ConsoleEnd.REVOKED
            # Of what ended while the watch on tokens was away it tells nothing.
            if self._tokens.hearings == hearings and self._clock.boot_s() - asked_s < TOKEN_CHECK_S:
                continue
            hearings, asked_s = self._tokens.hearings, self._clock.boot_s()
            if not await self._tokens.stands(ticket.token_id):
                return ConsoleEnd.REVOKED


class ConsoleHandlers:
    """fabric.compute.v1.ConsoleService."""

    def __init__(self, consoles: Consoles) -> None:
        self._consoles = consoles

    async def create_console_ticket(
        self, request: pb.CreateConsoleTicketRequest, principal: Principal
    ) -> pb.CreateConsoleTicketResponse:
        kind = ConsoleKind(request.kind)
        issued = await self._consoles.issue(request.instance, kind, principal)
        response = pb.CreateConsoleTicketResponse(
            ticket=issued.secret,
            url=self._consoles.url_of(issued) if kind is ConsoleKind.VNC else "",
        )
        response.expire_time.FromMilliseconds(issued.ticket.expire_time_ms)
        return response

    async def attach_console(self, stream: Stream, principal: Principal) -> None:
        line = frames.client_side(stream)
        try:
            async with within(HELLO_S):
                shown = await line.head("ticket")
        except TimeoutError:
            raise InvalidRequest("a console begins with a ticket", field="ticket") from None
        ticket = await self._consoles.redeem(shown.ticket, ConsoleKind.SERIAL, principal=principal)

        async def opened() -> None:
            await line.open("attached", pb.ConsoleAttached(name=ticket.instance_name))

        await self._consoles.carry(ticket, line, take_over=shown.take_over, opened=opened)


def _refused() -> PermissionDenied:
    return PermissionDenied("the ticket is not valid; make a new one")
