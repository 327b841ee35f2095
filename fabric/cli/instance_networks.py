"""`fabric server add` and `remove` of what joins servers to networks: interfaces, addresses, security groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fabric.cli import params
from fabric.cli.exits import Failed
from fabric.cli.instance_devices import PLUG_WAIT_S, add, plug, remove, server_argument
from fabric.cli.params import examples, waiting
from fabric.cli.session import Session, pass_session
from fabric.errors import WrongState

if TYPE_CHECKING:
    from fabric.client.instances import Instance
    from fabric.client.ports import Port

fixed_option = click.option(
    "--fixed-ip-address", "fixed_ip", default="", metavar="ADDRESS", help="Which of its addresses."
)


@add.group("fixed", epilog=examples("fabric server add fixed ip nebula_web_01 nebula_net"))
def add_fixed() -> None:
    """Give servers addresses on networks."""


@remove.group("fixed", epilog=examples("fabric server remove fixed ip nebula_web_01 10.0.0.9"))
def remove_fixed() -> None:
    """Take addresses on networks from servers."""


@add.group("floating", epilog=examples("fabric server add floating ip nebula_web_01 172.24.4.9"))
def add_floating() -> None:
    """Lead floating IPs to servers."""


@remove.group("floating", epilog=examples("fabric server remove floating ip nebula_web_01 172.24.4.9"))
def remove_floating() -> None:
    """Lead floating IPs to servers no more."""


@add.group("security", epilog=examples("fabric server add security group nebula_web_01 nebula_web_sg"))
def add_security() -> None:
    """Put servers into security groups."""


@remove.group("security", epilog=examples("fabric server remove security group nebula_web_01 nebula_web_sg"))
def remove_security() -> None:
    """Take servers out of security groups."""


@add.command("network", epilog=examples("fabric server add network --wait nebula_web_01 nebula_net"))
@server_argument
@click.argument("network", shell_complete=params.networks)
@waiting(PLUG_WAIT_S)
@pass_session
def add_network(session: Session, *, server: str, network: str, wait: bool, wait_timeout_s: float) -> None:
    """Plug another interface into a server, with addresses of its own on a network."""
    begun = session.client.instances.attach_interface(server, network=network)
    plug(session, begun, wait_timeout_s if wait else None)


@add.command("port", epilog=examples("fabric server add port --wait nebula_web_01 web_port"))
@server_argument
@click.argument("port", shell_complete=params.ports)
@waiting(PLUG_WAIT_S)
@pass_session
def add_port(session: Session, *, server: str, port: str, wait: bool, wait_timeout_s: float) -> None:
    """Plug a port that is there, and nobody's, into a server."""
    begun = session.client.instances.attach_interface(server, port=port)
    plug(session, begun, wait_timeout_s if wait else None)


@add_fixed.command(
    "ip",
    epilog=examples(
        "fabric server add fixed ip --wait nebula_web_01 nebula_net",
        "fabric server add fixed ip --fixed-ip-address 10.0.0.9 nebula_web_01 nebula_net",
    ),
)
@click.option(
    "--fixed-ip-address",
    "fixed_ip",
    default="",
    metavar="ADDRESS",
    help="Which.  [default: any that is free]",
)
@server_argument
@click.argument("network", shell_complete=params.networks)
@waiting(PLUG_WAIT_S)
@pass_session
def add_fixed_ip(
    session: Session, *, fixed_ip: str, server: str, network: str, wait: bool, wait_timeout_s: float
) -> None:
    """Plug another interface into a server, with this address on a network."""
    asked = (fixed_ip,) if fixed_ip else ()
    begun = session.client.instances.attach_interface(server, network=network, addresses=asked)
    plug(session, begun, wait_timeout_s if wait else None)


@remove.command("network", epilog=examples("fabric server remove network --wait nebula_web_01 nebula_net"))
@server_argument
@click.argument("network", shell_complete=params.networks)
@waiting(PLUG_WAIT_S)
@pass_session
def remove_network(session: Session, *, server: str, network: str, wait: bool, wait_timeout_s: float) -> None:
    """Pull every interface on a network out of a server."""
    found = session.client.instances.get(server)
    # By id: what a server shows is the name that the network had when the server came to be on it.
    named = session.client.networks.get(network)
    there = dict.fromkeys(it.port_id for it in found.status.addresses if it.network_id == named.id)
    if not there:
        raise Failed(f"server {found.name} has no interface on network {named.name}")
    for port_id in there:
        begun = session.client.instances.act("detach-interface", found.id, port=port_id)
        plug(session, begun, wait_timeout_s if wait else None)


@remove.command("port", epilog=examples("fabric server remove port --wait nebula_web_01 web_port"))
@server_argument
@click.argument("port", shell_complete=params.ports)
@waiting(PLUG_WAIT_S)
@pass_session
def remove_port(session: Session, *, server: str, port: str, wait: bool, wait_timeout_s: float) -> None:
    """Pull an interface out of a server: by its port's id or name, its MAC or an address."""
    begun = session.client.instances.act("detach-interface", server, port=port)
    plug(session, begun, wait_timeout_s if wait else None)


@remove_fixed.command("ip", epilog=examples("fabric server remove fixed ip --wait nebula_web_01 10.0.0.9"))
@server_argument
@click.argument("address")
@waiting(PLUG_WAIT_S)
@pass_session
def remove_fixed_ip(
    session: Session, *, server: str, address: str, wait: bool, wait_timeout_s: float
) -> None:
    """Pull the interface with this address out of a server."""
    begun = session.client.instances.act("detach-interface", server, port=address)
    plug(session, begun, wait_timeout_s if wait else None)


@add_floating.command(
    "ip",
    epilog=examples(
        "fabric server add floating ip nebula_web_01 172.24.4.9",
        "fabric server add floating ip --fixed-ip-address 10.0.0.9 nebula_web_01 172.24.4.9",
    ),
)
@fixed_option
@server_argument
@click.argument("floating_ip", metavar="FLOATING_IP", shell_complete=params.floating_ips)
@pass_session
def add_floating_ip(session: Session, *, fixed_ip: str, server: str, floating_ip: str) -> None:
    """Lead a floating IP to a server: to its first address that a router leads out of, if none is named."""
    found = session.client.instances.get(server)
    ways = [
        (port, address)
        for port in _ports(session, found)
        for address in (it.ip_address for it in port.fixed_ips)
        if ":" not in address and fixed_ip in {"", address}
    ]
    if not ways:
        which = f"address {fixed_ip}" if fixed_ip else "IPv4 address"
        raise Failed(f"server {found.name} has no {which} on a tenant network")
    for at, (port, address) in enumerate(ways, start=1):
        try:
            session.client.floating_ips.update(floating_ip, port=port.id, fixed_ip=address)
        except WrongState:
            if at == len(ways):
                raise
        else:
            return


@remove_floating.command("ip", epilog=examples("fabric server remove floating ip nebula_web_01 172.24.4.9"))
@server_argument
@click.argument("floating_ip", metavar="FLOATING_IP", shell_complete=params.floating_ips)
@pass_session
def remove_floating_ip(session: Session, *, server: str, floating_ip: str) -> None:
    """Have a floating IP lead to nothing that leads to a server."""
    found = session.client.instances.get(server)
    leading = session.client.floating_ips.get(floating_ip)
    if leading.port not in {port.id for port in _ports(session, found)}:
        raise Failed(f"floating IP {leading.ip_address} does not lead to server {found.name}")
    session.client.floating_ips.update(leading.id, port="")


@add_security.command(
    "group", epilog=examples("fabric server add security group nebula_web_01 nebula_web_sg")
)
@server_argument
@click.argument("group", shell_complete=params.security_groups)
@pass_session
def add_security_group(session: Session, *, server: str, group: str) -> None:
    """Put all of a server's ports on tenant networks into a security group."""
    session.client.instances.add_security_group(server, group)


@remove_security.command(
    "group", epilog=examples("fabric server remove security group nebula_web_01 nebula_web_sg")
)
@server_argument
@click.argument("group", shell_complete=params.security_groups)
@pass_session
def remove_security_group(session: Session, *, server: str, group: str) -> None:
    """Take all of a server's ports out of a security group."""
    session.client.instances.remove_security_group(server, group)


def _ports(session: Session, server: Instance) -> list[Port]:
    """The server's ports on tenant networks, in the order that it has them."""
    order = {it.port_id: at for at, it in enumerate(server.status.addresses)}
    found = session.client.ports.list(instance_id=server.id)
    return sorted(found, key=lambda port: order.get(port.id, len(order)))
