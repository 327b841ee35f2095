"""Who may call what: every method that the protos declare, asked by every kind of principal, through the stages that servers run."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from google.protobuf.descriptor import ServiceDescriptor

from fabric import pb
from fabric.errors import Bug, FabricError, PermissionDenied, Unauthenticated
from fabric.model.identity import Principal, Role
from fabric.pb.compute.v1 import flavor_service_pb2
from fabric.rpc import authz, stages
from fabric.rpc.call import Call, bind, chain
from fabric.rpc.method import Method, Scope, methods


def _services() -> list[ServiceDescriptor]:
    found: dict[str, ServiceDescriptor] = {}
    for module in pkgutil.walk_packages(pb.__path__, f"{pb.__name__}."):
        if module.name.endswith("_service_pb2"):
            loaded = importlib.import_module(module.name)
            found |= {each.full_name: each for each in loaded.DESCRIPTOR.services_by_name.values()}
    return [found[name] for name in sorted(found)]


METHODS = [method for service in _services() for method in methods(service)]

TOKENS: Mapping[str, Principal] = {
    "other project's reader": Principal(user_id="a", project_id="other", role=Role.READER),
    "other project's member": Principal(user_id="b", project_id="other", role=Role.MEMBER),
    "other project's admin": Principal(user_id="c", project_id="other", role=Role.ADMIN),
    "own reader": Principal(user_id="d", project_id="own", role=Role.READER),
    "own member": Principal(user_id="e", project_id="own", role=Role.MEMBER),
    "own admin": Principal(user_id="f", project_id="own", role=Role.ADMIN),
    "user without a project": Principal(user_id="g"),
    "system admin": Principal(user_id="h", project_id="admin", role=Role.ADMIN, system_admin=True),
}
CERTIFICATES: Mapping[str, Principal] = {
    "host": Principal(host="h1", cell="c1", cert_serial="1"),
    "service": Principal(service="conductor", cell="c1", cert_serial="2"),
}
WHO = ["anonymous", "expired", *TOKENS, *CERTIFICATES]

_READERS = {
    "other project's reader",
    "other project's member",
    "other project's admin",
    "own reader",
    "own member",
    "own admin",
    "system admin",
}
_MEMBERS = _READERS - {"other project's reader", "own reader"}
_ADMINS = _MEMBERS - {"other project's member", "own member"}

# Written down beside the code that decides, not made from it. Whose resources they see in "their" project is for handlers: another
# project's member may call what an own member may, and finds nothing there (tests/integration/api).
MAY: Mapping[tuple[Scope, Role], set[str]] = {
    (Scope.PUBLIC, Role.UNSPECIFIED): {*WHO},
    (Scope.USER, Role.UNSPECIFIED): {*TOKENS},
    (Scope.PROJECT, Role.READER): _READERS,
    (Scope.PROJECT, Role.MEMBER): _MEMBERS,
    (Scope.PROJECT, Role.ADMIN): _ADMINS,
    (Scope.SYSTEM, Role.UNSPECIFIED): {"system admin"},
    (Scope.HOST, Role.UNSPECIFIED): {"host"},
    (Scope.SERVICE, Role.UNSPECIFIED): {"service"},
}


class _Tokens:
    def remembers(self, token: str) -> bool:
        return False

    async def principal(self, token: str) -> Principal:
        if token not in TOKENS:
            raise Unauthenticated("the token is not valid")
        return TOKENS[token]


@dataclass
class _NoPipe:
    written: list[bytes] = field(default_factory=list)

    async def read(self) -> bytes | None:
        return b""

    async def write(self, data: bytes) -> None:
        self.written.append(data)


async def _is_let_in(method: Method, who: str) -> bool:
    reached: list[Principal] = []

    async def endpoint(call: Call) -> None:
        reached.append(call.principal)

    call = Call(
        method=method,
        pipe=_NoPipe(),
        metadata={} if who in {"anonymous", *CERTIFICATES} else {"authorization": f"Bearer {who}"},
        peer="ipv4:192.0.2.1:1",
        certificate=CERTIFICATES.get(who, Principal()),
    )
    try:
        await chain((stages.authenticate(_Tokens()), stages.authorize), endpoint)(call)
    except (PermissionDenied, Unauthenticated):
        assert not reached
        return False
    return True


def test_every_declared_method_is_known_here() -> None:
    assert len(METHODS) >= 36
    assert {(method.authz.scope, method.authz.role) for method in METHODS} <= MAY.keys()


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_a_method_lets_in_exactly_whom_it_is_for(method: Method, who: str) -> None:
    assert await _is_let_in(method, who) == (who in MAY[method.authz.scope, method.authz.role])


@pytest.mark.parametrize(
    "method", [it for it in METHODS if it.authz.scope is Scope.SYSTEM], ids=lambda it: it.name
)
def test_who_is_no_system_administrator_is_told_that_no_role_in_a_project_is_that(method: Method) -> None:
    with pytest.raises(PermissionDenied) as denied:
        authz.check(method.authz, TOKENS["own admin"])

    assert denied.value.facts["needed"] == "system"


def test_a_method_that_only_reads_says_so_by_its_name() -> None:
    """What changes something is audited; one that forgets to say so would change things unseen."""
    reading = ("Get", "List", "Watch", "WhoAmI", "Read", "Fetch", "Download")
    # A login changes nothing but its own token, and failed ones are audited as denials; a session is a conversation.
    neither = {"IssueToken", "Session", "Tunnel", "OpenConsole"}

    wrong = [
        method.path
        for method in METHODS
        if method.name not in neither and method.name.startswith(reading) == method.authz.mutates
    ]

    assert wrong == []


def test_every_change_takes_a_request_id() -> None:
    streamed = {"CreateImage"}  # in its header
    own = {"RevokeToken"}  # of one's own token: doing it twice is doing it once
    named = {"UploadImage", "TakeImage"}  # the image itself: it takes its bytes once
    anew = {"CreateConsoleTicket", "AttachConsole"}  # each is another way in, which opens once

    without = [
        method.path
        for method in METHODS
        if method.authz.mutates
        and method.name not in streamed | own | named | anew
        and "request_id" not in method.request.DESCRIPTOR.fields_by_name
    ]

    assert without == []


def test_a_service_with_an_unanswered_method_cannot_be_served() -> None:
    service = flavor_service_pb2.DESCRIPTOR.services_by_name["FlavorService"]

    with pytest.raises(Bug, match="get_flavor"):
        bind(service, object())


async def test_a_token_of_another_scheme_is_no_token() -> None:
    method = next(each for each in METHODS if each.name == "WhoAmI")
    for header in ("Basic own member", "own member", "Bearer", "Bearer ", ""):
        call = Call(
            method=method, pipe=_NoPipe(), metadata={"authorization": header}, peer="ipv4:192.0.2.1:1"
        )

        async def endpoint(_: Call) -> None:
            raise AssertionError("let in")

        with pytest.raises(FabricError):
            await chain((stages.authenticate(_Tokens()), stages.authorize), endpoint)(call)
