from __future__ import annotations

import pytest
from click.shell_completion import ShellComplete

from fabric.cli.main import NOUNS, cli
from fabric.cli.session import Session
from fabric.errors import Unavailable
from tests.unit.cli.shell import Shell


def completed(shell: Shell, words: list[str], incomplete: str) -> list[str]:
    found = ShellComplete(cli, {"obj": Session(shell.world())}, "fabric", "_FABRIC_COMPLETE").get_completions(
        words, incomplete
    )
    return [item.value for item in found]


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_every_shell_gets_a_script_that_calls_back(shell: Shell, name: str) -> None:
    script = shell.ok("completion", name)

    assert "_FABRIC_COMPLETE" in script
    assert "fabric" in script


def test_nouns_and_verbs_and_options_are_completed(shell: Shell) -> None:
    assert completed(shell, [], "ser") == ["server"]
    assert set(completed(shell, [], "")) == set(NOUNS)
    assert completed(shell, ["server"], "st") == ["start", "stop"]
    assert "--wait-timeout" in completed(shell, ["server", "start"], "--wait")
    assert completed(shell, ["flavor", "list", "-f"], "j") == ["json"]


def test_names_are_completed_from_the_api(shell: Shell) -> None:
    for name in ("web-2", "web-1", "db"):
        shell.api.put_instance(name)
    found = completed(
        shell, ["--endpoint", "api.test:7443", "--token", "fabtoken-good", "server", "show"], "web"
    )

    assert found == ["web-1", "web-2"]


def test_an_api_that_is_away_completes_nothing_and_says_nothing(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.api.fail["list_instances"] = [Unavailable("away")] * 9

    shell.can_ask = True

    assert completed(shell, ["--endpoint", "a:1", "--username", "ann", "server", "show"], "web") == []
    assert completed(shell, ["--endpoint", "a:1", "--token", "fabtoken-good", "server", "show"], "web") == []
    assert completed(shell, ["server", "show"], "web") == []
    assert capsys.readouterr() == ("", "")
