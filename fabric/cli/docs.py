"""The reference page of the command line, made from the commands themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from fabric.cli.exits import MEANING
from fabric.cli.main import cli


def page() -> Iterator[str]:
    """The lines of docs/generated/cli.md."""
    yield "# The command line"
    yield ""
    yield "Source: `fabric/cli/`. What is common to all commands is told in [concepts](../concepts/command-line.md)."
    yield ""
    yield "Exit codes:"
    yield ""
    yield "| code | means |"
    yield "| --- | --- |"
    for code, meaning in MEANING.items():
        yield f"| {code} | {meaning} |"
    yield ""
    yield "## fabric"
    yield from _body(cli, click.Context(cli, info_name="fabric"))
    yield from _below(cli, click.Context(cli, info_name="fabric"))


def _below(group: click.Group, context: click.Context) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        inner = click.Context(command, info_name=name, parent=context)
        if not isinstance(command, click.Group):
            yield ""
            yield f"## {inner.command_path}"
            yield from _body(command, inner)
        else:
            yield from _below(command, inner)


def _body(command: click.Command, context: click.Context) -> Iterator[str]:
    yield ""
    yield " ".join(inspect.cleandoc(command.help or "").split())
    yield ""
    yield "```"
    yield " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield "```"
    options = [
        record
        for it in command.params
        if isinstance(it, click.Option) and (record := it.get_help_record(context)) is not None
    ]
    if options:
        yield ""
        yield "| option | |"
        yield "| --- | --- |"
        for flags, text in options:
            yield f"| `{_cell(flags)}` | {_cell(text)} |"
    examples = inspect.cleandoc(command.epilog or "").replace("\b\n", "").splitlines()
    lines = [line.strip() for line in examples if line.startswith("  ")]
    if lines:
        yield ""
        yield "```sh"
        yield from lines
        yield "```"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", r"\|").split())
