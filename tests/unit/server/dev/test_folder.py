from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from fabric.errors import InvalidRequest
from fabric.server.dev import ending, folder
from fabric.server.dev.topology import Paths


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder that somebody has things in."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "lock").touch()
    return tmp_path


def everything(state: Path) -> set[str]:
    return {str(it.relative_to(state)) for it in state.rglob("*")}


def quiet(_text: str) -> None:
    pass


def test_down_removes_no_folder_that_is_not_a_fabrics(home: Path) -> None:
    before = everything(home)

    with pytest.raises(InvalidRequest, match="not a fabric's"):
        ending.down(home, quiet)

    assert everything(home) == before


def test_up_clears_no_folder_that_is_not_a_fabrics(home: Path) -> None:
    before = everything(home)

    with pytest.raises(InvalidRequest, match="not a fabric's"):
        ending.clean_stale(home, quiet)
    with pytest.raises(InvalidRequest, match="'lock' is in it"):
        folder.make(home)

    assert everything(home) == before


def test_a_folder_that_is_not_a_fabrics_is_not_removed_either(home: Path) -> None:
    before = everything(home)

    with pytest.raises(InvalidRequest):
        folder.remove(home)

    assert everything(home) == before


def test_a_folder_that_is_new_or_empty_becomes_a_fabrics_and_goes_with_it(tmp_path: Path) -> None:
    new = tmp_path / "below" / "new"
    folder.make(tmp_path / "empty")

    folder.make(new)
    (new / "etcd").mkdir()
    (new / "etcd" / "wal").touch()
    folder.remove(new)

    assert not new.exists()
    assert everything(tmp_path) == {"below", "empty", "empty/cellfabric-dev"}


def test_a_removal_that_was_interrupted_is_gone_on_with(tmp_path: Path) -> None:
    state = tmp_path / "fabric"
    folder.make(state)
    (state / "host").mkdir()  # nothing that a fabric is otherwise known by

    folder.remove(state)

    assert not state.exists()


def test_a_folder_of_an_earlier_version_is_known_by_its_topology(tmp_path: Path) -> None:
    state = tmp_path / "fabric"
    state.mkdir()
    Paths(state).topology.write_bytes(msgspec.json.encode({"state": str(state), "cells": "of another shape"}))

    folder.remove(state)

    assert not state.exists()


def test_a_copy_of_a_fabrics_folder_is_not_that_fabrics(tmp_path: Path) -> None:
    Paths(tmp_path).topology.write_bytes(msgspec.json.encode({"state": "/var/lib/cellfabric"}))

    with pytest.raises(InvalidRequest, match="not a fabric's"):
        folder.require_own(tmp_path)


def test_what_a_link_leads_to_is_not_removed_with_a_folder(tmp_path: Path) -> None:
    state, elsewhere = tmp_path / "fabric", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    folder.make(state)
    (state / "link").symlink_to(elsewhere)

    folder.remove(state)

    assert everything(tmp_path) == {"elsewhere", "elsewhere/kept"}
