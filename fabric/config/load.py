"""Settings from a TOML file, overridden by the environment, into a typed value.

An environment variable names a setting by its path: `FABRIC_API__LOG__LEVEL=debug` is `level` in `[log]` of the API server. Lists are
separated by commas. Everything is checked at once, when the process starts; an unknown name is refused with the nearest known one, because
a misspelt setting that is silently ignored is worse than no setting.
"""

from __future__ import annotations

import difflib
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Struct

from fabric.errors import InvalidRequest

S = TypeVar("S", bound=Struct)

PREFIX = "FABRIC_"
BETWEEN = "__"


def load(kind: type[S], process: str, *, path: Path | None, environment: Mapping[str, str]) -> S:
    """The settings of one process.

    Args:
        kind: the Struct to make.
        process: its name in the environment: `api` reads `FABRIC_API__…`.
        path: the TOML file; None takes everything from the environment and the defaults.
        environment: `os.environ`, from whoever puts the process together.

    Raises:
        InvalidRequest: naming the setting and what would be right.
    """
    values = {} if path is None else _read(path)
    begin = f"{PREFIX}{process.upper()}{BETWEEN}"
    for variable in sorted(environment):
        if variable.startswith(begin):
            names = [name.lower() for name in variable.removeprefix(begin).split(BETWEEN)]
            _put(values, kind, names, environment[variable], variable)
    _refuse_unknown(values, kind, "")
    try:
        return msgspec.convert(values, kind, strict=False, dec_hook=_decode)
    except msgspec.ValidationError as wrong:
        message, _, where = str(wrong).partition(" - at `$")
        field = where.strip("`.")
        raise InvalidRequest(f"setting {field or 'file'}: {message}", field=field) from None


def fields_of(kind: type[Struct]) -> Mapping[str, msgspec.structs.FieldInfo]:
    """The settings of a Struct by name, in order."""
    return {field.encode_name: field for field in msgspec.structs.fields(kind)}


def plain(hint: Any) -> Any:
    """A type without its annotations and without `| None`."""
    if typing.get_origin(hint) is Annotated:
        return plain(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (only,) = (each for each in typing.get_args(hint) if each is not type(None))
        return plain(only)
    return hint


def is_struct(hint: Any) -> bool:
    """Whether a plain type is a table of settings."""
    return isinstance(hint, type) and issubclass(hint, Struct)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as absent:
        raise InvalidRequest(f"cannot read {path}: {absent.strerror}", field="config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as wrong:
        raise InvalidRequest(f"{path} is not TOML: {wrong}", field="config") from None


def _decode(kind: type[Any], value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value).expanduser()
    if kind is IPv4Network and isinstance(value, str):
        try:
            return IPv4Network(value)
        except ValueError:
            raise ValueError(f"{value!r} is no IPv4 network, such as 192.0.2.0/24") from None
    raise NotImplementedError(kind)  # how msgspec is told that a type is none of ours


def _put(values: dict[str, Any], kind: Any, names: list[str], text: str, variable: str) -> None:
    """Set one value from the environment, at its path."""
    name, rest = names[0], names[1:]
    inner = plain(_type_of(kind, name, variable))
    if not rest:
        values[name] = _split(text) if typing.get_origin(inner) is tuple else text
        return
    table = values.setdefault(name, {})
    if not isinstance(table, dict) or not (is_struct(inner) or typing.get_origin(inner) is dict):
        raise InvalidRequest(f"{variable}: {name} is not a table", field=variable)
    _put(table, inner, rest, text, variable)


def _type_of(kind: Any, name: str, variable: str) -> Any:
    if typing.get_origin(kind) is dict:
        return typing.get_args(kind)[1]
    fields = fields_of(kind)
    if name not in fields:
        raise InvalidRequest(
            f"{variable}: there is no setting {name}{_nearest(name, fields)}", field=variable
        )
    return fields[name].type


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _refuse_unknown(values: Mapping[str, Any], kind: Any, path: str) -> None:
    for name, inner, value in _tables(values, kind, path):
        if isinstance(value, dict):
            _refuse_unknown(value, inner, name)


def _tables(values: Mapping[str, Any], kind: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    is_map = typing.get_origin(kind) is dict
    fields = {} if is_map else fields_of(kind)
    for name, value in values.items():
        full = f"{path}.{name}" if path else name
        if not is_map and name not in fields:
            raise InvalidRequest(f"there is no setting {full}{_nearest(name, fields)}", field=full)
        inner = plain(typing.get_args(kind)[1] if is_map else fields[name].type)
        if is_struct(inner) or typing.get_origin(inner) is dict:
            yield full, inner, value


def _nearest(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
