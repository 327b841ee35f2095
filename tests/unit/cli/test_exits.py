from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest

from fabric import errors
from fabric.cli.exits import MEANING, exit_code, explain
from fabric.cli.main import cli
from fabric.errors import (
    AlreadyExists,
    Ambiguous,
    Bug,
    Conflict,
    FabricError,
    InvalidRequest,
    NoCapacity,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    Reason,
    TooMuch,
    Unauthenticated,
    Unavailable,
    WrongState,
)
from tests.unit.cli.shell import Shell

CODES: dict[type[FabricError], tuple[FabricError, int]] = {
    InvalidRequest: (InvalidRequest("must be at least 64", field="flavor.ram_mib"), 2),
    Unauthenticated: (Unauthenticated("who"), 3),
    PermissionDenied: (PermissionDenied("no"), 3),
    NotFound: (NotFound("no"), 4),
    AlreadyExists: (AlreadyExists("taken"), 5),
    WrongState: (WrongState("no"), 5),
    Conflict: (Conflict("changed"), 5),
    QuotaExceeded: (QuotaExceeded("full"), 6),
    NoCapacity: (NoCapacity("full"), 6),
    TooMuch: (TooMuch("often"), 7),
    Unavailable: (Unavailable("away"), 7),
    Ambiguous: (Ambiguous("lost"), 7),
    Bug: (Bug("ours"), 1),
}


def kinds(kind: type[FabricError]) -> set[type[FabricError]]:
    return {kind}.union(*(kinds(below) for below in kind.__subclasses__()))


@pytest.mark.parametrize("kind", CODES, ids=lambda it: it.__name__)
def test_scripts_can_rely_on_the_codes(kind: type[FabricError]) -> None:
    error, code = CODES[kind]

    assert exit_code(error) == code
    assert code in MEANING


def test_every_error_has_been_thought_of() -> None:
    assert {it for it in kinds(FabricError) if it.__module__ == errors.__name__} - {
        FabricError
    } == CODES.keys()


def test_what_is_too_large_is_wrong_as_it_is() -> None:
    assert exit_code(TooMuch("large", reason=Reason.TOO_LARGE)) == 2


def test_a_field_is_named_once() -> None:
    assert (
        explain(InvalidRequest("must be at least 64", field="flavor.ram_mib"))
        == "flavor.ram_mib: must be at least 64"
    )
    assert explain(InvalidRequest("name is empty", field="name")) == "name is empty"


@pytest.mark.parametrize(
    "kind",
    [it for it in CODES if it not in {Unavailable, Ambiguous, TooMuch, Conflict, Unauthenticated}],
    ids=lambda it: it.__name__,
)
def test_an_error_ends_the_command_with_its_code_and_one_message(
    shell: Shell, kind: type[FabricError]
) -> None:
    error, code = CODES[kind]
    shell.api.fail["list_flavors"] = [error]
    result = shell.run("flavor", "list")

    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith("fabric: ")
    assert "Traceback" not in result.output


def test_debug_shows_where_an_error_comes_from(shell: Shell) -> None:
    result = shell.run("--debug", "flavor", "show", "absent")

    assert isinstance(result.exception, NotFound)


def test_an_error_text_cannot_play_with_the_terminal(shell: Shell) -> None:
    shell.api.fail["list_flavors"] = [NotFound("\x1b[2J")]

    assert "\x1b" not in shell.run("flavor", "list").stderr


def test_a_misspelt_noun_is_answered_with_the_nearest(shell: Shell) -> None:
    result = shell.run("serve", "list")

    assert result.exit_code == 2
    assert "server" in result.stderr


def test_a_name_is_told_once(shell: Shell) -> None:
    shell.api.fail["delete_flavor"] = [WrongState("it is in use")]

    assert (
        shell.run("flavor", "delete", "m1", "m2").stderr
        == "fabric: m1: it is in use\nfabric: there is no m2\n"
    )


def test_several_names_are_all_tried_and_the_first_failure_decides(shell: Shell) -> None:
    shell.ok("flavor", "create", "--ram", "64", "m1")
    result = shell.run("flavor", "delete", "absent", "m1")

    assert result.exit_code == 4
    assert "absent" in result.stderr
    assert shell.api.flavors == {}


@pytest.mark.parametrize(
    "words", [("server", "show"), ("flavor", "delete"), ("network", "create")], ids=" ".join
)
def test_an_argument_that_is_not_utf_8_is_told_as_such(shell: Shell, words: tuple[str, ...]) -> None:
    result = shell.run(*words, "caf\udce9")

    assert result.exit_code == 2
    assert result.stderr == "fabric: 'caf\\udce9' is not UTF-8\n"


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["server", "list", "--help"]])
def test_help_that_cannot_be_written_is_told_in_one_line(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`fabric --help > FILE` on a full disk ended in a traceback: the root's help is written before any verb is called."""
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            cli(words, prog_name="fabric")
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()

    assert ended.value.code == 1
    assert capsys.readouterr().err == "fabric: the system: No space left on device\n"


def test_an_empty_name_among_several_is_told_without_it(shell: Shell) -> None:
    shell.api.fail["delete_flavor"] = [InvalidRequest("flavor is required", field="flavor")]

    assert shell.run("flavor", "delete", "").stderr == "fabric: flavor is required\n"


@pytest.mark.parametrize(
    ("needed", "advice"),
    [("system", "--cloud"), ("root", "sudo"), ("member", "ask an administrator for the role")],
)
def test_who_may_not_is_told_what_would_help(needed: str, advice: str) -> None:
    assert advice in explain(PermissionDenied("you may not", needed=needed))
