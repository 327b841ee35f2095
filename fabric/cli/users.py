"""`fabric user` and `fabric role`: people, and what they may do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fabric.cli import params
from fabric.cli.output import Shape, Value, listing, print_list, print_one, showing, when
from fabric.cli.params import examples, given, something
from fabric.cli.session import Session, pass_session

if TYPE_CHECKING:
    from fabric.client.users import User

ROLES = ("reader", "member", "admin")


def view(user: User) -> dict[str, Value]:
    """Every field, as it is printed."""
    return {
        "id": user.id,
        "name": user.name,
        "default_project_id": user.default_project_id,
        "enabled": not user.disabled,
        "system_admin": user.system_admin,
        "created_at": when(user.create_time),
    }


@click.group()
def user() -> None:
    """People who may log in (system administrators)."""


@user.command(
    epilog=examples("fabric user create --project nebula_prod --role admin --password-prompt nebula_admin")
)
@click.option(
    "--project", default="", help="A project to give a first role in.", shell_complete=params.projects
)
@click.option("--role", type=click.Choice(ROLES), help="That role.  [default: member]")
@click.option(
    "--password", help="The password. Others on this machine can read it: better --password-prompt."
)
@click.option("--password-prompt", is_flag=True, help="Ask for the password, twice.")
@click.option("--system-admin", is_flag=True, help="May administer the system.")
@click.argument("name")
@showing
@pass_session
def create(
    session: Session,
    *,
    project: str,
    role: str | None,
    password: str | None,
    password_prompt: bool,
    system_admin: bool,
    name: str,
    shape: Shape,
) -> None:
    """Make a user, with a role in a project."""
    if role is not None and not project:
        raise click.UsageError("--role is a role in a project: say which by --project")
    if (password is not None) == password_prompt:
        raise click.UsageError("give one of --password and --password-prompt")
    if password is None:
        password = asked(name)
    made = session.client.users.create(
        name=name,
        password=password,
        project=project,
        role=(role or "member") if project else "",
        system_admin=system_admin,
    )
    print_one(shape, view(made))


@user.command(
    "set",
    epilog=examples(
        "fabric user set --password-prompt nebula_admin", "fabric user set --disable nebula_admin"
    ),
)
@click.option(
    "--password", help="Another password. Others on this machine can read it: better --password-prompt."
)
@click.option("--password-prompt", is_flag=True, help="Ask for the other password, twice.")
@click.option("--enable/--disable", default=None, help="Let the user in, or keep them out.")
@click.option(
    "--system-admin/--no-system-admin", default=None, help="May administer the system, or may not any more."
)
@click.option(
    "--project",
    "default_project",
    help="The project a login without one is for; '' for none.",
    shell_complete=params.projects,
)
@click.argument("user", shell_complete=params.users)
@pass_session
def set_(
    session: Session,
    *,
    password: str | None,
    password_prompt: bool,
    enable: bool | None,
    system_admin: bool | None,
    default_project: str | None,
    user: str,
) -> None:
    """Change one. Another password, --disable and --no-system-admin end all tokens of the user at once."""
    if password is not None and password_prompt:
        raise click.UsageError("give one of --password and --password-prompt")
    changes = given(
        {
            "password": password,
            "disabled": None if enable is None else not enable,
            "system_admin": system_admin,
            "default_project": default_project,
        }
    )
    if password_prompt:
        changes["password"] = asked(user)
    session.client.users.update(user, **something(changes))


def asked(name: str) -> str:
    """A password, typed twice."""
    password: str = click.prompt(f"Password of {name}", hide_input=True, confirmation_prompt=True, err=True)
    return password


@user.command("list", epilog=examples("fabric user list"))
@listing
@pass_session
def list_(session: Session, *, shape: Shape) -> None:
    """List every user."""
    print_list(
        shape,
        ("ID", "Name", "System Admin", "Enabled"),
        ((it.id, it.name, it.system_admin, not it.disabled) for it in session.client.users.list()),
    )


@user.command(epilog=examples("fabric user show nebula_admin"))
@click.argument("user", shell_complete=params.users)
@showing
@pass_session
def show(session: Session, *, user: str, shape: Shape) -> None:
    """Show one, by name or id."""
    print_one(shape, view(session.client.users.get(user)))


@click.group()
def role() -> None:
    """What users may do in projects (system administrators)."""


@role.command(epilog=examples("fabric role add --user nebula_admin --project nebula_prod member"))
@click.option("--user", "user_name", required=True, metavar="USER", help="Who.", shell_complete=params.users)
@click.option("--project", required=True, help="Where.", shell_complete=params.projects)
@click.argument("role_name", metavar="ROLE", type=click.Choice(ROLES))
@pass_session
def add(session: Session, *, user_name: str, project: str, role_name: str) -> None:
    """Give a user a role in a project: reader, member or admin, each including the ones before it."""
    session.client.users.grant_role(user=user_name, project=project, role=role_name)


@role.command(epilog=examples("fabric role remove --user nebula_admin --project nebula_prod member"))
@click.option(
    "--user", "user_name", required=True, metavar="USER", help="Whose.", shell_complete=params.users
)
@click.option("--project", required=True, help="Where.", shell_complete=params.projects)
@click.argument("role_name", metavar="ROLE", type=click.Choice(ROLES))
@pass_session
def remove(session: Session, *, user_name: str, project: str, role_name: str) -> None:
    """Take a user's role in a project back. Their tokens for the project end at once."""
    session.client.users.revoke_role(user=user_name, project=project, role=role_name)
