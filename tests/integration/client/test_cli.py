"""The installed command as a process: what it imports, and that it reaches an API over TLS by a profile alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trustme

from tests.integration.client.served import served
from tests.unit.client.fake_api import PASSWORD, FakeApi

ROOT = Path(__file__).resolve().parents[3]
HEAVY = ("grpc", "google.protobuf", "cryptography", "rich", "structlog", "fabric.client", "fabric.pb")
LOADED = f"""
import sys
from fabric.cli.main import cli
try:
    cli(sys.argv[1:], prog_name="fabric")
finally:
    print("loaded:", [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""


def fabric(*words: str, home: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (sys.executable, str(ROOT / "cmd" / "fabric"), *words),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(ROOT), **environ},
    )


@pytest.mark.parametrize(
    "words",
    [
        ("--version",),
        ("--help",),
        ("server", "create", "--help"),
        ("image", "create", "--help"),
        ("keypair", "create", "--help"),
        ("completion", "bash"),
    ],
    ids=" ".join,
)
def test_what_asks_no_api_loads_nothing_to_ask_it_with(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        (sys.executable, "-c", LOADED, *words),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=ROOT,
    )

    assert done.stderr == "loaded: []\n"


def test_a_profile_is_all_that_a_command_needs(tmp_path: Path) -> None:
    api, authority = FakeApi(), trustme.CA()
    api.now_s = int(time.time())
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    folder = tmp_path / ".config" / "cellfabric"
    folder.mkdir(parents=True)
    with served(api, authority=authority) as where:
        (folder / "clouds.toml").write_text(
            f'[clouds.lab]\nendpoint = "{where.endpoint}"\nca_file = "../../ca.pem"\nusername = "nebula_admin"\n'
            f'password_file = "secret"\n'
        )
        (folder / "secret").write_text(PASSWORD)
        made = fabric("flavor", "create", "--ram", "64", "m1", "-f", "json", home=tmp_path)
        key = fabric("keypair", "create", "nebula_key", home=tmp_path)
        names = fabric(
            home=tmp_path,
            _FABRIC_COMPLETE="bash_complete",
            COMP_WORDS="fabric flavor show m",
            COMP_CWORD="3",
        )

    assert (made.stderr, json.loads(made.stdout)["name"]) == ("", "m1")
    assert key.stdout.startswith("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    assert names.stdout == "plain,m1\n"
    assert api.issued == 1
    assert not list(tmp_path.glob("**/*.part"))


def test_a_failed_call_ends_in_one_line_and_its_code(tmp_path: Path) -> None:
    done = fabric(
        *("--endpoint", "http://127.0.0.1:1", "--token", "hush", "--timeout", "0.5", "flavor", "list"),
        home=tmp_path,
    )

    assert done.returncode == 7
    assert done.stderr == "fabric: nothing listens at 127.0.0.1:1\n"
