from __future__ import annotations

from pathlib import Path

import pytest

from fabric.cli.profiles import Login, read_profile
from fabric.errors import InvalidRequest

TWO = """
default = "lab"

[clouds.lab]
endpoint = "10.0.0.5:7443"
ca_file = "lab-ca.pem"
username = "nebula_admin"
project = "nebula_prod"
password_file = "secret"

[clouds.home]
endpoint = "10.0.0.6:7443"
"""


@pytest.fixture
def clouds(tmp_path: Path) -> Path:
    (tmp_path / "clouds.toml").write_text(TWO)
    (tmp_path / "secret").write_text("correct horse\n")
    return tmp_path / "clouds.toml"


def test_the_default_profile_is_used_when_none_is_named(clouds: Path) -> None:
    assert read_profile(clouds, "") == Login(
        endpoint="10.0.0.5:7443",
        ca_file=clouds.parent / "lab-ca.pem",
        username="nebula_admin",
        password="correct horse",
        project="nebula_prod",
    )


def test_a_named_profile_wins(clouds: Path) -> None:
    assert read_profile(clouds, "home").endpoint == "10.0.0.6:7443"


def test_an_only_profile_needs_no_default(tmp_path: Path) -> None:
    (tmp_path / "clouds.toml").write_text('[clouds.home]\nendpoint = "a:1"\n')

    assert read_profile(tmp_path / "clouds.toml", "").endpoint == "a:1"


def test_no_file_is_no_profile_unless_one_is_asked_for(tmp_path: Path) -> None:
    assert read_profile(tmp_path / "absent", "") == Login()
    with pytest.raises(InvalidRequest, match="lab"):
        read_profile(tmp_path / "absent", "lab")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[clouds.lab\n", "is not TOML"),
        ('clouds = "lab"\n', r"tables named \[clouds.NAME\]"),
        ('default = "away"\n[clouds.lab]\n', "no cloud 'away'; there is lab"),
        ('[clouds.lab]\nendpont = "a:1"\n', "says 'endpont'; known are endpoint"),
        ("[clouds.lab]\nendpoint = 5\n", "endpoint of cloud 'lab' must be a string"),
        ('[clouds.lab]\npassword_file = "absent"\n', "absent, the password file"),
        ('[clouds.lab]\npassword_file = "binary"\n', "cannot be read: it is not text"),
        ("default = []\n[clouds.lab]\n", "default must be the name of a cloud"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "clouds.toml").write_text(text)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidRequest, match=told):
        read_profile(tmp_path / "clouds.toml", "")


def test_options_win_over_the_profile(clouds: Path) -> None:
    found = Login(project="other").over(read_profile(clouds, ""))

    assert (found.project, found.username, found.password) == ("other", "nebula_admin", "correct horse")


def test_a_profiles_credentials_go_to_its_own_endpoint_only(clouds: Path) -> None:
    assert Login(endpoint="evil.test:1").over(read_profile(clouds, "")) == Login(endpoint="evil.test:1")


def test_a_password_is_never_sent_for_another_user(clouds: Path) -> None:
    assert Login(username="mallory").over(read_profile(clouds, "")).password == ""


def test_a_login_does_not_show_its_secrets() -> None:
    assert "hush" not in repr(Login(endpoint="a:1", token="hush-token", password="hush"))
