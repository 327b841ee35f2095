"""`fabric server event list|show` and `fabric server watch`: what was done to servers, and what changes about them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from fabric.cli.instances import one_server, server
from fabric.cli.output import Cell, Shape, Value, harmless, listing, print_list, print_one, showing, when
from fabric.cli.params import examples
from fabric.cli.session import Session, pass_session

if TYPE_CHECKING:
    from fabric.client.instance_events import InstanceEvent, WatchInstancesResponse

COLUMNS = ("Request ID", "Server ID", "Action", "Start Time", "Result")
LONG_COLUMNS = (*COLUMNS, "Finish Time", "Message", "Project ID", "User ID")


@server.group()
def event() -> None:
    """What was done to servers: the last actions on each, and for 24 hours on those that are gone."""


@event.command(
    "list",
    epilog=examples(
        "fabric server event list nebula_web_01",
        "fabric server event list --long 3a1f0e3e-7d3c-4a53-9d0e-6b1b0a7c9d21",
    ),
)
@click.option("--long", is_flag=True, help="More columns.")
@one_server
@listing
@pass_session
def list_(session: Session, *, long: bool, server: str, shape: Shape) -> None:
    """List the last actions on a server, newest first. One that is gone is named by its id."""
    found = session.client.instance_events.list(server)
    print_list(shape, LONG_COLUMNS if long else COLUMNS, (_row(it, long=long) for it in found))


@event.command(
    epilog=examples("fabric server event show nebula_web_01 7c0a9e52-4f60-4f0e-a9a5-0c8d3a7f1b11"),
)
@one_server
@click.argument("request_id")
@showing
@pass_session
def show(session: Session, *, server: str, request_id: str, shape: Shape) -> None:
    """Show one action on a server with its steps: which, when, where, and how each ended."""
    print_one(shape, _view(session.client.instance_events.get(server, request_id)))


@server.command(epilog=examples("fabric server watch", "fabric server watch --all-projects"))
@click.option("--all-projects", is_flag=True, help="Everybody's (system administrators).")
@pass_session
def watch(session: Session, *, all_projects: bool) -> None:
    """Show servers, and every change of them as it happens, until interrupted (Ctrl-C)."""
    try:
        for news in session.client.instance_events.watch(all_projects=all_projects):
            text = _line(news)
            if text:
                now = datetime.fromtimestamp(session.world.now_s(), UTC)
                click.echo(f"{now:%H:%M:%S}  {text}")
    except KeyboardInterrupt:
        # The one way to end it, and so no failure.
        click.echo("", err=True)


def _row(event: InstanceEvent, *, long: bool) -> tuple[Value, ...]:
    short = (event.request_id, event.instance_id, event.action, when(event.start_time), event.result)
    if not long:
        return short
    return (
        *short,
        when(event.finish_time) if event.HasField("finish_time") else None,
        event.message,
        event.project_id,
        event.user_id,
    )


def _view(event: InstanceEvent) -> dict[str, Value]:
    """The names are those of `openstack server event show`, where it has them."""
    return {
        "action": event.action,
        "instance_uuid": event.instance_id,
        "request_id": event.request_id,
        "project_id": event.project_id,
        "user_id": event.user_id,
        "start_time": when(event.start_time),
        "finish_time": when(event.finish_time) if event.HasField("finish_time") else None,
        "result": event.result,
        "message": f"{event.fault_code}: {event.message}" if event.fault_code else event.message,
        "events": _steps(event),
    }


def _steps(event: InstanceEvent) -> Cell:
    lines, values = [], []
    for step in event.steps:
        start_ms, finish_ms = step.start_time.ToMilliseconds(), step.finish_time.ToMilliseconds()
        where = f" on {step.host}" if step.host else ""
        why = f": {step.details or step.fault_code}" if step.fault_code else ""
        lines.append(f"{step.name}{where} {step.result} in {(finish_ms - start_ms) / 1000:.1f} s{why}")
        values.append(
            {
                "event": step.name,
                "start_time": when(step.start_time),
                "finish_time": when(step.finish_time),
                "host": step.host,
                "result": step.result,
                "details": step.details,
            }
        )
    return Cell(tuple(values), "\n".join(lines))


def _line(news: WatchInstancesResponse) -> str:
    """One piece of news for people; empty for what is only for programs."""
    match news.WhichOneof("news"):
        case "change":
            status = news.change.instance.status
            words = [
                _KINDS.get(news.change.kind, "?"),
                news.change.instance.id,
                harmless(news.change.instance.name),
                status.state,
                status.task_state,
                status.progress,
                status.fault.message,
            ]
            return "  ".join(word for word in words if word)
        case "resync":
            return f"resync   {news.resync.reason}; all servers follow"
        case "cell_away":
            return f"away     cell {news.cell_away.cell}: {news.cell_away.reason}"
        case "cell_back":
            return f"back     cell {news.cell_back.cell}"
        case _:
            return ""


_KINDS = {1: "present", 2: "changed", 3: "deleted"}
