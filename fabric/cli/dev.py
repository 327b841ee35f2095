"""`fabric dev`: a whole fabric on this machine, for trying out, for demonstrations and for tests."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fabric.cli.output import Cell, Shape, Value, listing, print_list
from fabric.cli.params import examples
from fabric.errors import InvalidRequest, NotFound

if TYPE_CHECKING:
    from fabric.server.dev.control import Command, FabricStatus
    from fabric.server.dev.topology import Topology

F = TypeVar("F", bound=Callable[..., Any])

COLUMNS = ("name", "state", "pid", "uptime", "memory", "restarts", "last_end")


def state_option(command: F) -> F:
    """Which fabric: several may run on one machine, each in a folder of its own."""
    return click.option(
        "--state",
        envvar="FABRIC_DEV_STATE",
        # What is in it is root's, but for what `dev env` leads to: who only passes through need not read it.
        type=click.Path(file_okay=False, readable=False, path_type=Path),
        default=Path("/var/lib/cellfabric"),
        show_default=True,
        metavar="DIR",
        help="Where the fabric keeps everything.",
    )(command)


def say(text: str) -> None:
    """A line of progress."""
    click.echo(text, err=True)


@click.group()
def dev() -> None:
    """A whole fabric on this machine: every process of a real one, its stores and its hosts."""


@dev.command(
    epilog=examples(
        "sudo fabric dev up", "sudo fabric dev up --cells 2 --hosts 2", "sudo fabric dev up --etcd-members 3"
    )
)
@state_option
@click.option("--cells", type=int, default=1, show_default=True, help="How many cells.")
@click.option("--hosts", type=int, default=1, show_default=True, help="How many hosts in each cell.")
@click.option(
    "--hypervisor",
    type=click.Choice(["libvirt", "fake"]),
    default="libvirt",
    show_default=True,
    help="What the hosts are: libvirt with QEMU, or pretended, for trying out the control plane.",
)
@click.option(
    "--etcd-members",
    type=click.Choice(["1", "3"]),
    default="1",
    show_default=True,
    help="Members of each store; three go on when one is lost.",
)
@click.option(
    "--accelerator",
    type=click.Choice(["auto", "kvm", "qemu"]),
    default="auto",
    show_default=True,
    help="`auto` takes KVM where a probe shows that it works, else emulation.",
)
@click.option(
    "--dns-server",
    "dns_servers",
    multiple=True,
    metavar="ADDRESS",
    help="What guests resolve names with; may be given again.  [default: they are told of none]",
)
@click.option(
    "--mtu",
    type=int,
    default=1500,
    show_default=True,
    metavar="BYTES",
    help="The MTU of guests' interfaces on the default network.",
)
@click.option(
    "--reclaim",
    "reclaim_s",
    type=float,
    default=0.0,
    metavar="SECONDS",
    show_default=True,
    help="How long deleted servers are kept, off, to be restored; 0: they are deleted at once.",
)
@click.option("--foreground", is_flag=True, help="Stay, and log to the terminal; Ctrl-C stops the processes.")
def up(
    *,
    state: Path,
    cells: int,
    hosts: int,
    hypervisor: Any,
    etcd_members: str,
    accelerator: Any,
    dns_servers: tuple[str, ...],
    mtu: int,
    reclaim_s: float,
    foreground: bool,
) -> None:
    """Start a fabric, and wait until everything is ready."""
    from fabric.server.dev import starting
    from fabric.server.dev.topology import Options

    state = state.resolve()
    if (found := starting.running(state)) is not None:
        say(f"a fabric is running on {state}:")
        _describe(found[0])
        return
    options = Options(
        state=state,
        cells=cells,
        hosts=hosts,
        hypervisor=hypervisor,
        etcd_members=int(etcd_members),
        accelerator=accelerator,
        dns_servers=dns_servers,
        mtu=mtu,
        reclaim_s=reclaim_s,
    )
    topology, lock = starting.prepare(options, say)
    if foreground:
        starting.become_supervisor(topology, lock)
    starting.launch(topology, lock)
    starting.await_ready(topology, say)
    _describe(topology)


@dev.command(epilog=examples("sudo fabric dev down"))
@state_option
def down(*, state: Path) -> None:
    """End a fabric and its guests, and leave nothing of it behind. Also after its supervisor was killed."""
    from fabric.server.dev import ending

    state = state.resolve()
    if ending.down(state, say):
        say(f"the fabric on {state} is gone: no process, namespace, interface, mount or file of it is left")
    else:
        say(f"no fabric is on {state}")


@dev.command(epilog=examples("sudo fabric dev status", "sudo fabric dev status -f json"))
@state_option
@listing
def status(*, state: Path, shape: Shape) -> None:
    """Show every process."""
    _, found = _running(state)
    print_list(shape, COLUMNS, _rows(found))


@dev.command(
    epilog=examples(
        "sudo fabric dev restart api", "sudo fabric dev restart hostd-cell1-host1 --env FABRIC_FAIL=…"
    )
)
@state_option
@click.option("--env", "environment", multiple=True, metavar="NAME=VALUE", help="For this one start.")
@click.argument("process")
def restart(*, state: Path, environment: tuple[str, ...], process: str) -> None:
    """Stop a process in order, start it again and wait until it is ready."""
    _act(state, "restart", process, environment=environment)


@dev.command(epilog=examples("sudo fabric dev start etcd-cell1"))
@state_option
@click.option("--env", "environment", multiple=True, metavar="NAME=VALUE", help="For this one start.")
@click.argument("process")
def start(*, state: Path, environment: tuple[str, ...], process: str) -> None:
    """Start a process that was stopped, and wait until it is ready."""
    _act(state, "start", process, environment=environment)


@dev.command(epilog=examples("sudo fabric dev stop scheduler", "sudo fabric dev stop --now etcd-cell1"))
@state_option
@click.option("--now", is_flag=True, help="Kill it, as a lost machine would.")
@click.argument("process")
def stop(*, state: Path, now: bool, process: str) -> None:
    """Stop a process, and leave it stopped."""
    _act(state, "stop", process, number=signal.SIGKILL if now else signal.SIGTERM)


@dev.command(
    epilog=examples("sudo fabric dev kill scheduler", "sudo fabric dev kill --signal STOP etcd-global-2")
)
@state_option
@click.option(
    "--signal", "name", default="KILL", show_default=True, metavar="NAME", help="STOP, CONT, TERM, …"
)
@click.argument("process")
def kill(*, state: Path, name: str, process: str) -> None:
    """Send a process a signal. One that ends is started again."""
    try:
        number = signal.Signals[f"SIG{name.upper().removeprefix('SIG')}"]
    except KeyError:
        raise InvalidRequest(f"{name!r} is no signal", field="signal") from None
    _act(state, "kill", process, number=number)


@dev.command(
    epilog=examples("sudo fabric dev logs scheduler", "sudo fabric dev logs --follow hostd-cell1-host1")
)
@state_option
@click.option("--follow", "-F", is_flag=True, help="Go on as the log grows.")
@click.option(
    "--lines", "-n", type=click.IntRange(min=0), default=200, show_default=True, help="From the end."
)
@click.argument("process")
def logs(*, state: Path, follow: bool, lines: int, process: str) -> None:
    """Show what a process has logged; `supervisor` too."""
    from fabric.server.dev.topology import Paths

    path = Paths(state.resolve()).log_of(process)
    if not path.exists():
        known = ", ".join(sorted(each.stem for each in path.parent.glob("*.log"))) or "none"
        raise NotFound(f"there is no log of {process!r} on {state}; there are: {known}")
    command = ["tail", f"--lines={lines}", *(["--follow"] if follow else []), str(path)]
    sys.stdout.flush()
    os.execvp(command[0], command)  # noqa: S606 - no shell is meant


@dev.command(epilog=examples('eval "$(fabric dev env)"'))
@state_option
def env(*, state: Path) -> None:
    """Print what a shell needs so that `fabric` speaks to this fabric."""
    from fabric.server.dev import profile
    from fabric.server.dev.topology import Paths, load

    path = Paths(state.resolve()).topology
    if not path.exists():
        raise NotFound(f"no fabric is on {state}: start one by `fabric dev up`")
    for name, value in profile.exports(load(path), Path(sysconfig.get_path("scripts"))).items():
        click.echo(f"export {name}={shlex.quote(value)}")


@dev.command(epilog=examples("sudo fabric dev demo"))
@state_option
def demo(*, state: Path) -> None:
    """From nothing to a shell in a guest, by the commands that a person would type. May be run again."""
    from fabric.server.dev.demo import run

    run(state.resolve(), say)


def _running(state: Path) -> tuple[Topology, FabricStatus]:
    from fabric.server.dev import starting

    found = starting.running(state.resolve())
    if found is None:
        raise NotFound(f"no fabric is running on {state}: start one by `fabric dev up`")
    return found


def _act(
    state: Path, verb: Any, process: str, *, environment: tuple[str, ...] = (), number: int = signal.SIGTERM
) -> None:
    from fabric.server.dev import control

    topology, _ = _running(state)
    command: Command = control.Command(
        verb=verb, process=process, signal=number, environment=dict(control.environment_from(environment))
    )
    found = control.ask(topology.paths.control, command, timeout_s=120)
    (now,) = (each for each in found.processes if each.name == process)
    say(f"{process} is {now.state}" + (f", pid {now.pid}" if now.pid else ""))


def _rows(status: FabricStatus) -> list[list[Value]]:
    from fabric.server.dev.machine import resident_kib

    rows: list[list[Value]] = []
    for each in status.processes:
        memory_mib = resident_kib(each.pid) // 1024 if each.pid else 0
        rows.append(
            [
                each.name,
                each.state,
                each.pid or None,
                Cell(int(each.uptime_s), f"{each.uptime_s:.0f} s" if each.pid else ""),
                Cell(memory_mib, f"{memory_mib} MiB" if each.pid else ""),
                each.restarts,
                each.last_end,
            ]
        )
    return rows


def _describe(topology: Topology) -> None:
    click.echo(
        f"cells {len(topology.cells)}, hosts {len(topology.hosts)}, API at 127.0.0.1:{topology.api_port}"
    )
    click.echo(f'to use it:  eval "$(fabric dev env{_state_words(topology.state)})"')
    click.echo("to end it:  sudo fabric dev down" + _state_words(topology.state))


def _state_words(state: Path) -> str:
    from fabric.server.dev.topology import DEFAULT_STATE

    return "" if state == DEFAULT_STATE else f" --state {shlex.quote(str(state))}"
