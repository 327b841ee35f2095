"""A setting that nothing reads is a promise that nobody keeps."""

from __future__ import annotations

import ast
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import Struct

from fabric.config.load import fields_of, is_struct, plain
from fabric.config.settings import PROCESSES

ROOT = Path(__file__).resolve().parents[3]

PLACES = {
    "api": "fabric/server/api.py",
    "scheduler": "fabric/server/scheduler.py",
    "conductor": "fabric/server/conductor.py",
    "hostd": "hostd/main.py",
}
"""Where each process is put together: the only place that knows its settings."""


def _names(kind: type[Struct]) -> Iterator[str]:
    for name, field in fields_of(kind).items():
        yield name
        inner = plain(field.type)
        if typing.get_origin(inner) is dict:
            inner = plain(typing.get_args(inner)[1])
        if is_struct(inner):
            yield from _names(inner)


@pytest.mark.parametrize("process", PROCESSES)
def test_every_setting_is_read(process: str) -> None:
    tree = ast.parse((ROOT / PLACES[process]).read_text())
    read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names = set(_names(PROCESSES[process]))

    assert names
    assert names - read == set()
