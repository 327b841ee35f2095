"""What is locked is what pyproject.toml asks for, groups within groups included."""

from __future__ import annotations

import pytest

from tools import lock

PROJECT = {
    "build-system": {"requires": ["setuptools"]},
    "project": {"dependencies": ["grpcio"], "optional-dependencies": {"host": ["libvirt-python"]}},
    "dependency-groups": {"proto": ["grpcio-tools"], "dev": [{"include-group": "proto"}, "pytest"]},
}


@pytest.mark.parametrize(
    ("name", "requirements"),
    [
        ("build", ["setuptools", "wheel"]),
        ("runtime", ["grpcio"]),
        ("host", ["libvirt-python"]),
        ("dev", ["grpcio", "grpcio-tools", "pytest"]),
    ],
)
def test_each_file_locks_what_its_users_install(name: str, requirements: list[str]) -> None:
    assert lock.wanted(PROJECT)[name] == requirements


def test_what_is_shipped_is_resolved_before_what_tests_it() -> None:
    order = list(lock.wanted(PROJECT))

    assert order.index("build") < order.index("runtime") < order.index("dev")
