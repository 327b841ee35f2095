"""Whom to talk to and as whom: from options and the environment, then from a profile in a TOML file.

default = "lab"

[clouds.lab]
endpoint = "10.0.0.5:7443"
ca_file = "lab-ca.pem"          # relative to this file
username = "nebula_admin"
project = "nebula_prod"
password_file = "lab-password"  # or `password`, or FABRIC_PASSWORD, or the question at `fabric login`
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fabric.errors import InvalidRequest

KNOWN = ("endpoint", "ca_file", "token", "username", "password", "password_file", "project")
"""What a profile may say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """An API and an identity. Empty is not given."""

    endpoint: str = ""
    ca_file: Path | None = None
    token: str = field(default="", repr=False)
    username: str = ""
    password: str = field(default="", repr=False)
    project: str = ""

    def over(self, lower: Login) -> Login:
        """This login, with `lower`'s values where it has none.

        Somebody who names another user does not mean the lower login's token or password, which are that one's user's.
        """
        if self.username and self.username != lower.username:
            lower = replace(lower, token="", password="")
        if self.endpoint and self.endpoint != lower.endpoint:
            # Credentials go to the server they are for, and to no other.
            lower = Login()
        return Login(
            endpoint=self.endpoint or lower.endpoint,
            ca_file=self.ca_file or lower.ca_file,
            token=self.token or lower.token,
            username=self.username or lower.username,
            password=self.password or lower.password,
            project=self.project or lower.project,
        )


def read_profile(path: Path, cloud: str) -> Login:
    """The profile `cloud` of a file; with an empty name the file's default, or its only one. No file is no profile.

    Raises:
        InvalidRequest: the file or the profile is not as described above, naming what is wrong.
    """
    try:
        data = tomllib.loads(path.read_text())
    except FileNotFoundError:
        if cloud:
            raise InvalidRequest(
                f"cloud {cloud!r} is in no file: {path} is not there", field="cloud"
            ) from None
        return Login()
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}", field="cloud") from None
    except ValueError as error:
        raise InvalidRequest(f"{path} is not TOML: {error}", field="cloud") from None
    clouds = data.get("clouds", {})
    if not isinstance(clouds, dict) or not all(isinstance(it, dict) for it in clouds.values()):
        raise InvalidRequest(f"{path}: profiles are tables named [clouds.NAME]", field="cloud")
    default = data.get("default", "")
    if not isinstance(default, str):
        raise InvalidRequest(f"{path}: default must be the name of a cloud", field="cloud")
    name = cloud or default or (next(iter(clouds)) if len(clouds) == 1 else "")
    if not name:
        return Login()
    if name not in clouds:
        there = ", ".join(sorted(clouds)) or "none"
        raise InvalidRequest(f"{path} has no cloud {name!r}; there is {there}", field="cloud")
    return _login(clouds[name], path, name)


def _login(values: Mapping[str, object], path: Path, name: str) -> Login:
    for key, value in values.items():
        if key not in KNOWN:
            raise InvalidRequest(
                f"{path}: cloud {name!r} says {key!r}; known are {', '.join(KNOWN)}", field="cloud"
            )
        if not isinstance(value, str):
            raise InvalidRequest(f"{path}: {key} of cloud {name!r} must be a string", field="cloud")
    said = {key: str(value) for key, value in values.items()}
    near = path.parent
    password = said.get("password", "")
    if "password_file" in said:
        try:
            password = (near / Path(said["password_file"]).expanduser()).read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            raise InvalidRequest(
                f"{said['password_file']}, the password file of cloud {name!r}, cannot be read: {why}",
                field="password_file",
            ) from None
    return Login(
        endpoint=said.get("endpoint", ""),
        ca_file=near / Path(said["ca_file"]).expanduser() if "ca_file" in said else None,
        token=said.get("token", ""),
        username=said.get("username", ""),
        password=password,
        project=said.get("project", ""),
    )
