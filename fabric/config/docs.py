"""The reference of every setting, from the Structs themselves: lines of Markdown for docs/generated/settings.md."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec import NODEFAULT, Meta, Struct

from fabric.config.load import BETWEEN, PREFIX, fields_of, is_struct, plain
from fabric.config.settings import PROCESSES


def lines() -> Iterator[str]:
    """The page."""
    yield "# Settings"
    yield ""
    yield "Source: `fabric/config/settings.py`. A process reads a TOML file (`--config`), then the environment, where double underscores"
    yield f"stand for dots and commas separate lists: `{PREFIX}API{BETWEEN}LOG{BETWEEN}LEVEL=debug`. Unknown names are refused."
    for process, kind in PROCESSES.items():
        yield ""
        yield f"## {process}"
        yield ""
        yield (kind.__doc__ or "").strip()
        yield ""
        yield "| setting | type | default | what it is |"
        yield "| --- | --- | --- | --- |"
        yield from _rows(kind, "")


def _rows(kind: type[Struct], path: str) -> Iterator[str]:
    for name, field in fields_of(kind).items():
        full = f"{path}{name}"
        inner = plain(field.type)
        about = _description(field.type)
        if is_struct(inner):
            if field.default is None:
                yield f"| `[{full}]` | table | none | {about} |"
            yield from _rows(inner, f"{full}.")
        elif typing.get_origin(inner) is dict:
            of = plain(typing.get_args(inner)[1])
            if is_struct(of):
                yield f"| `[{full}.NAME]` | tables | required | {about} |"
                yield from _rows(of, f"{full}.NAME.")
            else:
                yield f"| `{full}.NAME` | {_type(of)} | none | {about} |"
        else:
            yield f"| `{full}` | {_type(inner)} | {_default(field)} | {about} |"


def _description(hint: Any) -> str:
    metas = (
        [each for each in typing.get_args(hint)[1:] if isinstance(each, Meta)] if _is_annotated(hint) else []
    )
    return next((meta.description for meta in metas if meta.description), "")


def _is_annotated(hint: Any) -> bool:
    return typing.get_origin(hint) is Annotated


def _type(inner: Any) -> str:
    origin = typing.get_origin(inner)
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(inner))
    if origin is tuple:
        return "list of text"
    names = {"str": "text", "int": "integer", "float": "number", "bool": "`true` or `false`", "Path": "path"}
    return names[inner.__name__]


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.default is NODEFAULT:
        return "required"
    match field.default:
        case bool(value):
            return f"`{str(value).lower()}`"
        case "" | ():
            return "empty"
        case value:
            return f"`{value}`"
