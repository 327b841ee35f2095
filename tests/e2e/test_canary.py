"""Secrets that are known, put wherever a secret can be put, in a fabric whose processes log all they can: looked for where none may be."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from fabric.errors import FabricError
from tests.e2e.running import CREATE_TIMEOUT_S, IMPATIENT, Running, until

pytestmark = [pytest.mark.owns_machine, pytest.mark.timeout(300)]

PASSWORD = "canary-password-5d21c07e"
WRONG_PASSWORD = "canary-wrong-password-91ab44f0"
USER_DATA = "canary-user-data-c4f7e2b8"
PICTURE = "canary-private-bytes-30d9aa15"

OURS = ("api", "scheduler", "conductor-cell1", "hostd-cell1-host1")


@pytest.fixture(scope="module")
def fabric(fake_fabric: Callable[..., AbstractContextManager[Running]]) -> Iterator[Running]:
    with fake_fabric() as running:
        for name in OURS:
            settings = running.state / "settings" / f"{name}.toml"
            text = settings.read_text()
            if "log" in tomllib.loads(text):
                settings.write_text(text.replace('level = "info"', 'level = "debug"'))
            else:
                settings.write_text(f'{text}\n[log]\nlevel = "debug"\n')
            assert tomllib.loads(settings.read_text())["log"]["level"] == "debug"
            running.dev("kill", name)
        running.until_ready()
        yield running


@pytest.fixture(scope="module")
def secrets(fabric: Running, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Everything that was ever secret in this fabric, after a day in its life, bad input included."""
    admin = fabric.client()
    admin.projects.create(name="canary")
    admin.users.create(name="tenant", password=PASSWORD, project="canary")
    admin.flavors.create(name="tiny", vcpus=1, ram_mib=64, disk_gib=1)
    token = admin.tokens.issue(user="tenant", password=PASSWORD).token
    with pytest.raises(FabricError):
        admin.tokens.issue(user="tenant", password=WRONG_PASSWORD)
    with pytest.raises(FabricError):
        admin.users.create(name="tenant", password=WRONG_PASSWORD, project="canary")
    picture = tmp_path_factory.mktemp("picture") / "disk.raw"
    picture.write_bytes((b"\0" * 4096 + PICTURE.encode()).ljust(1024 * 1024, b"\0"))
    admin.images.create(name="disk", file=picture, disk_format="raw")
    user_data = f"#!/bin/sh\n# {USER_DATA}\n".encode()
    made = admin.instances.create(name="web", flavor="tiny", image="disk", user_data=user_data)
    admin.instances.wait_for(made, "ACTIVE", timeout_s=CREATE_TIMEOUT_S)
    admin.instances.console_log("web")
    hasty = fabric.client(retry=IMPATIENT)
    with pytest.raises(FabricError):
        hasty.instances.create(name="web2", flavor="no-such", image="disk", user_data=user_data)
    with pytest.raises(FabricError):
        hasty.instances.create(name="web3", flavor="tiny", image="disk", user_data=user_data * 10_000)
    admin.instances.stop("web")
    admin.instances.wait_for(made, "STOPPED", timeout_s=CREATE_TIMEOUT_S)
    password = (fabric.state / "pki" / "admin-password").read_text().strip()
    return {
        "a user's password": PASSWORD,
        "a wrong password": WRONG_PASSWORD,
        "the administrator's password": password,
        "a token": token,
        "user data": USER_DATA,
        "an image's bytes": PICTURE,
    }


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]


def _holding(paths: list[Path], secrets: Mapping[str, str], *whats: str) -> list[tuple[str, str]]:
    """Which of the secrets are in which files."""
    found = []
    for path in paths:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        found += [(str(path), what) for what in whats or secrets if secrets[what].encode() in data]
    return found


def test_no_log_and_no_audit_trail_has_a_secret(fabric: Running, secrets: Mapping[str, str]) -> None:
    logs = _files(fabric.state / "log")
    audit = fabric.state / "log" / "audit.jsonl"
    until(lambda: "tenant" in audit.read_text(), "the audit trail says what happened")

    assert {f"{name}.log" for name in OURS} <= {path.name for path in logs}
    assert audit in logs
    assert _holding(logs, secrets) == []


def test_no_store_has_a_password_or_a_token_on_its_disk(fabric: Running, secrets: Mapping[str, str]) -> None:
    stored = [path for path in _files(fabric.state) if path.suffix in {".wal", ".snap"} or path.name == "db"]

    # What is stored as it is shows that the search would find what it looks for.
    assert _holding(stored, secrets, "user data")
    assert (
        _holding(
            stored,
            secrets,
            "a user's password",
            "a wrong password",
            "the administrator's password",
            "a token",
            "an image's bytes",
        )
        == []
    )


def test_no_process_shows_a_secret_to_those_who_list_processes(
    fabric: Running, secrets: Mapping[str, str]
) -> None:
    running = {name: row["pid"] for name, row in fabric.processes().items() if row["pid"]}

    shown = [
        path
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit()
        for path in (entry / "cmdline", entry / "environ")
    ]

    assert set(OURS) <= set(running)
    found = []
    for path in shown:
        try:
            data = path.read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        found += [(str(path), what) for what, secret in secrets.items() if secret.encode() in data]
    assert found == []


def test_no_file_that_others_may_read_has_a_secret(fabric: Running, secrets: Mapping[str, str]) -> None:
    open_to_all = [path for path in _files(fabric.state) if _is_open(path, fabric.state)]
    keys = [path for path in _files(fabric.state) if path.suffix == ".key" or "password" in path.name]

    assert keys
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}
    assert _holding(open_to_all, secrets) == []


def _is_open(path: Path, root: Path) -> bool:
    """Whether another user gets at it: may read it, and pass all folders on the way."""
    if not path.stat().st_mode & 0o004:
        return False
    return all(
        folder.stat().st_mode & 0o001 for folder in path.parents if folder == root or root in folder.parents
    )


def test_no_fault_and_no_error_repeats_a_secret(fabric: Running, secrets: Mapping[str, str]) -> None:
    client = fabric.client(retry=IMPATIENT)
    told = []
    for ask in (
        lambda: client.tokens.issue(user="tenant", password=WRONG_PASSWORD),
        lambda: client.users.create(name="x" * 300, password=PASSWORD, project="canary"),
        lambda: client.instances.create(
            name="big", flavor="tiny", image="disk", user_data=USER_DATA.encode() * 10_000
        ),
    ):
        with pytest.raises(FabricError) as refused:
            ask()
        told.append(repr((refused.value.message, refused.value.facts)))
    told += [repr(server) for server in client.instances.list().instances]

    assert not [what for what, secret in secrets.items() for text in told if secret in text]
