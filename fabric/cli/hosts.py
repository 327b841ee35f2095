"""`fabric host`: the machines that servers run on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fabric.cli import params
from fabric.cli.output import Cell, Shape, Value, listing, print_list, print_one, showing, when
from fabric.cli.params import examples
from fabric.cli.session import Session, pass_session

if TYPE_CHECKING:
    from fabric.client.hosts import Host


def amount(claimed: int, of: int) -> Cell:
    """What is claimed of something that can be."""
    return Cell({"claimed": claimed, "total": of}, f"{claimed} of {of}")


def view(host: Host) -> dict[str, Value]:
    """Every field, as it is printed."""
    spec, status = host.spec, host.status
    return {
        "name": host.name,
        "cell": host.cell,
        "availability_zone": spec.availability_zone,
        "enabled": not spec.disabled,
        "disabled_reason": spec.disabled_reason,
        "state": status.state,
        "health": status.health,
        "epoch": status.epoch,
        "instances": status.instances,
        "vcpus": amount(status.claimed_vcpus, spec.vcpus),
        "ram_mib": amount(status.claimed_ram_mib, spec.ram_mib),
        "disk_gib": amount(status.claimed_disk_gib, spec.disk_gib),
        "measured_vcpus": status.measured_vcpus,
        "measured_ram_mib": status.measured_ram_mib,
        "measured_disk_gib": status.measured_disk_gib,
        "hypervisor": status.hypervisor,
        "traits": list(spec.traits),
        "guest_cidr": spec.guest_cidr,
        "tunnel_address": spec.tunnel_address,
        "physical_networks": list(spec.physical_networks),
        "cert_serial": spec.cert_serial,
        "reported_at": when(status.report_time),
        "volume_directories": list(status.directories),
        "created_at": when(host.create_time),
    }


@click.group()
def host() -> None:
    """The machines that servers run on (system administrators)."""


@host.command(
    epilog=examples(
        "fabric host create --cell cell1 --availability-zone nova --vcpus 32 --ram 65536 --disk 1000"
        " --guest-cidr 10.64.3.0/24 --cert-serial 5f3a host-3"
    )
)
@click.option("--cell", required=True, help="The cell it belongs to.")
@click.option("--availability-zone", required=True, metavar="ZONE", help="The zone it offers.")
@click.option(
    "--vcpus",
    type=params.WHOLE,
    required=True,
    help="Virtual CPUs that may be claimed: cores times overcommit.",
)
@click.option(
    "--ram",
    "ram_mib",
    type=params.WHOLE,
    required=True,
    metavar="MIB",
    help="Memory that may be claimed, in MiB.",
)
@click.option(
    "--disk",
    "disk_gib",
    type=params.WHOLE,
    required=True,
    metavar="GIB",
    help="Disk that may be claimed, in GiB.",
)
@click.option("--guest-cidr", required=True, metavar="CIDR", help="The subnet of its servers.")
@click.option(
    "--cert-serial", default="", metavar="HEX", help="The serial of the one certificate it may come with."
)
@click.option("--trait", "traits", multiple=True, metavar="NAME", help="A capability; may be given again.")
@click.option(
    "--tunnel-address",
    default="",
    metavar="ADDRESS",
    help="Its address in the underlay: where other hosts send what is for tenant networks.",
)
@click.option(
    "--physical-network",
    "physical_networks",
    multiple=True,
    metavar="NAME",
    help="What of the world outside it has an interface to; may be given again.",
)
@click.argument("name")
@showing
@pass_session
def create(
    session: Session,
    *,
    cell: str,
    availability_zone: str,
    vcpus: int,
    ram_mib: int,
    disk_gib: int,
    guest_cidr: str,
    cert_serial: str,
    traits: tuple[str, ...],
    tunnel_address: str,
    physical_networks: tuple[str, ...],
    name: str,
    shape: Shape,
) -> None:
    """Approve a host: what may be claimed of it, and the certificate it may come with."""
    made = session.client.hosts.create(
        name=name,
        cell=cell,
        availability_zone=availability_zone,
        vcpus=vcpus,
        ram_mib=ram_mib,
        disk_gib=disk_gib,
        guest_cidr=guest_cidr,
        cert_serial=cert_serial,
        traits=traits,
        tunnel_address=tunnel_address,
        physical_networks=physical_networks,
    )
    print_one(shape, view(made))


@host.command(
    "list", epilog=examples("fabric host list", "fabric host list --sort-column Servers -f value -c Name")
)
@listing
@pass_session
def list_(session: Session, *, shape: Shape) -> None:
    """List every host, by cell and name."""
    found = session.client.hosts.list()
    print_list(
        shape,
        ("Name", "Cell", "Zone", "State", "Enabled", "Servers", "VCPUs", "RAM MiB", "Disk GiB"),
        (
            (
                it.name,
                it.cell,
                it.spec.availability_zone,
                it.status.state,
                not it.spec.disabled,
                it.status.instances,
                amount(it.status.claimed_vcpus, it.spec.vcpus),
                amount(it.status.claimed_ram_mib, it.spec.ram_mib),
                amount(it.status.claimed_disk_gib, it.spec.disk_gib),
            )
            for it in found.hosts
        ),
    )
    for cell in found.unreachable_cells:
        session.say(f"cell {cell} cannot be reached: its hosts are not listed")


@host.command(epilog=examples("fabric host show host-3"))
@click.option("--cell", default="", help="Where two cells have a host of that name.")
@click.argument("host", shell_complete=params.hosts)
@showing
@pass_session
def show(session: Session, *, cell: str, host: str, shape: Shape) -> None:
    """Show one."""
    print_one(shape, view(session.client.hosts.get(host, cell)))


@host.command(
    "set",
    epilog=examples(
        "fabric host set --disable --disable-reason 'disk is failing' host-3",
        "fabric host set --enable host-3",
        "fabric host set --tunnel-address 192.0.2.13 --physical-network external host-3",
        "fabric host set --trait VOLUMES_NFS1 host-3",
    ),
)
@click.option("--enable/--disable", "enabled", default=None, help="Whether servers are placed on it.")
@click.option("--disable-reason", default="", help="Why, for people.")
@click.option(
    "--tunnel-address",
    default=None,
    metavar="ADDRESS",
    help="Its address in the underlay: where other hosts send what is for tenant networks. '' for none.",
)
@click.option(
    "--physical-network",
    "physical_networks",
    multiple=True,
    metavar="NAME",
    help="What of the world outside it has an interface to, instead of what it had; may be given again.",
)
@click.option("--no-physical-network", is_flag=True, help="It has no interface to the world outside.")
@click.option(
    "--trait",
    "more_traits",
    multiple=True,
    metavar="NAME",
    help="A capability that it has; may be given again.",
)
@click.option(
    "--no-trait",
    "fewer_traits",
    multiple=True,
    metavar="NAME",
    help="A capability that it has no more; may be given again.",
)
@click.option("--cell", default="", help="Where two cells have a host of that name.")
@click.argument("host", shell_complete=params.hosts)
@pass_session
def set_(
    session: Session,
    *,
    enabled: bool | None,
    disable_reason: str,
    tunnel_address: str | None,
    physical_networks: tuple[str, ...],
    no_physical_network: bool,
    more_traits: tuple[str, ...],
    fewer_traits: tuple[str, ...],
    cell: str,
    host: str,
) -> None:
    """Take a host into scheduling or out of it, or say what it can and where its networks are; its servers are left alone."""
    if physical_networks and no_physical_network:
        raise click.UsageError("--physical-network and --no-physical-network contradict each other")
    outside = physical_networks if physical_networks or no_physical_network else None
    is_other = bool(more_traits or fewer_traits)
    if enabled is None and tunnel_address is None and outside is None and not is_other:
        raise click.UsageError("say --enable, --disable, --tunnel-address, --physical-network or --trait")
    if enabled is not False and disable_reason:
        raise click.UsageError("--disable-reason is for --disable")
    session.client.hosts.set(
        host,
        enabled=enabled,
        reason=disable_reason,
        tunnel_address=tunnel_address,
        physical_networks=outside,
        more_traits=more_traits,
        fewer_traits=fewer_traits,
        cell=cell,
    )
