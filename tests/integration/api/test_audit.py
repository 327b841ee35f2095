"""What the audit log says a change was about."""

from __future__ import annotations

import json

from fabric.pb.identity.v1 import project_service_pb2 as projects
from fabric.pb.identity.v1 import user_service_pb2 as users
from tests.integration.api.front_door import FrontDoor

USERS, PROJECTS = "fabric.identity.v1.UserService", "fabric.identity.v1.ProjectService"


async def test_what_is_given_to_a_user_and_taken_from_them_is_told_of_the_user(door: FrontDoor) -> None:
    """A role is of a user in a project: the lines told of the project, and nobody could see from them who had been let in."""
    project = projects.CreateProjectRequest(request_id="r1", project=projects.Project(name="red"))
    await door.ask(PROJECTS, "CreateProject", project, "system admin")
    asked = {"user": "ruth", "project": "red", "role": "member"}
    ruth = users.User(name="ruth")
    create = users.CreateUserRequest(request_id="r2", user=ruth, password="a long password", project="red")
    await door.ask(USERS, "CreateUser", create, "system admin")
    await door.ask(USERS, "GrantRole", users.GrantRoleRequest(request_id="r3", **asked), "system admin")
    await door.ask(USERS, "RevokeRole", users.RevokeRoleRequest(request_id="r4", **asked), "system admin")

    told = [json.loads(line) for line in door.audit.written]

    assert [(line["method"].rpartition("/")[2], line["target"]) for line in told] == [
        ("CreateProject", "red"),
        ("CreateUser", "ruth"),
        ("GrantRole", "ruth"),
        ("RevokeRole", "ruth"),
    ]
