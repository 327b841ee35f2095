"""What commands print: tables for people, JSON, YAML and bare values for programs. The names in the machine formats are stable.

Everything that comes from elsewhere (names, faults, addresses) may hold control characters, with which a terminal can be talked to: people
see them as escapes, programs get them as data.
"""

from __future__ import annotations

import functools
import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ParamSpec, Protocol, TypeAlias, TypeVar

import click

P = ParamSpec("P")
R = TypeVar("R")

Plain: TypeAlias = "str | int | bool | Sequence[Plain] | Mapping[str, Plain] | None"
"""What JSON can say."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A value that people read differently from programs."""

    value: Plain
    text: str


Value: TypeAlias = "Plain | Cell"

FORMATS = ("table", "json", "yaml", "value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How the user wants it."""

    format: str = "table"
    columns: tuple[str, ...] = ()
    sort: tuple[str, ...] = ()


class Moment(Protocol):
    """A protobuf timestamp."""

    @property
    def seconds(self) -> int:
        """Since 1970, UTC."""
        ...


def when(moment: Moment) -> str | None:
    """A time as RFC 3339 has it; None for never."""
    if moment.seconds == 0:
        return None
    return datetime.fromtimestamp(moment.seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def shaped(*, sortable: bool) -> Callable[[Callable[P, R]], Callable[..., R]]:
    """Give a command the options for its output; it gets them as `shape`."""

    def decorate(function: Callable[P, R]) -> Callable[..., R]:
        @functools.wraps(function)
        def wrapper(
            *args: Any,
            format_name: str,
            columns: tuple[str, ...],
            sort_columns: tuple[str, ...] = (),
            **kwargs: Any,
        ) -> R:
            kwargs["shape"] = Shape(format=format_name, columns=columns, sort=sort_columns)
            return function(*args, **kwargs)

        command: Callable[..., R] = wrapper
        if sortable:
            command = click.option(
                "--sort-column",
                "sort_columns",
                multiple=True,
                metavar="COLUMN",
                help="Order by this column; may be given again for ties.",
            )(command)
        command = click.option(
            "-c",
            "--column",
            "columns",
            multiple=True,
            metavar="COLUMN",
            help="Print only this column; may be given again.",
        )(command)
        return click.option(
            "-f",
            "--format",
            "format_name",
            type=click.Choice(FORMATS),
            default="table",
            show_default=True,
            help="How to print it.",
        )(command)

    return decorate


listing = shaped(sortable=True)
showing = shaped(sortable=False)


# ------------------------------------------------------------------------------------------ printing


def print_list(shape: Shape, columns: Sequence[str], rows: Iterable[Sequence[Value]]) -> None:
    """Print rows of the same columns."""
    table = [list(row) for row in rows]
    for name in reversed(shape.sort):
        at = _position(name, columns)
        table.sort(key=lambda row: _sort_key(_plain(row[at])))
    chosen = [_position(name, columns) for name in shape.columns] or list(range(len(columns)))
    heads = [columns[at] for at in chosen]
    table = [[row[at] for at in chosen] for row in table]
    if shape.format == "table":
        click.echo(_grid(heads, [[_text(cell) for cell in row] for row in table]))
    elif shape.format == "value":
        for row in table:
            click.echo(" ".join(_bare(cell) for cell in row))
    else:
        records = [{head: _plain(cell) for head, cell in zip(heads, row, strict=True)} for row in table]
        click.echo(_json(records) if shape.format == "json" else _yaml_list(records))


def print_one(shape: Shape, fields: Mapping[str, Value]) -> None:
    """Print one thing, field by field."""
    names = list(fields)
    if shape.columns:
        names = [names[_position(name, names)] for name in shape.columns]
    if shape.format == "table":
        click.echo(_grid(["Field", "Value"], [[name, _text(fields[name])] for name in names]))
    elif shape.format == "value":
        for name in names:
            click.echo(_bare(fields[name]))
    else:
        record = {name: _plain(fields[name]) for name in names}
        click.echo(_json(record) if shape.format == "json" else _yaml(record))


def warn(text: str) -> None:
    """Tell people something beside the output."""
    click.echo(harmless(text), err=True)


def harmless(text: str) -> str:
    """Text without characters that a terminal obeys, except for the line's end."""
    return "".join(
        char if char == "\n" or char.isprintable() else char.encode("unicode_escape").decode()
        for char in text
    )


# ------------------------------------------------------------------------------------------ values


def _position(name: str, columns: Sequence[str]) -> int:
    wanted = name.casefold().replace("_", " ")
    for at, column in enumerate(columns):
        if column.casefold().replace("_", " ") == wanted:
            return at
    raise click.UsageError(f"there is no column {name!r}: there are {', '.join(columns)}")


def _plain(cell: Value) -> Plain:
    return cell.value if isinstance(cell, Cell) else cell


def _sort_key(value: Plain) -> tuple[bool, float, str]:
    """Numbers by size before words by letter; what is not there comes last."""
    if isinstance(value, int | float):
        return False, float(value), ""
    return value is None, float("inf"), "" if value is None else str(value).casefold()


def _text(cell: Value) -> str:
    return harmless(cell.text if isinstance(cell, Cell) else _words(cell))


def _bare(cell: Value) -> str:
    """For `-f value`: one line, whatever is in it."""
    return _text(cell).replace("\n", "\\n")


def _words(value: Plain) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "True" if value else "False"
        case str() | int():
            return str(value)
        case Mapping():
            return ", ".join(f"{name}={_words(part)!r}" for name, part in value.items())
        case _:
            return ", ".join(_words(part) for part in value)


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _yaml(record: Mapping[str, Plain]) -> str:
    """Keys as they are, values as JSON, which every YAML 1.2 parser takes: no quoting rules to get wrong."""
    return "\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in record.items())


def _yaml_list(records: Sequence[Mapping[str, Plain]]) -> str:
    if not records:
        return "[]"
    return "\n".join("- " + _yaml(record).replace("\n", "\n  ") for record in records)


# ------------------------------------------------------------------------------------------ tables


def _width(text: str) -> int:
    """Columns on a terminal: East Asian wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[cell.split("\n") for cell in row] for row in rows]
    widths = [
        max(_width(text) for text in [head, *(line for row in lines for line in row[at])])
        for at, head in enumerate(heads)
    ]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"

    def line(cells: Sequence[str]) -> str:
        padded = (text + " " * (width - _width(text)) for text, width in zip(cells, widths, strict=True))
        return "| " + " | ".join(padded) + " |"

    out = [rule, line(heads), rule]
    for row in lines:
        height = max(len(cell) for cell in row)
        out += [line([cell[at] if at < len(cell) else "" for cell in row]) for at in range(height)]
    return "\n".join([*out, rule] if rows else out)
