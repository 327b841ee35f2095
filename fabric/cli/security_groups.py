"""`fabric security group`: what may pass at ports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fabric.cli import params
from fabric.cli.many import each
from fabric.cli.output import Cell, Shape, Value, listing, print_list, print_one, showing, when
from fabric.cli.params import NOT_EMPTY, PORT_RANGE, examples, given, something
from fabric.cli.session import Session, pass_session

if TYPE_CHECKING:
    from fabric.client.security_groups import SecurityGroup, SecurityGroupRule


def port_range(rule: SecurityGroupRule) -> str:
    """`22:22`; of ICMP `type=8:code=0`; empty for any."""
    if not rule.HasField("port_range_min"):
        return ""
    first, has_last = rule.port_range_min, rule.HasField("port_range_max")
    if "icmp" in rule.protocol:
        return f"type={first}" + (f":code={rule.port_range_max}" if has_last else "")
    return f"{first}:{rule.port_range_max}"


def view_rule(rule: SecurityGroupRule) -> dict[str, Value]:
    """Every field, as it is printed."""
    from fabric.client.security_groups import direction_name, ether_type_name

    return {
        "id": rule.id,
        "security_group_id": rule.security_group,
        "direction": direction_name(rule),
        "ether_type": ether_type_name(rule),
        "protocol": rule.protocol or None,
        "port_range_min": rule.port_range_min if rule.HasField("port_range_min") else None,
        "port_range_max": rule.port_range_max if rule.HasField("port_range_max") else None,
        "remote_ip_prefix": rule.remote_cidr or None,
        "remote_group_id": rule.remote_group or None,
        "project_id": rule.project_id,
        "description": rule.description,
        "created_at": when(rule.create_time),
    }


def view(group: SecurityGroup) -> dict[str, Value]:
    """Every field, as it is printed: rules a line each for people."""
    rules = [view_rule(it) for it in group.rules]
    return {
        "id": group.id,
        "name": group.name,
        "description": group.description,
        "project_id": group.project_id,
        "rules": Cell(rules, "\n".join(_line(it) for it in group.rules)),  # type: ignore[arg-type]  # views hold plain values
        "created_at": when(group.create_time),
        "updated_at": when(group.update_time),
    }


def _line(rule: SecurityGroupRule) -> str:
    from fabric.client.security_groups import direction_name, ether_type_name

    words = [direction_name(rule), ether_type_name(rule), rule.protocol, port_range(rule)]
    way = "from" if direction_name(rule) == "ingress" else "to"
    words += (
        [f"{way} {rule.remote_cidr or rule.remote_group}"] if rule.remote_cidr or rule.remote_group else []
    )
    return " ".join(it for it in words if it)


@click.group()
def security() -> None:
    """Security groups: what may pass at ports."""


@security.group()
def group() -> None:
    """Stateful allow-lists: what no rule allows is dropped."""


@group.command(epilog=examples("fabric security group create nebula_web_sg"))
@click.option("--description", default="", help="For people.")
@click.argument("name")
@showing
@pass_session
def create(session: Session, *, description: str, name: str, shape: Shape) -> None:
    """Make a group; it lets everything out and nothing in."""
    print_one(shape, view(session.client.security_groups.create(name=name, description=description)))


@group.command("list", epilog=examples("fabric security group list"))
@listing
@pass_session
def list_(session: Session, *, shape: Shape) -> None:
    """List the project's groups."""
    print_list(
        shape,
        ("ID", "Name", "Description", "Project"),
        ((it.id, it.name, it.description, it.project_id) for it in session.client.security_groups.list()),
    )


@group.command(epilog=examples("fabric security group show nebula_web_sg"))
@click.argument("group", shell_complete=params.security_groups)
@showing
@pass_session
def show(session: Session, *, group: str, shape: Shape) -> None:
    """Show one with its rules, by name or id."""
    print_one(shape, view(session.client.security_groups.get(group)))


@group.command("set", epilog=examples("fabric security group set --description Web nebula_web_sg"))
@click.option("--name", help="Another name.")
@click.option("--description", help="For people.")
@click.argument("group", shell_complete=params.security_groups)
@pass_session
def set_(session: Session, /, *, group: str, **said: Any) -> None:
    """Change one."""
    session.client.security_groups.update(group, **something(given(said)))


@group.command(epilog=examples("fabric security group delete nebula_web_sg"))
@click.argument("groups", nargs=-1, required=True, metavar="GROUP...", shell_complete=params.security_groups)
@pass_session
def delete(session: Session, *, groups: tuple[str, ...]) -> None:
    """Delete groups; refused while a port is in them, or a rule of another group names them."""
    each(session, groups, session.client.security_groups.delete)


# ------------------------------------------------------------------------------------------ rules


@group.group()
def rule() -> None:
    """What a group allows."""


@rule.command(
    "create",
    epilog=examples(
        "fabric security group rule create --proto tcp --dst-port 22 nebula_web_sg",
        "fabric security group rule create --proto tcp --dst-port 8000:8099 --remote-ip 10.0.0.0/8 nebula_web_sg",
        "fabric security group rule create --proto icmp --icmp-type 8 --remote-group default nebula_web_sg",
        "fabric security group rule create --egress --ethertype IPv6 nebula_web_sg",
    ),
)
@click.option("--ingress/--egress", "ingress", default=True, help="To the guest, or from it.")
@click.option(
    "--ethertype", "ether_type", type=click.Choice(["IPv4", "IPv6"]), default=None, help="Which family."
)
@click.option(
    "--protocol", "--proto", "protocol", type=NOT_EMPTY, help="By name or number; every one if not given."
)
@click.option("--dst-port", "ports", type=PORT_RANGE, help="The destination port, or FIRST:LAST.")
@click.option("--icmp-type", type=click.IntRange(0, 255), help="The type of ICMP.")
@click.option("--icmp-code", type=click.IntRange(0, 255), help="And its code.")
@click.option("--remote-ip", "remote_cidr", type=NOT_EMPTY, metavar="CIDR", help="Who is at the other end.")
@click.option(
    "--remote-group",
    type=NOT_EMPTY,
    shell_complete=params.security_groups,
    help="Or the members of this group.",
)
@click.option("--description", default="", help="For people.")
@click.argument("group", shell_complete=params.security_groups)
@showing
@pass_session
def create_rule(
    session: Session,
    *,
    ingress: bool,
    ether_type: str | None,
    protocol: str | None,
    ports: tuple[int, int] | None,
    icmp_type: int | None,
    icmp_code: int | None,
    remote_cidr: str | None,
    remote_group: str | None,
    description: str,
    group: str,
    shape: Shape,
) -> None:
    """Allow something more, at all ports of the group, at once."""
    if ports is not None and (icmp_type is not None or icmp_code is not None):
        raise click.UsageError("--dst-port is of protocols with ports, --icmp-type of ICMP: give one of them")
    first, last = (icmp_type, icmp_code) if ports is None else ports
    made = session.client.security_groups.create_rule(
        group=group,
        direction="ingress" if ingress else "egress",
        ether_type=ether_type or "",
        protocol=protocol or "",
        port_min=first,
        port_max=last,
        remote_cidr=remote_cidr or "",
        remote_group=remote_group or "",
        description=description,
    )
    print_one(shape, view_rule(made))


@rule.command(
    "list",
    epilog=examples("fabric security group rule list nebula_web_sg", "fabric security group rule list"),
)
@click.argument("group", required=False, default="", shell_complete=params.security_groups)
@listing
@pass_session
def list_rules(session: Session, *, group: str, shape: Shape) -> None:
    """List the rules of a group, or of all of the project's."""
    from fabric.client.security_groups import direction_name, ether_type_name

    print_list(
        shape,
        (
            "ID",
            "IP Protocol",
            "Ethertype",
            "IP Range",
            "Port Range",
            "Direction",
            "Remote Security Group",
            "Security Group",
        ),
        (
            (
                it.id,
                it.protocol or None,
                ether_type_name(it),
                it.remote_cidr or None,
                port_range(it),
                direction_name(it),
                it.remote_group or None,
                it.security_group,
            )
            for it in session.client.security_groups.list_rules(group=group)
        ),
    )


@rule.command("show", epilog=examples("fabric security group rule show 0b1e4c2a-7f3d-4e55-9a51-5d8c3c1f6a10"))
@click.argument("rule")
@showing
@pass_session
def show_rule(session: Session, *, rule: str, shape: Shape) -> None:
    """Show one, by id."""
    print_one(shape, view_rule(session.client.security_groups.get_rule(rule)))


@rule.command(
    "delete", epilog=examples("fabric security group rule delete 0b1e4c2a-7f3d-4e55-9a51-5d8c3c1f6a10")
)
@click.argument("rules", nargs=-1, required=True, metavar="RULE...")
@pass_session
def delete_rules(session: Session, *, rules: tuple[str, ...]) -> None:
    """Allow something no longer, at all ports of its group, at once."""
    each(session, rules, session.client.security_groups.delete_rule)
