"""`fabric router` and `fabric floating ip`: ways out of networks, and in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fabric.cli import params
from fabric.cli.many import each
from fabric.cli.output import Shape, Value, listing, print_list, print_one, showing, when
from fabric.cli.params import examples, given, something
from fabric.cli.session import Session, pass_session

if TYPE_CHECKING:
    from fabric.client.routers import FloatingIp, Router


def view(router: Router) -> dict[str, Value]:
    """Every field, as it is printed."""
    return {
        "id": router.id,
        "name": router.name,
        "external_network_id": router.external_network or None,
        "external_fixed_ips": [
            {"subnet_id": it.subnet_id, "ip_address": it.ip_address} for it in router.external_ips
        ],
        "enable_snat": not router.snat_disabled,
        "interfaces": [
            {"subnet_id": it.subnet_id, "ip_address": it.ip_address, "mac_address": it.mac_address}
            for it in router.interfaces
        ],
        "project_id": router.project_id,
        "description": router.description,
        "created_at": when(router.create_time),
        "updated_at": when(router.update_time),
    }


snat_option = click.option(
    "--enable-snat/--disable-snat",
    "snat",
    default=None,
    help="Whether what has no floating IP goes out under the router's address.",
)


@click.group()
def router() -> None:
    """What joins subnets, and leads out of them."""


@router.command(
    epilog=examples(
        "fabric router create nebula_router", "fabric router create --external-gateway public nebula_router"
    )
)
@click.option(
    "--external-gateway",
    "external_network",
    default="",
    metavar="NETWORK",
    shell_complete=params.external_networks,
    help="The external network it leads to.",
)
@snat_option
@click.option("--description", default="", help="For people.")
@click.argument("name")
@showing
@pass_session
def create(
    session: Session, *, external_network: str, snat: bool | None, description: str, name: str, shape: Shape
) -> None:
    """Make a router."""
    made = session.client.routers.create(
        name=name,
        description=description,
        external_network=external_network,
        snat_disabled=snat is False,
    )
    print_one(shape, view(made))


@router.command("list", epilog=examples("fabric router list"))
@listing
@pass_session
def list_(session: Session, *, shape: Shape) -> None:
    """List the project's routers."""
    print_list(
        shape,
        ("ID", "Name", "External Network", "Subnets"),
        (
            (it.id, it.name, it.external_network, [one.subnet_id for one in it.interfaces])
            for it in session.client.routers.list()
        ),
    )


@router.command(epilog=examples("fabric router show nebula_router"))
@click.argument("router", shell_complete=params.routers)
@showing
@pass_session
def show(session: Session, *, router: str, shape: Shape) -> None:
    """Show one, by name or id."""
    print_one(shape, view(session.client.routers.get(router)))


@router.command("set", epilog=examples("fabric router set --external-gateway public nebula_router"))
@click.option("--name", help="Another name.")
@click.option("--description", help="For people.")
@click.option(
    "--external-gateway",
    "external_network",
    metavar="NETWORK",
    shell_complete=params.external_networks,
    help="The external network it leads to.",
)
@snat_option
@click.argument("router", shell_complete=params.routers)
@pass_session
def set_(session: Session, /, *, snat: bool | None, router: str, **said: Any) -> None:
    """Change one."""
    changes = given(said)
    if snat is not None:
        changes["snat_disabled"] = not snat
    session.client.routers.update(router, **something(changes))


@router.command(epilog=examples("fabric router unset --external-gateway nebula_router"))
@click.option("--external-gateway", is_flag=True, help="Lead nowhere; refused while floating IPs need it.")
@click.argument("router", shell_complete=params.routers)
@pass_session
def unset(session: Session, *, external_gateway: bool, router: str) -> None:
    """Take something from one."""
    if not external_gateway:
        raise click.UsageError("what? Give --external-gateway")
    session.client.routers.update(router, external_network="")


@router.command(epilog=examples("fabric router delete nebula_router"))
@click.argument("routers", nargs=-1, required=True, metavar="ROUTER...", shell_complete=params.routers)
@pass_session
def delete(session: Session, *, routers: tuple[str, ...]) -> None:
    """Delete routers; refused while they are in a subnet."""
    each(session, routers, session.client.routers.delete)


@router.group()
def add() -> None:
    """Put a router into something."""


@add.command("subnet", epilog=examples("fabric router add subnet nebula_router nebula_subnet"))
@click.argument("router", shell_complete=params.routers)
@click.argument("subnet", shell_complete=params.subnets)
@pass_session
def add_subnet(session: Session, *, router: str, subnet: str) -> None:
    """Put a router at a subnet's gateway address."""
    session.client.routers.add_interface(router, subnet)


@router.group()
def remove() -> None:
    """Take a router out of something."""


@remove.command("subnet", epilog=examples("fabric router remove subnet nebula_router nebula_subnet"))
@click.argument("router", shell_complete=params.routers)
@click.argument("subnet", shell_complete=params.subnets)
@pass_session
def remove_subnet(session: Session, *, router: str, subnet: str) -> None:
    """Take a router out of a subnet; refused while floating IPs lead there."""
    session.client.routers.remove_interface(router, subnet)


# ------------------------------------------------------------------------------------------ floating IPs


def view_ip(floating_ip: FloatingIp) -> dict[str, Value]:
    """Every field, as it is printed."""
    return {
        "id": floating_ip.id,
        "floating_ip_address": floating_ip.ip_address,
        "floating_network_id": floating_ip.network,
        "fixed_ip_address": floating_ip.fixed_ip or None,
        "port_id": floating_ip.port or None,
        "router_id": floating_ip.router_id or None,
        "project_id": floating_ip.project_id,
        "description": floating_ip.description,
        "created_at": when(floating_ip.create_time),
        "updated_at": when(floating_ip.update_time),
    }


@click.group()
def floating() -> None:
    """Floating IPs: external addresses that lead to ports."""


@floating.group()
def ip() -> None:
    """External addresses that lead to ports."""


@ip.command(
    "create",
    epilog=examples(
        "fabric floating ip create public",
        "fabric floating ip create --port web_port --floating-ip-address 172.24.4.10 public",
    ),
)
@click.option("--port", default="", shell_complete=params.ports, help="The port it leads to.")
@click.option(
    "--fixed-ip-address", "fixed_ip", default="", metavar="ADDRESS", help="Which of the port's addresses."
)
@click.option(
    "--floating-ip-address", "ip_address", default="", metavar="ADDRESS", help="Which external address."
)
@click.option("--description", default="", help="For people.")
@click.argument("network", shell_complete=params.external_networks)
@showing
@pass_session
def create_ip(
    session: Session,
    *,
    port: str,
    fixed_ip: str,
    ip_address: str,
    description: str,
    network: str,
    shape: Shape,
) -> None:
    """Take an address of an external network."""
    made = session.client.floating_ips.create(
        network=network, ip_address=ip_address, port=port, fixed_ip=fixed_ip, description=description
    )
    print_one(shape, view_ip(made))


@ip.command("list", epilog=examples("fabric floating ip list"))
@listing
@pass_session
def list_ips(session: Session, *, shape: Shape) -> None:
    """List the project's."""
    print_list(
        shape,
        ("ID", "Floating IP Address", "Fixed IP Address", "Port", "Floating Network"),
        (
            (it.id, it.ip_address, it.fixed_ip or None, it.port or None, it.network)
            for it in session.client.floating_ips.list()
        ),
    )


@ip.command("show", epilog=examples("fabric floating ip show 172.24.4.10"))
@click.argument("floating_ip", shell_complete=params.floating_ips)
@showing
@pass_session
def show_ip(session: Session, *, floating_ip: str, shape: Shape) -> None:
    """Show one, by address or id."""
    print_one(shape, view_ip(session.client.floating_ips.get(floating_ip)))


@ip.command("set", epilog=examples("fabric floating ip set --port web_port 172.24.4.10"))
@click.option("--port", shell_complete=params.ports, help="The port it leads to from now on.")
@click.option("--fixed-ip-address", "fixed_ip", metavar="ADDRESS", help="Which of the port's addresses.")
@click.option("--description", help="For people.")
@click.argument("floating_ip", shell_complete=params.floating_ips)
@pass_session
def set_ip(session: Session, /, *, floating_ip: str, **said: Any) -> None:
    """Let one lead elsewhere."""
    changes = something(given(said))
    if "fixed_ip" in changes and "port" not in changes:
        raise click.UsageError(
            "--fixed-ip-address is one of a port's: say which by --port, also where it stays"
        )
    session.client.floating_ips.update(floating_ip, **changes)


@ip.command("unset", epilog=examples("fabric floating ip unset --port 172.24.4.10"))
@click.option("--port", is_flag=True, help="Lead to nothing.")
@click.argument("floating_ip", shell_complete=params.floating_ips)
@pass_session
def unset_ip(session: Session, *, port: bool, floating_ip: str) -> None:
    """Take something from one."""
    if not port:
        raise click.UsageError("what? Give --port")
    session.client.floating_ips.update(floating_ip, port="")


@ip.command("delete", epilog=examples("fabric floating ip delete 172.24.4.10"))
@click.argument(
    "floating_ips", nargs=-1, required=True, metavar="FLOATING_IP...", shell_complete=params.floating_ips
)
@pass_session
def delete_ips(session: Session, *, floating_ips: tuple[str, ...]) -> None:
    """Give floating IPs back."""
    each(session, floating_ips, session.client.floating_ips.delete)
