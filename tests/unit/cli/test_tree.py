"""What holds for every verb, also for those that are yet to come."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path

import click
import pytest

from fabric.cli import images
from fabric.cli.main import NOUNS, cli
from fabric.cli.params import Keys
from fabric.cli.session import Session
from fabric.client.images import FORMATS
from tests.unit.cli.shell import verbs

ROOT = Path(__file__).resolve().parents[3]
VERBS = verbs()
REDIRECT = re.compile(r"\s+>\s*\S+$")


def examples_of(command: click.Command) -> list[str]:
    text = inspect.cleandoc(command.epilog or "")
    lines = (re.sub(r'^(sudo |eval "\$\()|\)"$', "", line.strip()) for line in text.splitlines())
    return [line for line in lines if line.startswith("fabric ")]


EXAMPLES = [(words, line) for words, command in VERBS.items() for line in examples_of(command)]


def parse(line: str, folder: Path) -> tuple[str, ...]:
    """The words of the verb that a line runs, after all of its options and arguments are understood. Nothing is run.

    Files that are to be read exist: what a line is about is its words.
    """
    words = [
        str(Path(word).name) if word.startswith("~") else word for word in shlex.split(REDIRECT.sub("", line))
    ]
    for word in words:
        if re.search(r"\.(qcow2|raw|sh|yaml|pem|pub)$|^vmlinuz$", word):
            (folder / word).parent.mkdir(parents=True, exist_ok=True)
            (folder / word).touch()
    assert words.pop(0) == "fabric"
    context = cli.make_context("fabric", words, obj=Session())
    command: click.Command = cli
    named: tuple[str, ...] = ()
    while isinstance(command, click.Group):
        arguments = [*context._protected_args, *context.args]
        name, found, rest = command.resolve_command(context, arguments)
        assert name is not None
        assert found is not None
        named, command = (*named, name), found
        context = command.make_context(name, rest, parent=context)
    return named


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_every_verb_has_an_example(words: tuple[str, ...]) -> None:
    assert examples_of(VERBS[words])


@pytest.mark.parametrize(("words", "line"), EXAMPLES, ids=[line for _, line in EXAMPLES])
def test_every_example_runs_its_own_verb(
    words: tuple[str, ...], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert parse(line, tmp_path) == words


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_every_verb_and_option_says_what_it_is_for(words: tuple[str, ...]) -> None:
    command = VERBS[words]
    silent = [
        it.name for it in command.params if isinstance(it, click.Option) and not it.help and not it.hidden
    ]

    assert (command.help or "").strip().endswith(".")
    assert silent == []


NUMBERS = [
    (words, option)
    for words, command in VERBS.items()
    if words[0] != "dev"  # no request is made of what it is told
    for option in command.params
    if isinstance(option.type, click.types.IntParamType)
]


@pytest.mark.parametrize(
    ("words", "option"), NUMBERS, ids=lambda it: getattr(it, "name", None) or " ".join(it)
)
@pytest.mark.parametrize("number", [2**31, -(2**31), 2**64])
def test_no_number_is_taken_that_no_request_can_hold(
    words: tuple[str, ...], option: click.Option, number: int
) -> None:
    context = click.Context(VERBS[words])

    with pytest.raises(click.BadParameter, match=str(number)):
        option.type.convert(str(number), option, context)


@pytest.mark.parametrize("words", [it for it in VERBS if it[0] == "dev"], ids=" ".join)
def test_a_fabrics_folder_is_named_by_those_who_may_not_read_it(words: tuple[str, ...]) -> None:
    """`fabric dev env` was refused to whoever had called sudo. To root nothing is unreadable: so the option is asked."""
    (state,) = (it for it in VERBS[words].params if it.name == "state")

    assert isinstance(state.type, click.Path)
    assert not state.type.readable


KEYED = [
    (words, option)
    for words, command in VERBS.items()
    for option in command.params
    if isinstance(option.type, Keys)
]


@pytest.mark.parametrize(("words", "option"), KEYED, ids=lambda it: getattr(it, "name", None) or " ".join(it))
def test_keys_are_shown_as_they_are_typed(words: tuple[str, ...], option: click.Option) -> None:
    context = click.Context(VERBS[words])
    shown = option.make_metavar(context)

    assert option.type.convert(shown, option, context).keys() == set(option.type.keys)  # type: ignore[attr-defined]  # one of Keys


def test_every_noun_is_where_its_entry_says() -> None:
    context = click.Context(cli)

    assert {name: (cli.get_command(context, name) or cli).name for name in NOUNS} == {
        name: name for name in NOUNS
    }


def test_the_formats_offered_are_the_clients() -> None:
    assert tuple(FORMATS) == images.FORMATS


DOC = (ROOT / "docs" / "concepts" / "command-line.md").read_text()
TRANSLATIONS = re.findall(r"^\| `openstack [^`]+` \| `(fabric [^`]+)`", DOC, flags=re.MULTILINE)


def test_the_table_for_people_from_openstack_is_not_empty() -> None:
    assert len(TRANSLATIONS) > 20


@pytest.mark.parametrize("ours", TRANSLATIONS)
def test_every_translated_command_is_one_of_ours(
    ours: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert parse(ours, tmp_path) in VERBS
