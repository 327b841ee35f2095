"""What happens around every handler, each stage a function from endpoint to endpoint, listed in the order they run.

Outermost is the one that lets nothing out but errors of ours. Everything before `authenticate` costs the same for everybody, and a token
that is none costs one look into the store, as often as somebody with a token may call: so who has none can make us do little work.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol
from urllib.parse import unquote

import grpc
import structlog

from fabric.clock import Clock
from fabric.deadlines import within
from fabric.errors import Bug, FabricError, PermissionDenied, Reason, Unauthenticated, Unavailable
from fabric.model.identity import Principal
from fabric.rpc.authz import ANYBODY, BY_CERTIFICATE, BY_TOKEN, check
from fabric.rpc.call import Call, Endpoint, Stage
from fabric.rpc.limits import Limits
from fabric.rpc.method import Scope
from fabric.rpc.status import code_of
from fabric.rpc.stream import StreamClosed

log = structlog.get_logger()

LONGEST_CALL_S = 30.0
"""No unary call lasts longer, whatever its caller's deadline. A caller without a deadline gets this one."""

LONGEST_TRANSFER_S = 3600.0
"""No stream of a person's lasts longer. Sessions of hosts and reads of services last as long as their peers do."""


class Authenticator(Protocol):
    """Who a token proves its bearer to be."""

    async def principal(self, token: str) -> Principal:
        """Raises Unauthenticated, in the same words for unknown, expired and revoked; Unavailable when nobody can tell."""
        ...

    def remembers(self, token: str) -> bool:
        """Whether it was seen good lately: looking it up is known to be worth it."""
        ...


class Audit(Protocol):
    """Where calls that change something, and calls that were denied, are written down for ever."""

    def record(
        self,
        *,
        method: str,
        principal: str,
        project: str,
        peer: str,
        request_id: str,
        outcome: str,
        target: str = "",
        is_denial: bool = False,
    ) -> None:
        """Write one line. `outcome` is `OK` or the reason of the error."""
        ...


class Reported(Exception):
    """An error of ours on its way to the wire; `error_id` finds it in the log when it is a bug."""

    def __init__(self, error: FabricError, error_id: str = "") -> None:
        super().__init__(error.message)
        self.error = error
        self.error_id = error_id


def report(clock: Clock, new_id: Callable[[], str]) -> Stage:
    """One log line for every call, and nothing but `Reported` gets out."""

    def stage(inner: Endpoint) -> Endpoint:
        async def answer(call: Call) -> None:
            begin_s = clock.boot_s()
            code, reason = "CANCELLED", ""
            try:
                await inner(call)
                code = "OK"
            except StreamClosed:
                raise  # the caller hung up
            except Exception as raised:  # noqa: BLE001 - the one place that nothing unexpected may pass
                reported = _reported(raised, call, new_id)
                code, reason = code_of(reported.error).name, str(reported.error.reason)
                raise reported from None
            finally:
                log.info(
                    "rpc.finished",
                    method=call.method.path,
                    code=code,
                    reason=reason,
                    took_ms=round((clock.boot_s() - begin_s) * 1000, 1),
                    principal=name_of(call.principal),
                    project=call.principal.project_id,
                    peer=call.peer,
                    **call.facts,
                )

        return answer

    return stage


def _reported(raised: Exception, call: Call, new_id: Callable[[], str]) -> Reported:
    """What the caller is told. Of what should not have happened that is an id, under which the log says where it did.

    The text of an exception that is not ours may hold anything, secrets too: it goes nowhere.
    """
    if isinstance(raised, FabricError) and code_of(raised) is not grpc.StatusCode.INTERNAL:
        return Reported(raised)
    error_id = new_id()
    log.error(
        "rpc.failed",
        error_id=error_id,
        method=call.method.path,
        error=type(raised).__name__,
        message=raised.message if isinstance(raised, FabricError) else "",
        where=_where(raised),
    )
    return Reported(Bug("internal error"), error_id)


def _where(error: BaseException) -> list[str]:
    """File and line of every frame, outermost first, without any value."""
    frames: list[str] = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(f"{trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}")
        trace = trace.tb_next
    return frames


def name_of(principal: Principal) -> str:
    """A principal for logs and limits: `user:<id>`, `host:<cell>/<name>`, `service:<name>`, or nothing."""
    if principal.user_id:
        return f"user:{principal.user_id}"
    if principal.host:
        return f"host:{principal.cell}/{principal.host}"
    return f"service:{principal.service}" if principal.service else ""


def audit(book: Audit) -> Stage:
    """Write down what changed something, or was denied."""

    def stage(inner: Endpoint) -> Endpoint:
        async def answer(call: Call) -> None:
            outcome = "INTERRUPTED"  # its caller hung up: it may or may not have taken effect
            denied = False
            try:
                await inner(call)
                outcome = "OK"
            except FabricError as error:
                outcome = str(error.reason)
                denied = isinstance(error, PermissionDenied | Unauthenticated)
                raise
            except Exception:
                outcome = str(Reason.INTERNAL)
                raise
            finally:
                if call.method.authz.mutates or denied:
                    book.record(
                        method=call.method.path,
                        principal=name_of(call.principal),
                        project=call.principal.project_id,
                        peer=call.peer,
                        request_id=str(call.facts.get("request_id", "")),
                        outcome=outcome,
                        target=str(call.facts.get("target", "")),
                        is_denial=denied,
                    )

        return answer

    return stage


def deadline(inner: Endpoint) -> Endpoint:
    """End calls at their caller's deadline or at the server's cap, whichever is first."""

    async def answer(call: Call) -> None:
        scope: asyncio.Timeout | None = None
        try:
            async with within(_least(_cap_s(call), call.timeout_s)) as scope:
                await inner(call)
        except TimeoutError:
            if scope is None or not scope.expired():
                raise
            raise Unavailable(
                "the deadline passed before the answer was known; a mutation may have taken effect: send it again"
                " with the same request_id",
                reason=Reason.DEADLINE_EXCEEDED,
            ) from None

    return answer


def _least(cap_s: float | None, left_s: float | None) -> float | None:
    if cap_s is None or left_s is None:
        return cap_s if left_s is None else left_s
    return min(cap_s, left_s)


def _cap_s(call: Call) -> float | None:
    method = call.method
    if not method.streams_requests and not method.streams_responses:
        return LONGEST_CALL_S
    return None if method.authz.scope in BY_CERTIFICATE else LONGEST_TRANSFER_S


def welcome(is_ready: Callable[[], bool]) -> Stage:
    """Have callers come again while the server is still starting.

    Its port is open before it knows everything that an answer needs: a login answered then would take an account that is about to be
    made for one that does not exist, and its caller would not try again.
    """

    def stage(inner: Endpoint) -> Endpoint:
        async def answer(call: Call) -> None:
            if not is_ready():
                raise Unavailable("the server is still starting: try again", reason=Reason.STARTING)
            await inner(call)

        return answer

    return stage


@dataclass(frozen=True, slots=True)
class Doubts:
    """How often an address may show tokens that nobody has seen good lately, each of which is looked up in the store."""

    limits: Limits
    clock: Clock


def authenticate(tokens: Authenticator | None, doubts: Doubts | None = None) -> Stage:
    """Learn who is asking: by certificate or by token, as the method's scope wants. Raises TooMuch for too many `doubts`."""

    def stage(inner: Endpoint) -> Endpoint:
        async def answer(call: Call) -> None:
            scope = call.method.authz.scope
            if scope in BY_CERTIFICATE:
                call.principal = call.certificate
            elif scope in BY_TOKEN:
                call.principal = await _bearer(tokens, doubts, call)
            call.principal = replace(call.principal, peer=address_of(call.peer))
            await inner(call)

        return answer

    return stage


async def _bearer(tokens: Authenticator | None, doubts: Doubts | None, call: Call) -> Principal:
    scheme, _, token = call.metadata.get("authorization", "").partition(" ")
    if tokens is None or scheme.lower() != "bearer" or not token:
        # Decided by `authorize`, with everything else that is missing.
        return ANYBODY
    token = token.strip()
    if doubts is None or tokens.remembers(token):
        return await tokens.principal(token)
    address = address_of(call.peer)
    doubts.limits.enter(address, now_s=doubts.clock.boot_s())
    try:
        return await tokens.principal(token)
    finally:
        doubts.limits.leave(address)


def authorize(inner: Endpoint) -> Endpoint:
    """Let pass whom the method's own option lets pass. Everybody else is refused, by default."""

    async def answer(call: Call) -> None:
        check(call.method.authz, call.principal)
        await inner(call)

    return answer


def limit(limits: Limits, clock: Clock) -> Stage:
    """Refuse callers who ask too often or too much at once. Hosts and services are limited by their own queues."""

    def stage(inner: Endpoint) -> Endpoint:
        async def answer(call: Call) -> None:
            if call.method.authz.scope in BY_CERTIFICATE:
                await inner(call)
                return
            who = (
                name_of(call.principal)
                if call.method.authz.scope is not Scope.PUBLIC
                else address_of(call.peer)
            )
            limits.enter(who, now_s=clock.boot_s())
            try:
                await inner(call)
            finally:
                limits.leave(who)

        return answer

    return stage


def address_of(peer: str) -> str:
    """A peer without its port: `ipv4:192.0.2.1:4711` and its next connection are the same caller.

    And so are all IPv6 addresses of one /64: that is what anybody gets who gets one (RFC 6177).
    """
    address = peer.rpartition(":")[0] or peer
    kind, _, text = address.partition(":")
    if kind != "ipv6":
        return address
    try:
        # gRPC writes the brackets escaped, and may put a zone behind the address.
        number = ipaddress.IPv6Address(unquote(text).strip("[]").partition("%")[0])
    except ValueError:
        return address
    if number.ipv4_mapped is not None:
        return f"ipv4:{number.ipv4_mapped}"
    return f"ipv6:{ipaddress.IPv6Network((number, 64), strict=False)}"
