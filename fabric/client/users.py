"""Users and their roles."""

from __future__ import annotations

from google.protobuf.field_mask_pb2 import FieldMask

from fabric.client.calls import Calls
from fabric.pb.identity.v1 import user_service_pb2 as pb
from fabric.pb.identity.v1.user_service_pb2 import User
from fabric.pb.identity.v1.user_service_pb2_grpc import UserServiceStub

__all__ = ["User", "Users"]


class Users:
    """UserService."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = UserServiceStub(calls.channel)

    def get(self, user: str) -> User:
        """One, by id or name."""
        return self._calls.unary(self._stub.GetUser, pb.GetUserRequest(user=user)).user

    def list(self) -> list[User]:
        """All, by name."""
        pages = self._calls.pages(self._stub.ListUsers, pb.ListUsersRequest())
        return [user for page in pages for user in page.users]

    def create(
        self, *, name: str, password: str, project: str = "", role: str = "", system_admin: bool = False
    ) -> User:
        """Make one, with a first role in a project (id or name)."""
        request = pb.CreateUserRequest(
            request_id=self._calls.request_id(),
            user=User(name=name, system_admin=system_admin),
            password=password,
            project=project,
            role=role,
        )
        return self._calls.unary(self._stub.CreateUser, request).user

    def update(
        self,
        user: str,
        *,
        disabled: bool | None = None,
        system_admin: bool | None = None,
        password: str | None = None,
        default_project: str | None = None,
    ) -> User:
        """Change what is given of one. An empty default project is none; whatever is taken from the user, their tokens lose at once."""
        asked = {
            "disabled": disabled,
            "system_admin": system_admin,
            "password": password,
            "default_project": default_project,
        }
        said = {name: value for name, value in asked.items() if value is not None}
        request = pb.UpdateUserRequest(
            request_id=self._calls.request_id(), user=user, update_mask=FieldMask(paths=sorted(said))
        )
        for name, value in said.items():
            setattr(request, name, value)
        return self._calls.unary(self._stub.UpdateUser, request).user

    def grant_role(self, *, user: str, project: str, role: str) -> None:
        """Give a user `reader`, `member` or `admin` in a project."""
        request = pb.GrantRoleRequest(
            request_id=self._calls.request_id(), user=user, project=project, role=role
        )
        self._calls.unary(self._stub.GrantRole, request)

    def revoke_role(self, *, user: str, project: str, role: str = "") -> None:
        """Take a user's role in a project back; where one is given, only that one."""
        request = pb.RevokeRoleRequest(
            request_id=self._calls.request_id(), user=user, project=project, role=role
        )
        self._calls.unary(self._stub.RevokeRole, request)
