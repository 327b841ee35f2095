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

ALIKE = "fabric/server/process.py"

PLACES = {
    "api": ("fabric/server/api.py", ALIKE),
    "scheduler": ("fabric/server/scheduler.py", ALIKE),
    "conductor": ("fabric/server/conductor.py", ALIKE),
    "hostd": ("hostd/main.py",),
}
"""Where each process is put together: the only places that know its settings."""


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
    trees = [ast.parse((ROOT / place).read_text()) for place in PLACES[process]]
    read = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names = set(_names(PROCESSES[process]))

    assert names
    assert names - read == set()
