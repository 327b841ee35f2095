from __future__ import annotations

from pathlib import Path

import pytest

from fabric.config.docs import lines
from fabric.config.load import load
from fabric.config.settings import PROCESSES, ApiSettings, HostdSettings
from fabric.errors import InvalidRequest

API = """
blob_path = "/b"
audit_path = "/a"
[global_store]
endpoints = ["g:1"]
[cells.c1]
endpoints = ["c:1"]
"""


def _api(tmp_path: Path, text: str = "", environment: dict[str, str] | None = None) -> ApiSettings:
    path = tmp_path / "api.toml"
    # Tables go last: what follows one is in it.
    path.write_text(API + text if text.startswith("[") else text + API)
    return load(ApiSettings, "api", path=path, environment=environment or {})


def test_a_file_becomes_typed_values_with_defaults(tmp_path: Path) -> None:
    settings = _api(tmp_path)

    assert settings.blob_path == Path("/b")
    assert settings.cells["c1"].endpoints == ("c:1",)
    assert settings.log.level == "info"


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    settings = _api(
        tmp_path,
        environment={
            "FABRIC_API__LOG__LEVEL": "debug",
            "FABRIC_API__GLOBAL_STORE__ENDPOINTS": "x:1, y:2",
            "FABRIC_API__CELLS__C2__ENDPOINTS": "z:3",
            "FABRIC_API__REFLECTION": "true",
            "FABRIC_API__LIMITS__RATE_PER_S": "2.5",
            "FABRIC_OTHER__LOG__LEVEL": "nonsense of another process",
            "FABRIC_TOKEN": "of the command line",
        },
    )

    assert settings.log.level == "debug"
    assert settings.global_store.endpoints == ("x:1", "y:2")
    assert sorted(settings.cells) == ["c1", "c2"]
    assert settings.reflection is True
    assert settings.limits.rate_per_s == 2.5


@pytest.mark.parametrize(
    ("text", "environment", "field", "hint"),
    [
        ("lissten = 'x:1'\n", {}, "lissten", "did you mean listen"),
        ("[log]\nlevle = 'info'\n", {}, "log.levle", "did you mean level"),
        ("[log]\nlevel = 'loud'\n", {}, "log.level", "'loud'"),
        ("listen = 'no port'\n", {}, "listen", "regex"),
        ("drain_s = 0\n", {}, "drain_s", "> 0"),
        ("drain_s = 'soon'\n", {}, "drain_s", "float"),
        ("[limits]\nburst = 0\n", {}, "limits.burst", ">= 1"),
        ("", {"FABRIC_API__LOGG__LEVEL": "info"}, "FABRIC_API__LOGG__LEVEL", "did you mean log"),
        ("", {"FABRIC_API__LISTEN__X": "1"}, "FABRIC_API__LISTEN__X", "not a table"),
    ],
)
def test_what_is_wrong_is_named_with_what_would_be_right(
    tmp_path: Path, text: str, environment: dict[str, str], field: str, hint: str
) -> None:
    with pytest.raises(InvalidRequest) as raised:
        _api(tmp_path, text, environment)

    assert raised.value.field == field
    assert hint in raised.value.message


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "hostd.toml"
    path.write_text("state_path = '/s'\n")

    with pytest.raises(InvalidRequest, match="conductors"):
        load(HostdSettings, "hostd", path=path, environment={})


@pytest.mark.parametrize("text", ["a = ", "\xff"])
def test_a_file_that_is_not_toml_is_said_to_be_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "api.toml"
    path.write_bytes(text.encode("latin-1"))

    with pytest.raises(InvalidRequest, match="is not TOML"):
        load(ApiSettings, "api", path=path, environment={})


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot read"):
        load(ApiSettings, "api", path=tmp_path / "none.toml", environment={})


def test_every_setting_is_described() -> None:
    rows = [line.split(" | ") for line in lines() if line.startswith("| `")]

    assert len(rows) > 60
    assert [row for row in rows if not row[-1].strip(" |")] == []
    assert {process for process in PROCESSES if f"## {process}" in "\n".join(lines())} == set(PROCESSES)


def test_a_map_of_words_is_described_as_one_and_read_as_one(tmp_path: Path) -> None:
    file = tmp_path / "hostd.toml"
    file.write_text('conductors = ["c:1"]\nstate_path = "/s"\n[network.physical]\nexternal = "br-ex"\n')

    read = load(HostdSettings, "hostd", path=file, environment={})

    assert read.network.physical == {"external": "br-ex"}
    assert [line for line in lines() if line.startswith("| `network.physical.NAME` | text |")]


def test_networks_are_read_from_a_list_and_from_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "hostd.toml"
    file.write_text(
        'conductors = ["c:1"]\nstate_path = "/s"\n[network]\nblocked_cidrs = ["10.0.0.0/8", "192.0.2.7/32"]\n'
    )
    environment = {"FABRIC_HOSTD__NETWORK__BLOCKED_CIDRS": "198.51.100.0/24"}

    read = load(HostdSettings, "hostd", path=file, environment={})
    overridden = load(HostdSettings, "hostd", path=file, environment=environment)

    assert list(map(str, read.network.blocked_cidrs)) == ["10.0.0.0/8", "192.0.2.7/32"]
    assert list(map(str, overridden.network.blocked_cidrs)) == ["198.51.100.0/24"]


@pytest.mark.parametrize("word", ["10.0.0.1/8", "10.0.0.0/33", "fd00::/8", "10.0.0.0/8; accept"])
def test_what_is_no_network_is_refused_when_the_daemon_starts(tmp_path: Path, word: str) -> None:
    environment = {
        "FABRIC_HOSTD__CONDUCTORS": "c:1",
        "FABRIC_HOSTD__STATE_PATH": str(tmp_path),
        "FABRIC_HOSTD__NETWORK__BLOCKED_CIDRS": word,
    }

    with pytest.raises(InvalidRequest) as raised:
        load(HostdSettings, "hostd", path=None, environment=environment)

    assert raised.value.field.startswith("network.blocked_cidrs")
    assert repr(word) in raised.value.message
    assert "such as" in raised.value.message
