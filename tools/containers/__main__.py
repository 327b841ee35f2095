"""`python -m tools.containers`: build the images, run a fabric of them, speak to it.

build                        the images, in an engine of this tree's own or in --docker-host
up                           build, start two hosts with all they need, and stay until Ctrl-C; nothing is left then
docker WORDS...              any `docker` command in the engine of a running `up`
compose WORDS...             any `docker compose` command there: compose exec operator fabric server list
site DIR                     certificates and settings for a `docker compose up` of your own
down                         end what an `up` that was killed might have left
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fabric.model.host import Resources
from tools.containers import images, site
from tools.containers.debian import BuildError
from tools.containers.engine import (
    FOLDER,
    ROOT,
    DockerError,
    Engine,
    NoEngineError,
    docker,
    environment,
    running,
)

COMPOSE: Final = Path(__file__).parent / "compose.yaml"
GUEST_IMAGES: Final = ROOT / ".cache" / "guest-image"
UP_S: Final = 300.0


def resources() -> Resources:
    """What each of the two hosts offers: a quarter of the machine's memory, and guests' processors as `fabric dev` counts them."""
    memory_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    return Resources(vcpus=4 * (os.cpu_count() or 1), ram_mib=memory_mib // 4, disk_gib=20)


def write_site(folder: Path) -> dict[str, str]:
    """Certificates and settings in `folder`; what compose.yaml has to be told of them."""
    site.write(folder, site.plans(resources()), now_ms=time.time_ns() // 1_000_000)
    GUEST_IMAGES.mkdir(parents=True, exist_ok=True)
    return {"CELLFABRIC_SITE": str(folder), "CELLFABRIC_IMAGES": str(GUEST_IMAGES)}


def main() -> int:
    """Run a command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.containers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=("build", "up", "docker", "compose", "site", "down"))
    parser.add_argument("words", nargs=argparse.REMAINDER)
    parser.add_argument(
        "--docker-host", default="", help="another engine to build in, as unix:///var/run/docker.sock"
    )
    arguments = parser.parse_args()
    # Ending by exception ends the engine in good order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return _run(arguments.verb, arguments.words, arguments.docker_host)
    except (BuildError, NoEngineError, DockerError) as failed:
        print(f"containers: {failed}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(verb: str, words: Sequence[str], docker_host: str) -> int:
    if verb == "build":
        FOLDER.mkdir(parents=True, exist_ok=True)
        with contextlib.nullcontext() if docker_host else Engine() as engine:
            images.build(engine.environment if engine else environment(docker_host, FOLDER), say=_say)
    elif verb == "up":
        _up()
    elif verb == "site":
        if len(words) != 1:
            raise BuildError("say which folder: python -m tools.containers site DIR")
        for name, value in write_site(Path(words[0]).resolve()).items():
            print(f"export {name}={value}")
    elif verb == "down":
        with contextlib.suppress(NoEngineError):
            _end(running())
    else:
        told = {**os.environ, **environment(running(), FOLDER), **_variables(FOLDER / "site")}
        within = ("compose", "--file", str(COMPOSE)) if verb == "compose" else ()
        return subprocess.run(("docker", *within, *words), env=told, check=False).returncode
    return 0


def _up() -> None:
    with Engine() as engine:
        images.build(engine.environment, say=_say)
        _say("starting")
        variables = write_site(FOLDER / "site")
        told = {**engine.environment, **variables}
        try:
            docker("compose", "--file", str(COMPOSE), "up", "--wait", environment=told, timeout_s=UP_S)
        except DockerError:
            print(
                docker("compose", "--file", str(COMPOSE), "logs", "--tail", "20", environment=told),
                file=sys.stderr,
            )
            raise
        _say(
            "both hosts are up; from another shell: tools/containers/run compose exec operator fabric host list"
        )
        _say("Ctrl-C ends all of it")
        threading.Event().wait()


def _variables(folder: Path) -> dict[str, str]:
    return {"CELLFABRIC_SITE": str(folder), "CELLFABRIC_IMAGES": str(GUEST_IMAGES)}


def _end(host: str) -> None:
    """Kill the engine behind a DOCKER_HOST; its containers end with it."""
    pid = int(host.split("/")[4])
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _say(text: str) -> None:
    print(f"containers: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
