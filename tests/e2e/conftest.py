"""Fabrics for tests: one with real guests for the whole run, and ones without hardware for each module that breaks them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from tests.e2e.running import LIVE, Running, a_fabric


@pytest.fixture(scope="session")
def running_fabric() -> Iterator[Running]:
    """One cell, one host, libvirt: shared, so a test leaves no server behind and mends what it breaks."""
    with a_fabric() as fabric:
        yield fabric


@pytest.fixture(scope="module")
def fake_fabric() -> Callable[..., AbstractContextManager[Running]]:
    """Makes fabrics whose hosts have no hardware: `with fake_fabric(cells=2, hosts=2) as fabric`."""

    def make(*, cells: int = 1, hosts: int = 1, etcd_members: int = 1) -> AbstractContextManager[Running]:
        return a_fabric(
            *("--hypervisor", "fake", "--cells", str(cells), "--hosts", str(hosts)),
            *("--etcd-members", str(etcd_members)),
        )

    return make


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Show the logs of the fabrics that ran when a test failed: they are gone with the fabric."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed:
        for fabric in LIVE:
            for name, text in fabric.logs():
                report.sections.append((f"{fabric.state} {name}", text))
