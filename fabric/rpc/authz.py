"""Whether a principal may call a method: a function of the two, and of nothing else."""

from __future__ import annotations

from fabric.errors import PermissionDenied, Reason, Unauthenticated
from fabric.model.identity import Principal
from fabric.rpc.method import Authz, Scope

BY_TOKEN = frozenset({Scope.USER, Scope.PROJECT, Scope.SYSTEM})
"""Scopes whose callers prove themselves by a token."""

BY_CERTIFICATE = frozenset({Scope.HOST, Scope.SERVICE})
"""Scopes whose callers prove themselves by their client certificate."""

ANYBODY = Principal()
"""Who has proven nothing."""


def check(authz: Authz, principal: Principal) -> None:
    """Let the principal pass, or say why not.

    Whose resource it is that they want is not asked here: handlers load resources under the principal's project, so that
    foreign ones are not found.

    Raises:
        Unauthenticated: the method wants a proof of another kind than the caller gave.
        PermissionDenied: the principal is known, and may not.
    """
    match authz.scope:
        case Scope.PUBLIC:
            return
        case Scope.HOST:
            if not principal.host:
                raise _unproven("a host's certificate")
        case Scope.SERVICE:
            if not principal.service:
                raise _unproven("a service's certificate")
        case _:
            if not principal.user_id:
                raise _unproven("a token")
            _check_user(authz, principal)


def _check_user(authz: Authz, principal: Principal) -> None:
    if authz.scope is Scope.USER or principal.system_admin:
        return
    if authz.scope is Scope.SYSTEM:
        raise PermissionDenied("only system administrators may do this", needed="system")
    if not principal.project_id:
        raise PermissionDenied("this needs a role in a project; your token is for none")
    if principal.role < authz.role:
        raise PermissionDenied(
            f"this needs the role {authz.role.name.lower()} in project {principal.project_name};"
            f" yours is {principal.role.name.lower()}",
            needed=authz.role.name.lower(),
        )


def _unproven(wanted: str) -> Unauthenticated:
    return Unauthenticated(f"this needs {wanted}", reason=Reason.CREDENTIALS_MISSING)
