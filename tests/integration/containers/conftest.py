"""One fabric for the tests of a module; and loud words where its hosts could not be containers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.integration.containers.places import Place, in_containers, in_namespaces, left_of, logs
from tools.containers.engine import FOLDER, Engine, NoEngineError

REASONS: list[str] = []
"""Why there was no engine."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Two hosts with all that they need: in containers if that can be. At the end nothing of either may be left."""
    engine = Engine()
    try:
        engine.start()
    except NoEngineError as reason:
        REASONS.append(str(reason))
        with in_namespaces(tmp_path_factory.mktemp("place")) as namespaces:
            yield namespaces
        return
    with ExitStack() as stack:
        stack.callback(engine.stop)
        yield stack.enter_context(in_containers(engine))
    assert left_of(FOLDER) == []


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """An engine with the images of this tree, and nothing else; skips, with the reason, where none can run."""
    made = Engine()
    try:
        made.start()
    except NoEngineError as reason:
        REASONS.append(str(reason))
        pytest.skip(f"NO DOCKER ENGINE: {reason}")
    yield made
    made.stop()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """What the services said, beside a failure."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed and (said := logs()):
        report.sections.append(("services in containers", said[-20_000:]))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """So that nobody takes one for the other."""
    if REASONS:
        terminalreporter.section("NO CONTAINERS", sep="!", red=True, bold=True)
        terminalreporter.line("No Docker engine could run here, so the tests of hosts in containers have")
        terminalreporter.line("run on hosts in network namespaces instead, or were skipped:")
        terminalreporter.line(f"  {REASONS[0]}", red=True)
