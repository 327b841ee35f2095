"""Tokens: logging in and out."""

from __future__ import annotations

from fabric.client.calls import Calls
from fabric.errors import Unauthenticated
from fabric.pb.identity.v1 import token_service_pb2 as pb
from fabric.pb.identity.v1.token_service_pb2 import IssueTokenResponse, WhoAmIResponse
from fabric.pb.identity.v1.token_service_pb2_grpc import TokenServiceStub

__all__ = ["IssueTokenResponse", "Tokens", "WhoAmIResponse"]


class Tokens:
    """TokenService."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = TokenServiceStub(calls.channel)

    def issue(
        self, *, user: str, password: str, project: str = "", lifetime_s: int = 0
    ) -> IssueTokenResponse:
        """Log in. Asked for again after a lost answer, it makes a second token; the first one expires unused."""
        request = pb.IssueTokenRequest(user=user, password=password, project=project, lifetime_s=lifetime_s)
        return self._calls.unary(self._stub.IssueToken, request)

    def who_am_i(self) -> WhoAmIResponse:
        """Who the token is for."""
        return self._calls.unary(self._stub.WhoAmI, pb.WhoAmIRequest())

    def revoke(self) -> None:
        """End the token that this client uses. One that is not valid any more has ended already."""
        try:
            self._calls.unary(self._stub.RevokeToken, pb.RevokeTokenRequest())
        except Unauthenticated:
            return
