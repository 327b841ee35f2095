"""`fabric port`: places on networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fabric.cli import params
from fabric.cli.many import each
from fabric.cli.output import Cell, Shape, Value, listing, print_list, print_one, showing, when
from fabric.cli.params import Keys, examples, given, something
from fabric.cli.session import Session, pass_session

if TYPE_CHECKING:
    from fabric.client.ports import Port

FIXED_IP = Keys(optional=("subnet", "ip-address"))
ALLOWED = Keys("ip-address", optional=("mac-address",))

group_option = click.option(
    "--security-group",
    "groups",
    multiple=True,
    shell_complete=params.security_groups,
    help="A group it is in; may be given again.",
)
allowed_option = click.option(
    "--allowed-address",
    "allowed",
    type=ALLOWED,
    multiple=True,
    help="What else may come out of it; may be given again.",
)


def addresses(port: Port) -> Cell:
    """The fixed IPs: lines for people, a list for programs."""
    return Cell(
        [{"subnet_id": it.subnet, "ip_address": it.ip_address} for it in port.fixed_ips],
        "\n".join(it.ip_address for it in port.fixed_ips),
    )


def view(port: Port) -> dict[str, Value]:
    """Every field, as it is printed."""
    return {
        "id": port.id,
        "name": port.name,
        "network_id": port.network,
        "mac_address": port.mac_address,
        "fixed_ips": addresses(port),
        "security_group_ids": list(port.security_groups),
        "allowed_address_pairs": [
            {"ip_address": it.cidr, "mac_address": it.mac_address or port.mac_address}
            for it in port.allowed_address_pairs
        ],
        "port_security_enabled": not port.port_security_disabled,
        "device_id": port.instance_id,
        "ends_with_server": port.ends_with_instance,
        "bound_at": when(port.bind_time),
        "project_id": port.project_id,
        "description": port.description,
        "created_at": when(port.create_time),
        "updated_at": when(port.update_time),
    }


@click.group()
def port() -> None:
    """Places on networks, with their addresses and what may pass there."""


@port.command(
    epilog=examples(
        "fabric port create --network nebula_net web_port",
        "fabric port create --network nebula_net --fixed-ip subnet=nebula_subnet,ip-address=10.0.0.7"
        " --security-group nebula_web_sg web_port",
        "fabric port create --network nebula_net --allowed-address ip-address=10.0.0.200 --no-security-group vip",
    )
)
@click.option("--network", required=True, shell_complete=params.networks, help="The network it is on.")
@click.option("--fixed-ip", "fixed_ips", type=FIXED_IP, multiple=True, help="An address; may be given again.")
@click.option("--no-fixed-ip", is_flag=True, help="Have no address.")
@click.option("--mac-address", default="", metavar="MAC", help="Its MAC; made for it if not given.")
@group_option
@click.option("--no-security-group", is_flag=True, help="Be in no group, not even the default one.")
@allowed_option
@click.option(
    "--enable-port-security/--disable-port-security",
    "port_security",
    default=True,
    help="Whether anything is filtered.",
)
@click.option("--description", default="", help="For people.")
@click.argument("name")
@showing
@pass_session
def create(
    session: Session,
    *,
    network: str,
    fixed_ips: tuple[dict[str, str], ...],
    no_fixed_ip: bool,
    mac_address: str,
    groups: tuple[str, ...],
    no_security_group: bool,
    allowed: tuple[dict[str, str], ...],
    port_security: bool,
    description: str,
    name: str,
    shape: Shape,
) -> None:
    """Make a port on a network."""
    made = session.client.ports.create(
        network=network,
        name=name,
        description=description,
        fixed_ips=[(it.get("subnet", ""), it.get("ip-address", "")) for it in fixed_ips],
        no_fixed_ip=no_fixed_ip,
        mac_address=mac_address,
        security_groups=groups,
        no_security_group=no_security_group,
        allowed_address_pairs=_pairs(allowed),
        port_security_disabled=not port_security,
    )
    print_one(shape, view(made))


@port.command(
    "list",
    epilog=examples(
        "fabric port list", "fabric port list --network nebula_net", "fabric port list --server nebula_web_01"
    ),
)
@click.option("--network", default="", shell_complete=params.networks, help="Only those on this network.")
@click.option("--server", default="", shell_complete=params.servers, help="Only those of this server.")
@listing
@pass_session
def list_(session: Session, *, network: str, server: str, shape: Shape) -> None:
    """List the project's ports."""
    instance_id = session.client.instances.get(server).id if server else ""
    print_list(
        shape,
        ("ID", "Name", "MAC Address", "Fixed IP Addresses", "Network", "Server"),
        (
            (it.id, it.name, it.mac_address, addresses(it), it.network, it.instance_id)
            for it in session.client.ports.list(network=network, instance_id=instance_id)
        ),
    )


@port.command(epilog=examples("fabric port show web_port"))
@click.argument("port", shell_complete=params.ports)
@showing
@pass_session
def show(session: Session, *, port: str, shape: Shape) -> None:
    """Show one, by name or id."""
    print_one(shape, view(session.client.ports.get(port)))


@port.command(
    "set",
    epilog=examples(
        "fabric port set --security-group nebula_web_sg web_port",
        "fabric port set --no-security-group --disable-port-security web_port",
    ),
)
@click.option("--name", help="Another name.")
@click.option("--description", help="For people.")
@group_option
@click.option("--no-security-group", "drop_groups", is_flag=True, help="Leave the groups it is in.")
@allowed_option
@click.option("--no-allowed-address", "drop_allowed", is_flag=True, help="Forget what else may come out.")
@click.option(
    "--enable-port-security/--disable-port-security",
    "port_security",
    default=None,
    help="Whether anything is filtered.",
)
@click.argument("port", shell_complete=params.ports)
@pass_session
def set_(
    session: Session,
    /,
    *,
    groups: tuple[str, ...],
    drop_groups: bool,
    allowed: tuple[dict[str, str], ...],
    drop_allowed: bool,
    port_security: bool | None,
    port: str,
    **said: Any,
) -> None:
    """Change one. Groups and addresses are added to those there are, unless these are dropped first."""
    changes = given(said)
    if port_security is not None:
        changes["port_security_disabled"] = not port_security
    client = session.client
    now = client.ports.get(port)
    if groups or drop_groups:
        kept = [] if drop_groups else list(now.security_groups)
        added = [client.security_groups.get(it).id for it in groups]
        changes["security_groups"] = kept + [it for it in added if it not in kept]
    if allowed or drop_allowed:
        old = [] if drop_allowed else [(it.cidr, it.mac_address) for it in now.allowed_address_pairs]
        changes["allowed_address_pairs"] = old + _pairs(allowed)
    client.ports.update(now.id, **something(changes))


@port.command(epilog=examples("fabric port delete web_port"))
@click.argument("ports", nargs=-1, required=True, metavar="PORT...", shell_complete=params.ports)
@pass_session
def delete(session: Session, *, ports: tuple[str, ...]) -> None:
    """Delete ports; floating IPs that led to them lead to nothing."""
    each(session, ports, session.client.ports.delete)


def _pairs(allowed: tuple[dict[str, str], ...]) -> list[tuple[str, str]]:
    return [(it["ip-address"], it.get("mac-address", "")) for it in allowed]
