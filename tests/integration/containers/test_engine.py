"""The Docker engine of this tree: whoever started it may die, and nothing of it is left."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.running import until
from tests.integration.containers.places import left_of
from tools.containers import images
from tools.containers.engine import FOLDER, Engine, NoEngineError, running

pytestmark = [pytest.mark.owns_machine, pytest.mark.timeout(300)]

STARTER = """
import sys, time
from pathlib import Path
from tools.containers.engine import Engine
with Engine() as engine:
    engine.docker("run", "--detach", "--network", "none", "--restart", "always", sys.argv[1], "sleep", "infinity")
    print("started", flush=True)
    time.sleep(600)
"""
ROOT = Path(__file__).resolve().parents[3]


def test_an_engine_has_nothing_of_another_docker(engine: Engine) -> None:
    assert engine.docker("ps", "--all", "--quiet") == ""
    assert running() == engine.host


def test_an_engine_whose_starter_is_killed_ends_with_its_containers(engine: Engine) -> None:
    images.build(engine.environment, say=print)
    engine.stop()
    starter = subprocess.Popen(
        (sys.executable, "-c", STARTER, images.image("etcd")), cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    try:
        assert starter.stdout.readline() == "started\n"
        assert "sleep" in "".join(left_of(FOLDER))

        starter.send_signal(signal.SIGKILL)
    finally:
        starter.kill()
        starter.wait()
        starter.stdout.close()

    # Control groups are the engine's to remove: the next one does, or `down`.
    until(
        lambda: not [each for each in left_of(FOLDER) if not each.startswith("/sys/fs/cgroup")],
        "no process and no mount",
    )
    with pytest.raises(NoEngineError):
        running()
    engine.start()
    assert engine.docker("ps", "--all", "--quiet") == ""
    engine.stop()
    assert left_of(FOLDER) == []
