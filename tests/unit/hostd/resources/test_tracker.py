from __future__ import annotations

from pathlib import Path

import pytest

from fabric.model.host import Resources
from hostd.resources.tracker import measure_free_gib, measure_total, meminfo_mib, promised
from tests.conformance.guests import a_guest

MEMINFO = "MemTotal:       24684096 kB\nMemFree:         1000 kB\nHugePages_Total:       0\n"


def test_memory_is_read_as_the_kernel_writes_it() -> None:
    assert meminfo_mib(MEMINFO, "MemTotal") == 24105
    assert meminfo_mib(MEMINFO, "MemFree") == 0


def test_a_field_that_is_not_there_is_said() -> None:
    with pytest.raises(ValueError, match="MemAvailable"):
        meminfo_mib(MEMINFO, "MemAvailable")
    with pytest.raises(ValueError, match=r"pages, not kB"):
        meminfo_mib("MemTotal: 1 pages\n", "MemTotal")


def test_this_machine_has_something(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(MEMINFO)

    total = measure_total(tmp_path, meminfo=meminfo)

    assert total.ram_mib == 24105
    assert total.vcpus > 0
    assert total.disk_gib >= measure_free_gib(tmp_path) >= 0


def test_what_was_promised_adds_up() -> None:
    assert promised([a_guest("a"), a_guest("b", vcpus=2, ram_mib=100, disk_gib=5)]) == Resources(
        vcpus=3, ram_mib=164, disk_gib=6
    )
    assert promised([]) == Resources()
