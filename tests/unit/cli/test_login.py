from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fabric.cli.session import World
from tests.unit.cli.shell import ENDPOINT, Shell
from tests.unit.client.fake_api import PASSWORD

BY_PASSWORD = {
    "FABRIC_ENDPOINT": ENDPOINT,
    "FABRIC_USERNAME": "nebula_admin",
    "FABRIC_PASSWORD": PASSWORD,
    "FABRIC_PROJECT": "nebula_prod",
}


@pytest.fixture
def by_password(tmp_path: Path) -> Shell:
    """A command line with a user and a password."""
    return Shell(tmp_path, environ=dict(BY_PASSWORD))


def test_a_password_is_used_once_and_the_token_after_that(by_password: Shell) -> None:
    by_password.ok("flavor", "list")
    by_password.ok("flavor", "list")

    assert by_password.api.issued == 1
    assert [token for _, token in by_password.logins] == ["", "fabtoken-1", "fabtoken-1"]


def test_a_token_that_was_revoked_meanwhile_is_renewed(by_password: Shell) -> None:
    by_password.ok("flavor", "list")
    by_password.api.tokens.clear()

    by_password.ok("flavor", "list")
    assert by_password.api.issued == 2


def test_a_wrong_password_is_not_repeated_on_the_screen(by_password: Shell) -> None:
    by_password.environ["FABRIC_PASSWORD"] = "wrong battery"
    result = by_password.run("flavor", "list")

    assert result.exit_code == 3
    assert "wrong battery" not in result.output


def test_login_asks_for_the_password_where_there_is_somebody_to_ask(tmp_path: Path) -> None:
    shell = Shell(tmp_path, environ={"FABRIC_ENDPOINT": ENDPOINT, "FABRIC_USERNAME": "nebula_admin"})
    shell.can_ask = True
    result = shell.run("login", text=f"{PASSWORD}\n")

    assert result.exit_code == 0
    assert PASSWORD not in result.output
    assert shell.ok("flavor", "list", "-f", "json") == "[]\n"


def test_a_script_without_a_password_is_told_and_not_asked(tmp_path: Path) -> None:
    shell = Shell(tmp_path, environ={"FABRIC_ENDPOINT": ENDPOINT, "FABRIC_USERNAME": "nebula_admin"})
    result = shell.run("flavor", "list")

    assert result.exit_code == 3
    assert "FABRIC_PASSWORD" in result.stderr


def test_without_an_endpoint_it_says_where_to_put_one(tmp_path: Path) -> None:
    result = Shell(tmp_path, environ={}).run("flavor", "list")

    assert result.exit_code == 2
    assert "FABRIC_ENDPOINT" in result.stderr
    assert str(tmp_path / ".config" / "cellfabric" / "clouds.toml") in result.stderr


def test_a_profile_is_all_that_is_needed(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        f'[clouds.lab]\nendpoint = "{ENDPOINT}"\nusername = "nebula_admin"\npassword = "{PASSWORD}"\n'
    )
    shell = Shell(tmp_path, environ={"FABRIC_CLOUDS_FILE": str(tmp_path / "c.toml")})

    shell.ok("--cloud", "lab", "flavor", "list")
    assert shell.logins[0][0].endpoint == ENDPOINT


def test_the_environments_token_needs_no_login(shell: Shell) -> None:
    shell.ok("flavor", "list")

    assert shell.api.issued == 0


def test_token_issue_prints_a_token_for_programs(by_password: Shell) -> None:
    assert by_password.ok("token", "issue", "-f", "value", "-c", "id") == "fabtoken-1\n"
    assert by_password.json("token", "issue", "-c", "expires") == {"expires": "2026-09-21T15:13:20Z"}


def test_token_revoke_ends_the_token_and_forgets_it(by_password: Shell) -> None:
    by_password.ok("login")
    by_password.ok("token", "revoke")

    assert by_password.api.tokens == set()
    assert by_password.run("token", "revoke").exit_code == 3


def test_token_show_says_who_is_asking(shell: Shell) -> None:
    assert shell.json("token", "show")["user_name"] == "nebula_admin"


def test_without_standard_input_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)

    assert not World().can_ask()
