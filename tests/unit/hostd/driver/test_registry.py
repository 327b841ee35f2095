from __future__ import annotations

import typing

from fabric.config.load import fields_of, plain
from fabric.config.settings import HostdSettings
from hostd.driver.registry import MACHINES


def test_every_kind_of_machine_can_be_set_and_no_other() -> None:
    """fabric may not import hostd, so the setting spells the names once more."""
    offered = typing.get_args(plain(fields_of(HostdSettings)["driver"].type))

    assert set(offered) == MACHINES.keys()
