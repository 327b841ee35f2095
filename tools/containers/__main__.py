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
import os
import shlex
import signal
import subprocess
import sys
import time
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
    sweep,
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
    return _variables(folder)


def main() -> int:
    """Run a command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.containers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    build = verbs.add_parser("build")
    build.add_argument("--docker-host", default="", help="build in this engine: unix:///var/run/docker.sock")
    verbs.add_parser("up")
    verbs.add_parser("down")
    verbs.add_parser("site").add_argument("folder", type=Path)
    for name in ("docker", "compose"):
        verbs.add_parser(name, add_help=False).add_argument("words", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    # Ending by exception ends the engine in good order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(128 + signal.SIGHUP))
    try:
        return _run(arguments)
    except (BuildError, NoEngineError, DockerError) as failed:
        print(f"containers: {failed}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(said: argparse.Namespace) -> int:
    if said.verb == "build":
        FOLDER.mkdir(parents=True, exist_ok=True)
        if said.docker_host:
            images.build(environment(said.docker_host, FOLDER), say=_say)
        else:
            with Engine() as engine:
                images.build(engine.environment, say=_say)
    elif said.verb == "up":
        _up()
    elif said.verb == "down":
        sweep(FOLDER)
    elif said.verb == "site":
        for name, value in write_site(said.folder.resolve()).items():
            print(f"export {name}={shlex.quote(value)}")
    else:
        told = {**os.environ, **environment(running(), FOLDER), **_variables(FOLDER / "site")}
        within = ("compose", "--file", str(COMPOSE)) if said.verb == "compose" else ()
        return subprocess.run(("docker", *within, *said.words), env=told, check=False).returncode
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
        engine.wait()
        _say("somebody else has ended it")


def _variables(folder: Path) -> dict[str, str]:
    return {"CELLFABRIC_SITE": str(folder), "CELLFABRIC_IMAGES": str(GUEST_IMAGES)}


def _say(text: str) -> None:
    print(f"containers: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
