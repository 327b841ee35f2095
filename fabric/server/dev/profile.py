"""The client's side of a fabric: a clouds file, the authority that it believes, and passwords, in one folder of the state.

Run with sudo, the folder belongs to whoever called it: they log in as themselves, and only ending the fabric takes root.
"""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from pathlib import Path
from typing import Any, Final

from fabric.server import pki
from fabric.server.dev.topology import Topology

ADMIN: Final = "admin"
"""The profile of the system administrator; also the user's and the project's name."""


def clouds_file(topology: Topology) -> Path:
    """What FABRIC_CLOUDS_FILE must name."""
    return topology.paths.client / "clouds.toml"


def write(topology: Topology) -> None:
    """Make the folder, with the administrator's profile."""
    folder = topology.paths.client
    folder.mkdir(mode=0o700)
    shutil.copyfile(topology.paths.pki / "ca.pem", folder / "ca.pem")
    _give(folder)
    _give(folder / "ca.pem")
    password = topology.paths.admin_password.read_text(encoding="ascii").strip()
    add(topology, ADMIN, username=ADMIN, project=ADMIN, password=password)


def add(topology: Topology, name: str, *, username: str, project: str, password: str) -> None:
    """Add a profile, or write it anew, and make it the default."""
    path = clouds_file(topology)
    secret = path.parent / f"{name}-password"
    pki.write_private(secret, f"{password}\n".encode())
    clouds = tomllib.loads(path.read_text(encoding="utf-8"))["clouds"] if path.exists() else {}
    clouds[name] = {
        "endpoint": f"127.0.0.1:{topology.api_port}",
        "ca_file": "ca.pem",
        "username": username,
        "project": project,
        "password_file": secret.name,
    }
    pki.write_private(path, _toml(name, clouds).encode())
    _give(secret)
    _give(path)


def has(topology: Topology, name: str) -> bool:
    """Whether there is such a profile."""
    path = clouds_file(topology)
    return path.exists() and name in tomllib.loads(path.read_text(encoding="utf-8"))["clouds"]


def exports(topology: Topology, scripts: Path) -> dict[str, str]:
    """What a shell needs so that plain `fabric` speaks to this fabric."""
    found = {"FABRIC_CLOUDS_FILE": str(clouds_file(topology))}
    if shutil.which("fabric") is None:
        found["PATH"] = f"{scripts}:{os.environ.get('PATH', os.defpath)}"
    return found


def owner() -> tuple[int, int]:
    """Whose the client's files are: of whoever called sudo, else this user's."""
    return int(os.environ.get("SUDO_UID", os.geteuid())), int(os.environ.get("SUDO_GID", os.getegid()))


def _give(path: Path) -> None:
    os.chown(path, *owner())


def _toml(default: str, clouds: dict[str, dict[str, Any]]) -> str:
    lines = [f"default = {json.dumps(default)}"]
    for name, values in clouds.items():
        lines += ["", f"[clouds.{name}]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"
