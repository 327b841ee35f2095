from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.cli.shell import Shell


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A command line with a token, and nothing in the fabric."""
    return Shell(tmp_path)


@pytest.fixture
def stocked(shell: Shell, tmp_path: Path) -> Shell:
    """A command line with a flavor and an image."""
    (tmp_path / "disk.raw").write_bytes(b"disk")
    shell.ok("flavor", "create", "--ram", "512", "--disk", "1", "--vcpus", "1", "m1.nebula_micro")
    shell.ok(
        "image", "create", "--file", str(tmp_path / "disk.raw"), "--disk-format", "raw", "nebula_standard_os"
    )
    return shell
