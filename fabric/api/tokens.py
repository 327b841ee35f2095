"""TokenService: logging in, asking who one is, logging out."""

from __future__ import annotations

from fabric.api.instance_view import timestamp
from fabric.identity.login import Login
from fabric.identity.tokens import Tokens
from fabric.model.identity import Principal, Role
from fabric.pb.identity.v1 import token_service_pb2 as pb


class TokenHandlers:
    """The RPCs, as functions of a request and who asks."""

    def __init__(self, login: Login, tokens: Tokens) -> None:
        self._login = login
        self._tokens = tokens

    async def issue_token(self, request: pb.IssueTokenRequest, principal: Principal) -> pb.IssueTokenResponse:
        secret, token = await self._login.login(
            user_name=request.user,
            password=request.password,
            project=request.project,
            asked_s=request.lifetime_s,
            peer=principal.peer,
        )
        return pb.IssueTokenResponse(
            token=secret,
            expire_time=timestamp(token.expire_time_ms),
            user_id=token.user_id,
            project_id=token.project_id,
            project_name=token.project_name,
            role=_word(token.role),
        )

    async def who_am_i(self, request: pb.WhoAmIRequest, principal: Principal) -> pb.WhoAmIResponse:
        return pb.WhoAmIResponse(
            user_id=principal.user_id,
            user_name=principal.user_name,
            project_id=principal.project_id,
            project_name=principal.project_name,
            role=_word(principal.role),
            system_admin=principal.system_admin,
            expire_time=timestamp(principal.expire_time_ms),
        )

    async def revoke_token(
        self, request: pb.RevokeTokenRequest, principal: Principal
    ) -> pb.RevokeTokenResponse:
        await self._tokens.revoke(principal.token_id)
        return pb.RevokeTokenResponse()


def _word(role: Role) -> str:
    return "" if role is Role.UNSPECIFIED else role.name.lower()
