from __future__ import annotations

from pathlib import Path

import pytest

from fabric.model.host import Resources
from fabric.server.dev import demo, profile

STATE = Path("/f")


@pytest.mark.parametrize(
    ("share", "hosts"),
    [
        (Resources(vcpus=4, ram_mib=11_000, disk_gib=20), 2),
        (Resources(vcpus=4, ram_mib=demo.ROOM_RAM_MIB, disk_gib=demo.ROOM_DISK_GIB), 2),
        (Resources(vcpus=4, ram_mib=1024, disk_gib=20), 1),
        (Resources(vcpus=4, ram_mib=11_000, disk_gib=2), 1),
        (None, 1),
    ],
)
def test_the_demo_has_a_host_to_resize_to_where_the_machine_has_room(
    share: Resources | None, hosts: int
) -> None:
    assert demo.options_for(STATE, share).hosts == hosts


def test_what_only_an_administrator_may_is_shown_as_one_types_it() -> None:
    assert (
        demo.shown(profile.ADMIN, ("project", "create", "p q"))
        == "$ fabric --cloud admin project create 'p q'"
    )
    assert demo.shown(demo.PROFILE, ("server", "list")) == "$ fabric server list"
