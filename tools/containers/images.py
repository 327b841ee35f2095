"""The images, built from this tree: for etcd, for our servers and command line, and for a compute host."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tools.containers import debian
from tools.containers.debian import BuildError, RootFs
from tools.containers.engine import FOLDER, ROOT, DockerError, docker
from tools.containers.wheels import wheels

TAG: Final = "local"
HERE: Final = Path(__file__).parent

PROJECT: Final = ("fabric", "hostd", "pyproject.toml", "README.md", "LICENSE", "tools/containers/run-host")
"""Of this tree, what installing it takes."""
ETCD: Final = ROOT / ".cache" / "etcd" / "usr" / "bin"
"""Where tools/setup has put etcd."""
BUILD_S: Final = 600.0


def build(environment: Mapping[str, str], *, say: Callable[[str], None], folder: Path = FOLDER) -> None:
    """Build all images in the engine that `environment` speaks of. What has not changed is taken from before.

    Raises:
        BuildError: something is missing, or a step failed.
    """
    try:
        # Two processors, and most of the time each waits for something else.
        with ThreadPoolExecutor(3) as together:
            fetched = together.submit(wheels, ROOT / "requirements", folder / "wheels")
            bases = [together.submit(_base, each, environment, say) for each in (debian.HOST, debian.SERVER)]
            host_base, server_base = (each.result() for each in bases)
            fetched.result()
        say("building the images")
        with tempfile.TemporaryDirectory(dir=folder, prefix="context-") as name:
            context = Path(name)
            _gather(context, fetched.result())
            bases_named = (
                f"SERVER_BASE={server_base}",
                f"HOST_BASE={host_base}",
                f"NEEDED={image('needed')}",
            )
            for target, file, part in (
                ("etcd", "etcd.Dockerfile", "etcd"),
                ("needed", "needed.Dockerfile", "needed"),
                # The stage has a name only so that it is kept for the next build.
                ("ours", "Dockerfile", "project"),
                ("server", "Dockerfile", "project"),
                ("host", "Dockerfile", "project"),
            ):
                text = (HERE / file).read_text(encoding="utf-8")
                docker(
                    *(
                        "build",
                        "--quiet",
                        "--network",
                        "none",
                        "--tag",
                        image(target),
                        "--file",
                        str(HERE / file),
                    ),
                    *(("--target", target) if file == "Dockerfile" else ()),
                    *(
                        word
                        for arg in bases_named
                        if f"ARG {arg.partition('=')[0]}\n" in text
                        for word in ("--build-arg", arg)
                    ),
                    str(context / part),
                    environment=environment,
                    timeout_s=BUILD_S,
                )
        _forget_others({host_base, server_base}, environment)
    except DockerError as failed:
        raise BuildError(str(failed)) from failed
    except subprocess.TimeoutExpired as endless:
        raise BuildError(f"no end after {endless.timeout:.0f} s: {endless.cmd}") from endless


def image(target: str) -> str:
    """The name of an image."""
    return f"cellfabric/{target}:{TAG}"


def _base(wanted: RootFs, environment: Mapping[str, str], say: Callable[[str], None]) -> str:
    """The name of an imported root file system."""
    name = f"cellfabric/debian:{wanted.name}-{wanted.digest}"
    if not docker("images", "--quiet", name, environment=environment).strip():
        say(f"installing Debian's {debian.SUITE} for the {wanted.name}: {', '.join(wanted.packages)}")
        with debian.archive(wanted) as stream:
            words = ("import", "--change", f"LABEL cellfabric={wanted.name}-base", "-")
            made = docker(*words, environment=environment, timeout_s=BUILD_S, stdin=stream).strip()
        # It has a name only when all of it is there.
        docker("tag", made, name, environment=environment)
    return name


def _gather(context: Path, fetched: Path) -> None:
    """Put together what each Dockerfile may read, and nothing else of the tree."""
    if not (ETCD / "etcd").exists():
        raise BuildError(f"{ETCD} has no etcd: `tools/setup test` puts it there")
    without = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in PROJECT:
        source, target = ROOT / name, context / "project" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=without)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    shutil.copytree(fetched, context / "needed" / "wheels")
    shutil.copytree(ROOT / "requirements", context / "needed" / "requirements")
    shutil.copy(Path(sysconfig.get_path("scripts")) / "uv", context / "needed")
    shutil.copytree(ETCD, context / "etcd")


def _forget_others(bases: set[str], environment: Mapping[str, str]) -> None:
    """Remove root file systems and images that newer ones have replaced."""
    listed = docker(
        "images", "--format", "{{.Repository}}:{{.Tag}}", "cellfabric/debian", environment=environment
    )
    if stale := [name for name in listed.split() if name not in bases]:
        docker("rmi", *stale, environment=environment)
    docker("image", "prune", "--force", "--filter", "label=cellfabric", environment=environment)
