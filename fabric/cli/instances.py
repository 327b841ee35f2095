"""`fabric server`: instances, which people call servers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fabric.cli import params
from fabric.cli.exits import Failed
from fabric.cli.instance_views import COLUMNS, LONG_COLUMNS, counters, line, row, view, why
from fabric.cli.many import each
from fabric.cli.nics import attaching, requested
from fabric.cli.output import Shape, listing, print_list, print_one, showing
from fabric.cli.params import PAIR, examples, waiting
from fabric.cli.session import Session, pass_session
from fabric.lifecycle.table import RULES, Rule, shown
from fabric.model.states import TaskState

if TYPE_CHECKING:
    from fabric.client.instances import Instance


def one_server(function: Callable[..., None]) -> Callable[..., None]:
    """The argument of verbs on one server."""
    return click.argument("server", shell_complete=params.servers)(function)


def many_servers(function: Callable[..., None]) -> Callable[..., None]:
    """The argument of verbs on several servers."""
    return click.argument(
        "servers", nargs=-1, required=True, metavar="SERVER...", shell_complete=params.servers
    )(function)


def wait_for(session: Session, instance: Instance, state: str | None, timeout_s: float) -> Instance:
    """Wait with progress on stderr, for a state, or with None for the end of what is under way. Raises Failed."""
    state = state or instance.status.state
    found = session.client.instances.wait_for(
        instance, state, timeout_s=timeout_s, on_change=lambda seen: session.say(line(seen, instance))
    )
    if found.status.state != state or (state != "ERROR" and found.status.HasField("fault")):
        raise Failed(f"server {found.name} is {found.status.state}, not {state}: {why(found)}")
    return found


@click.group()
def server() -> None:
    """Servers: make them, look after them, end them."""


@server.command(
    epilog=examples(
        "fabric server create --flavor m1.nebula_micro --image nebula_standard_os --network nebula_net"
        " --key-name nebula_key nebula_web_01",
        "fabric server create --flavor m1.nebula_micro --image nebula_standard_os --port web_port"
        " --nic net-id=nebula_net,v4-fixed-ip=10.0.0.9 --security-group nebula_web_sg nebula_web_02",
        "fabric server create --flavor m1.nebula_micro --image nebula_standard_os --user-data setup.sh --wait web",
        "fabric server create --flavor m1.nebula_micro --volume nebula_root --wait web",
        "fabric server create --flavor m1.nebula_micro --image nebula_standard_os --boot-from-volume 10 web",
    )
)
@click.option("--flavor", required=True, help="The size, by name or id.", shell_complete=params.flavors)
@click.option(
    "--image",
    default="",
    help="What its disk starts as, by name or id. This, or --volume.",
    shell_complete=params.images,
)
@click.option(
    "--volume",
    default="",
    help="The volume that it boots from, by name or id: its disk, which outlives it.",
    shell_complete=params.volumes,
)
@click.option(
    "--boot-from-volume",
    "boot_volume_gib",
    type=params.WholeIn(min=1),
    default=None,
    metavar="GIB",
    help="With --image: boot from a new volume of this size, made of the image.",
)
@click.option(
    "--delete-volume-on-termination",
    is_flag=True,
    help="Delete the volume that it boots from with the server.  [default: keep it]",
)
@attaching
@click.option(
    "--key-name", default="", metavar="KEYPAIR", help="Who may log in.", shell_complete=params.keypairs
)
@click.option("--availability-zone", default="", metavar="ZONE", help="Where.  [default: anywhere]")
@click.option(
    "--user-data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="What its first boot is given: a script that starts with #!, or what else the image's cloud-init takes.",
)
@click.option("--property", "properties", type=PAIR, multiple=True, help="Free metadata; may be given again.")
@click.option(
    "--config-drive/--no-config-drive", default=True, help="Whether it gets its data on a drive too.  [yes]"
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check names, fit, quota and that some host may have room, and make nothing; no host is chosen, so it may still find none.",
)
@click.argument("name")
@waiting(600)
@showing
@pass_session
def create(
    session: Session,
    *,
    flavor: str,
    image: str,
    volume: str,
    boot_volume_gib: int | None,
    delete_volume_on_termination: bool,
    networks: tuple[str, ...],
    ports: tuple[str, ...],
    nics: tuple[dict[str, str], ...],
    key_name: str,
    availability_zone: str,
    user_data: Path | None,
    properties: tuple[tuple[str, str], ...],
    config_drive: bool,
    groups: tuple[str, ...],
    dry_run: bool,
    name: str,
    wait: bool,
    wait_timeout_s: float,
    shape: Shape,
) -> None:
    """Ask for a server. It is in BUILD when the command returns; with --wait it is ACTIVE."""
    if bool(image) is bool(volume):
        raise click.UsageError("say what it boots from: --image or --volume, and not both")
    if volume and boot_volume_gib is not None:
        raise click.UsageError("--boot-from-volume makes a new volume of an --image: leave --volume out")
    if dry_run and wait:
        raise click.UsageError("--dry-run makes nothing to wait for")
    made = session.client.instances.create(
        name=name,
        flavor=flavor,
        image=image,
        volume=volume,
        boot_volume_gib=boot_volume_gib or 0,
        delete_volume_on_termination=delete_volume_on_termination,
        networks=requested(networks, ports, nics),
        security_groups=groups,
        key_name=key_name,
        availability_zone=availability_zone,
        user_data=b"" if user_data is None else user_data.read_bytes(),
        metadata=dict(properties),
        config_drive=config_drive,
        validate_only=dry_run,
    )
    if wait:
        made = wait_for(session, made, "ACTIVE", wait_timeout_s)
    print_one(shape, view(made))


@server.command(
    "list",
    epilog=examples(
        "fabric server list", "fabric server list --long --status ERROR", "fabric server list -f value -c ID"
    ),
)
@click.option("--all-projects", is_flag=True, help="Everybody's (system administrators).")
@click.option("--name", default="", help="Only servers of this name.")
@click.option("--status", default="", help="Only servers in this state, e.g. ACTIVE, SHUTOFF or ERROR.")
@click.option("--long", is_flag=True, help="More columns.")
@listing
@pass_session
def list_(session: Session, *, all_projects: bool, name: str, status: str, long: bool, shape: Shape) -> None:
    """List the project's servers, newest first."""
    found = session.client.instances.list(all_projects=all_projects, name=name, state=status.upper())
    print_list(shape, LONG_COLUMNS if long else COLUMNS, (row(it, long=long) for it in found.instances))
    for cell in found.unreachable_cells:
        session.say(f"cell {cell.cell} cannot be reached, its servers are UNKNOWN: {cell.reason}")


@server.command(
    epilog=examples(
        "fabric server show nebula_web_01",
        "fabric server show -f json nebula_web_01",
        "fabric server show --diagnostics nebula_web_01",
    )
)
@click.option(
    "--diagnostics", is_flag=True, help="Show what it has used of CPUs, memory, disks and interfaces."
)
@one_server
@showing
@pass_session
def show(session: Session, *, diagnostics: bool, server: str, shape: Shape) -> None:
    """Show one, with its fault and with why it was placed where it is, or nowhere."""
    instances = session.client.instances
    print_one(shape, counters(instances.diagnostics(server)) if diagnostics else view(instances.get(server)))


@server.command(
    epilog=examples("fabric server delete nebula_web_01", "fabric server delete --wait web-1 web-2")
)
@click.option(
    "--force", is_flag=True, help="At once and for good, where the fabric keeps deleted servers for a while."
)
@many_servers
@waiting(300)
@pass_session
def delete(
    session: Session, *, force: bool, servers: tuple[str, ...], wait: bool, wait_timeout_s: float
) -> None:
    """End servers, whatever they are doing. Their disks are gone with them, at once or when the time to restore them is over."""
    instances = session.client.instances
    going: dict[str, Instance] = {}

    def end(name: str) -> None:
        # By id from here on: between two calls another server may be given the name.
        before = instances.get(name)
        instances.delete(before.id, force=force)
        going[name] = before

    def wait_until_gone(name: str) -> None:
        if (before := going.get(name)) is None:
            return
        left = instances.wait_until_gone(
            before,
            timeout_s=wait_timeout_s,
            force=force,
            on_change=lambda seen: session.say(line(seen, before)),
        )
        if left is not None:
            raise Failed(f"server {left.name} could not be deleted: {why(left)}")

    each_then_wait(session, servers, end, wait_until_gone if wait else None)


def from_row(rule: Rule) -> click.Command:
    """The verb of an action that needs nothing but the server: everything about it is in its row of the lifecycle table."""
    state = None if rule.final is None else shown(rule.final, TaskState.NONE)

    @pass_session
    def run(session: Session, *, servers: tuple[str, ...], wait: bool, wait_timeout_s: float) -> None:
        instances = session.client.instances
        act(
            session,
            servers,
            lambda name: instances.act(rule.action, name),
            state,
            wait_timeout_s if wait else None,
        )

    run.__doc__ = rule.summary
    command = f"fabric server {rule.verb}"
    decorated = many_servers(waiting(rule.deadline_s + 60)(run))
    return click.command(
        rule.verb.replace(" ", "-"),
        help=rule.summary,
        epilog=examples(f"{command} nebula_web_01", f"{command} --wait web-1 web-2"),
    )(decorated)


for _rule in RULES:
    if _rule.verb:
        server.add_command(from_row(_rule))


@server.command(
    epilog=examples("fabric server stop nebula_web_01", "fabric server stop --shutdown-timeout 300 --wait db")
)
@click.option(
    "--shutdown-timeout",
    "shutdown_timeout_s",
    type=click.IntRange(1, 3600),
    metavar="SECONDS",
    help="What the guest may take before its power is cut.  [default: 60]",
)
@many_servers
@waiting(240)
@pass_session
def stop(
    session: Session,
    *,
    shutdown_timeout_s: int | None,
    servers: tuple[str, ...],
    wait: bool,
    wait_timeout_s: float,
) -> None:
    """Shut servers down: their power button first, their power after the timeout."""
    instances = session.client.instances
    act(
        session,
        servers,
        lambda name: instances.stop(name, timeout_s=shutdown_timeout_s or 0),
        "SHUTOFF",
        wait_timeout_s + (shutdown_timeout_s or 0) if wait else None,
    )


@server.command(
    epilog=examples("fabric server reboot nebula_web_01", "fabric server reboot --hard --wait nebula_web_01")
)
@click.option(
    "--soft",
    "kind",
    flag_value="soft",
    default="soft",
    help="Ask the guest; one that does not answer is rebooted hard.  [default]",
)
@click.option("--hard", "kind", flag_value="hard", help="Cut the power, and boot from the record.")
@many_servers
@waiting(300)
@pass_session
def reboot(
    session: Session, *, kind: str, servers: tuple[str, ...], wait: bool, wait_timeout_s: float
) -> None:
    """Reboot servers."""
    instances = session.client.instances
    act(
        session,
        servers,
        lambda name: instances.reboot(name, hard=kind == "hard"),
        "ACTIVE",
        wait_timeout_s if wait else None,
    )


def act(
    session: Session,
    servers: tuple[str, ...],
    begin: Callable[[str], Instance],
    state: str | None,
    wait_timeout_s: float | None,
) -> None:
    """Begin an action on each server, and wait for all of them to reach `state` if that is wanted."""
    begun: dict[str, Instance] = {}

    def begin_one(name: str) -> None:
        begun[name] = begin(name)

    def wait_one(name: str) -> None:
        if name in begun and wait_timeout_s is not None:
            wait_for(session, begun[name], state, wait_timeout_s)

    each_then_wait(session, servers, begin_one, None if wait_timeout_s is None else wait_one)


def each_then_wait(
    session: Session,
    servers: tuple[str, ...],
    begin: Callable[[str], None],
    wait: Callable[[str], None] | None,
) -> None:
    """Begin with every server before any is waited for; wait also for those that went well beside one that did not."""
    code = 0
    for phase in (begin, wait):
        if phase is not None:
            try:
                each(session, servers, phase)
            except click.exceptions.Exit as ended:
                code = code or ended.exit_code
    if code:
        click.get_current_context().exit(code)
