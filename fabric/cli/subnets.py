"""`fabric subnet`: the ranges of networks' addresses."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

import click

from fabric.cli import params
from fabric.cli.many import each
from fabric.cli.output import Shape, Value, listing, print_list, print_one, showing, when
from fabric.cli.params import Keys, examples, given, something
from fabric.cli.session import Session, pass_session

if TYPE_CHECKING:
    from fabric.client.networks import Subnet

POOL = Keys("start", "end")
ROUTE = Keys("destination", "gateway")

pool_option = click.option(
    "--allocation-pool",
    "pools",
    type=POOL,
    multiple=True,
    help="Where addresses are taken from; may be given again.",
)
dns_option = click.option(
    "--dns-nameserver",
    "dns_servers",
    multiple=True,
    metavar="ADDRESS",
    help="What guests resolve names with; may be given again.",
)
route_option = click.option(
    "--host-route",
    "routes",
    type=ROUTE,
    multiple=True,
    help="A route that guests are told of: by DHCP in IPv4, in the metadata and the config drive in both.",
)


def version(subnet: Subnet) -> int:
    """4 or 6."""
    return ipaddress.ip_network(subnet.cidr).version


def view(subnet: Subnet) -> dict[str, Value]:
    """Every field, as it is printed."""
    return {
        "id": subnet.id,
        "name": subnet.name,
        "network_id": subnet.network,
        "cidr": subnet.cidr,
        "ip_version": version(subnet),
        "gateway_ip": subnet.gateway or None,
        "enable_dhcp": not subnet.no_dhcp,
        "dns_nameservers": list(subnet.dns_servers),
        "allocation_pools": [{"start": it.start, "end": it.end} for it in subnet.allocation_pools],
        "host_routes": [{"destination": it.destination, "nexthop": it.next_hop} for it in subnet.host_routes],
        "service_address": subnet.service_address,
        "project_id": subnet.project_id,
        "description": subnet.description,
        "created_at": when(subnet.create_time),
        "updated_at": when(subnet.update_time),
    }


@click.group()
def subnet() -> None:
    """The ranges of networks' addresses."""


@subnet.command(
    epilog=examples(
        "fabric subnet create --network nebula_net --subnet-range 10.0.0.0/24 nebula_subnet",
        "fabric subnet create --network nebula_net --subnet-range 10.0.0.0/24 --gateway 10.0.0.254"
        " --allocation-pool start=10.0.0.10,end=10.0.0.99 --dns-nameserver 9.9.9.9 nebula_subnet",
        "fabric subnet create --network nebula_net --ip-version 6 --subnet-range fd00:1::/64 nebula_subnet6",
    )
)
@click.option("--network", required=True, shell_complete=params.networks, help="The network it is of.")
@click.option("--subnet-range", "cidr", required=True, metavar="CIDR", help="The range.")
@click.option("--ip-version", type=click.Choice(["4", "6"]), help="Must be the range's, which says it too.")
@click.option(
    "--gateway",
    default="auto",
    show_default=True,
    metavar="ADDRESS",
    help="Where guests find the router: an address, `auto` for the first one, or `none`.",
)
@pool_option
@click.option("--dhcp/--no-dhcp", "dhcp", default=True, help="Whether addresses are told by DHCP.")
@dns_option
@route_option
@click.option("--description", default="", help="For people.")
@click.argument("name")
@showing
@pass_session
def create(
    session: Session,
    *,
    network: str,
    cidr: str,
    ip_version: str | None,
    gateway: str,
    pools: tuple[dict[str, str], ...],
    dhcp: bool,
    dns_servers: tuple[str, ...],
    routes: tuple[dict[str, str], ...],
    description: str,
    name: str,
    shape: Shape,
) -> None:
    """Add a range of addresses to a network."""
    if ip_version is not None and (":" in cidr) != (ip_version == "6"):
        raise click.UsageError(f"{cidr} is not IPv{ip_version}")
    made = session.client.subnets.create(
        name=name,
        network=network,
        cidr=cidr,
        description=description,
        gateway="" if gateway in {"auto", "none"} else gateway,
        no_gateway=gateway == "none",
        no_dhcp=not dhcp,
        dns_servers=dns_servers,
        pools=[(it["start"], it["end"]) for it in pools],
        host_routes=[(it["destination"], it["gateway"]) for it in routes],
    )
    print_one(shape, view(made))


@subnet.command(
    "list", epilog=examples("fabric subnet list", "fabric subnet list --network nebula_net -f json")
)
@click.option("--network", default="", shell_complete=params.networks, help="Only those of this network.")
@listing
@pass_session
def list_(session: Session, *, network: str, shape: Shape) -> None:
    """List the subnets of the networks that you see."""
    print_list(
        shape,
        ("ID", "Name", "Network", "Subnet"),
        ((it.id, it.name, it.network, it.cidr) for it in session.client.subnets.list(network=network)),
    )


@subnet.command(epilog=examples("fabric subnet show nebula_subnet"))
@click.argument("subnet", shell_complete=params.subnets)
@showing
@pass_session
def show(session: Session, *, subnet: str, shape: Shape) -> None:
    """Show one, by name or id."""
    print_one(shape, view(session.client.subnets.get(subnet)))


@subnet.command(
    "set",
    epilog=examples(
        "fabric subnet set --dns-nameserver 9.9.9.9 nebula_subnet",
        "fabric subnet set --no-allocation-pool --allocation-pool start=10.0.0.50,end=10.0.0.99 nebula_subnet",
    ),
)
@click.option("--name", help="Another name.")
@click.option("--description", help="For people.")
@click.option("--dhcp/--no-dhcp", "dhcp", default=None, help="Whether addresses are told by DHCP.")
@pool_option
@click.option("--no-allocation-pool", "drop_pools", is_flag=True, help="Forget the pools there are.")
@dns_option
@click.option("--no-dns-nameservers", "drop_dns", is_flag=True, help="Forget the name servers there are.")
@route_option
@click.option("--no-host-route", "drop_routes", is_flag=True, help="Forget the routes there are.")
@click.argument("subnet", shell_complete=params.subnets)
@pass_session
def set_(
    session: Session,
    /,
    *,
    dhcp: bool | None,
    pools: tuple[dict[str, str], ...],
    drop_pools: bool,
    dns_servers: tuple[str, ...],
    drop_dns: bool,
    routes: tuple[dict[str, str], ...],
    drop_routes: bool,
    subnet: str,
    **said: Any,
) -> None:
    """Change one. Pools, name servers and routes are added to those there are, unless these are forgotten first."""
    changes = given(said)
    if dhcp is not None:
        changes["no_dhcp"] = not dhcp
    now = session.client.subnets.get(subnet)
    if pools or drop_pools:
        kept = [] if drop_pools else [(it.start, it.end) for it in now.allocation_pools]
        changes["allocation_pools"] = kept + [(it["start"], it["end"]) for it in pools]
    if dns_servers or drop_dns:
        changes["dns_servers"] = [*([] if drop_dns else now.dns_servers), *dns_servers]
    if routes or drop_routes:
        old = [] if drop_routes else [(it.destination, it.next_hop) for it in now.host_routes]
        changes["host_routes"] = old + [(it["destination"], it["gateway"]) for it in routes]
    session.client.subnets.update(now.id, **something(changes))


@subnet.command(epilog=examples("fabric subnet delete nebula_subnet"))
@click.argument("subnets", nargs=-1, required=True, metavar="SUBNET...", shell_complete=params.subnets)
@pass_session
def delete(session: Session, *, subnets: tuple[str, ...]) -> None:
    """Delete subnets; refused while anybody has an address of them."""
    each(session, subnets, session.client.subnets.delete)
