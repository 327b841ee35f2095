"""Where the hosts of these tests run: in containers, or, where no Docker engine can run, in network namespaces of this machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest
from testcontainers.compose import DockerCompose

from tests.e2e.running import Running, a_fabric, guest_images
from tools.containers import images
from tools.containers.__main__ import COMPOSE, write_site
from tools.containers.engine import FOLDER, Engine, group_of
from tools.containers.site import HOSTS

LIVE: list[DockerCompose] = []
LAST_WORDS: list[str] = []


class Place(Protocol):
    """A fabric with two hosts and stores of three members, and the ways to reach into it."""

    hosts: tuple[str, ...]
    images: str
    """The folder of the guest image, as `fabric` sees it there."""

    def fabric(self, *words: str) -> str:
        """What a `fabric` command of the administrator prints. Raises CalledProcessError, or Said, when it fails."""

    def on_host(self, host: str, *command: str) -> str | None:
        """What a command prints that is run in a host's network, as root; None when it fails."""

    def folder_on(self, host: str) -> str:
        """A folder that such a command may write to."""

    def lose_a_member(self) -> None:
        """Kill one member of the store."""


@dataclass
class InContainers:
    """compose.yaml, in an engine of this tree's own."""

    compose: DockerCompose
    hosts: tuple[str, ...] = HOSTS
    images: str = "/images"

    def fabric(self, *words: str) -> str:
        return self.compose.exec_in_container(["fabric", *words], "operator")[0]

    def on_host(self, host: str, *command: str) -> str | None:
        try:
            return self.compose.exec_in_container([*command], host)[0]
        except subprocess.CalledProcessError:
            return None

    def folder_on(self, host: str) -> str:
        return "/run"

    def lose_a_member(self) -> None:
        subprocess.run(
            (*self.compose.docker_compose_command(), "kill", "etcd-2"),
            cwd=self.compose.context,
            check=True,
            capture_output=True,
        )


@dataclass
class InNamespaces:
    """`fabric dev`: the same programs and the same hosts, with a network namespace each instead of a container."""

    running: Running
    folder: Path
    hosts: tuple[str, ...] = ()
    images: str = ""
    _netns: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (cell,) = self.running.topology["cells"]
        self._netns = {host["name"]: host["link"]["netns"] for host in cell["hosts"]}
        self.hosts = tuple(self._netns)
        self.images = str(guest_images())

    def fabric(self, *words: str) -> str:
        return self.running.cli(*words)

    def on_host(self, host: str, *command: str) -> str | None:
        done = subprocess.run(
            ("ip", "netns", "exec", self._netns[host], *command), capture_output=True, text=True, check=False
        )
        return done.stdout if done.returncode == 0 else None

    def folder_on(self, host: str) -> str:
        return str(self.folder)

    def lose_a_member(self) -> None:
        for store in ("global", "cell1"):
            self.running.dev("stop", "--now", f"etcd-{store}-2")


@contextlib.contextmanager
def in_containers(engine: Engine) -> Iterator[InContainers]:
    """The images of this tree, and a fabric of them, in an engine that runs; of the fabric nothing is left."""
    images.build(engine.environment, say=_say)
    guest_images()
    variables = {**engine.environment, **write_site(FOLDER / "site")}
    with pytest.MonkeyPatch.context() as patched:
        # DockerCompose hands its own environment to `docker compose`, and has no other way to tell it anything.
        for name, value in variables.items():
            patched.setenv(name, value)
        compose = DockerCompose(COMPOSE.parent, compose_file_name=COMPOSE.name, wait=True)
        LIVE.append(compose)
        try:
            compose.start()
            yield InContainers(compose)
        except BaseException:
            # They are gone when the failure is reported.
            LAST_WORDS.append(logs())
            raise
        finally:
            LIVE.remove(compose)
            compose.stop()


@contextlib.contextmanager
def in_namespaces(folder: Path) -> Iterator[InNamespaces]:
    """A fabric of `fabric dev`."""
    with a_fabric("--hosts", "2", "--etcd-members", "3") as running:
        yield InNamespaces(running, folder)


def logs() -> str:
    """What the services of the fabric in containers have said lately; of one that did not start, what they said at its end."""
    said = [
        subprocess.run(
            (*compose.docker_compose_command(), "logs", "--no-color", "--tail", "60"),
            cwd=compose.context,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ).stdout
        for compose in LIVE
    ]
    return "\n".join(said or LAST_WORDS)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def left_of(engine_folder: Path) -> list[str]:
    """Whatever is left of an engine and its containers: processes, mounts, control groups."""
    found = [
        line
        for line in Path("/proc/self/mounts").read_text().splitlines()
        if f"{engine_folder}/engine" in line or "docker" in line.split()[1]
    ]
    group = group_of(engine_folder)
    hierarchies = (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*"))
    found += [str(each / group) for each in hierarchies if (each / group).exists()]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if f"{engine_folder}/engine" in line or group in (entry / "cgroup").read_text():
                    found.append(f"process {entry.name}: {line}")
    return found
