"""What pages tell people to type, to read and to open is there. A page that lies is worse than none."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

import click
import pytest

from fabric.cli.main import cli
from fabric.cli.profiles import KNOWN as PROFILE_KEYS
from fabric.config.load import load
from fabric.config.settings import PROCESSES
from tests.unit.cli.test_tree import parse
from tests.unit.docs.pages import (
    DOCS,
    EVERY,
    ROOT,
    WRITTEN,
    Block,
    anchors,
    blocks,
    command_lines,
    links,
    name,
    spans,
)

# ------------------------------------------------------------------------------------------ commands

WRAPPED = re.compile(r'^(?:sudo )|^eval "\$\(|\)"$')
PLACEHOLDER = "fabric NOUN VERB"


def _fabric_lines(page: Path) -> list[str]:
    """Whole commands, for a shell: brackets around what may be left out are taken off."""
    lines = (WRAPPED.sub("", line).replace("[", "").replace("]", "") for line in command_lines(page))
    return [line for line in lines if line.startswith("fabric ")]


LINES = [(name(page), line) for page in WRITTEN for line in _fabric_lines(page)]
MENTIONED = sorted(
    {
        (name(page), span)
        for page in WRITTEN
        for span in spans(page)
        if span.startswith("fabric ") and not span.startswith(PLACEHOLDER)
    }
)


def test_there_are_commands_to_look_at() -> None:
    """Or the tests below would say nothing."""
    assert len(LINES) > 15
    assert len(MENTIONED) > 30


@pytest.mark.parametrize("line", [line for _, line in LINES], ids=[": ".join(each) for each in LINES])
def test_every_command_in_a_block_is_one(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert parse(line, tmp_path)


@pytest.mark.parametrize("span", [span for _, span in MENTIONED], ids=[": ".join(each) for each in MENTIONED])
def test_every_command_in_a_sentence_is_one(
    span: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sentence may name a verb, or a noun, without what belongs behind it."""
    monkeypatch.chdir(tmp_path)
    words = span.split()[1:]
    command: click.Command | None = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        command = command.get_command(click.Context(command), words.pop(0))

    assert command is not None
    if words == ["--help"]:
        return  # every command has it, and parsing it ends the program
    if words:
        assert parse(span, tmp_path)


TARGETS = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("page", EVERY, ids=name)
def test_every_make_target_is_in_the_makefile(page: Path) -> None:
    told = [*spans(page), *command_lines(page)]
    wanted = {word for text in told for word in re.findall(r"(?:^|\s)make ([a-z][a-z0-9-]*)", text)}

    assert wanted - TARGETS == set()


# ------------------------------------------------------------------------------------------ settings and scripts

SETTINGS = [block for page in WRITTEN for block in blocks(page, "toml")]
SCRIPTS = [block for page in WRITTEN for block in blocks(page, "python")]


def _title(block: Block) -> str:
    return f"{name(block.page)}: {block.before}"


@pytest.mark.parametrize("block", SETTINGS, ids=_title)
def test_every_settings_file_is_taken(block: Block, tmp_path: Path) -> None:
    """Above each stands the name of its process, or it is a profile of the command line."""
    path = tmp_path / "settings.toml"
    path.write_text(block.text)
    process = re.fullmatch(r"`(\w+)\.toml`:", block.before)
    if process is not None:
        load(PROCESSES[process[1]], process[1], path=path, environment={})
    else:
        profiles = tomllib.loads(block.text)["clouds"]
        assert {key for profile in profiles.values() for key in profile} <= set(PROFILE_KEYS)


def test_the_certificates_that_are_made_are_the_ones_that_settings_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = DOCS / "operations" / "production.md"
    monkeypatch.chdir(tmp_path)
    for number, block in enumerate(blocks(page, "python")):
        script = tmp_path / f"script_{number}.py"
        script.write_text(block.text)
        runpy.run_path(str(script), run_name="example")

    named = [
        path for block in blocks(page, "toml") for path in re.findall(r'"([^"]+\.(?:pem|key))"', block.text)
    ]
    flags = re.findall(r"-file (\S+\.(?:pem|key))", page.read_text())
    assert len(named) > 15
    assert [path for path in named if not (tmp_path / path).is_file()] == []
    assert flags
    assert [path for path in flags if not (tmp_path / "store-global" / path).is_file()] == []


def test_every_script_is_run_by_a_test() -> None:
    assert {name(block.page) for block in SCRIPTS} == {"docs/operations/production.md"}


# ------------------------------------------------------------------------------------------ files and links

TREE = {"changelog.d", "cmd", "docs", "fabric", "hostd", "protos", "requirements", "tests", "tools"}
FILES = [path for top in TREE for path in (ROOT / top).rglob("*") if "__pycache__" not in path.parts]
BARE = {path.name for path in FILES}


def _is_path(span: str) -> bool:
    """Whether a span names a file of this tree, and not one that people are to make."""
    return span.partition("/")[0] in TREE and "/" in span and not re.search(r"[A-Z]{3}|[\s…]", span)


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_every_file_named_is_there(page: Path) -> None:
    named = [span for span in spans(page) if _is_path(span)]
    bare = [span for span in spans(page) if re.fullmatch(r"[a-z_0-9]+\.(py|proto)", span)]

    assert [span for span in named if not (ROOT / span).exists()] == []
    assert [span for span in bare if span not in BARE] == []


@pytest.mark.parametrize("page", EVERY, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in links(page):
        to, _, anchor = link.partition("#")
        target = (page.parent / to).resolve() if to else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)

    assert broken == []


def test_every_page_is_in_the_index() -> None:
    """What no link leads to is not read."""
    index = DOCS / "README.md"
    listed = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)} | {index}
    pages = {page for page in EVERY if "adr" not in page.parts}

    assert {name(page) for page in pages - listed} == set()


# ------------------------------------------------------------------------------------------ words

EVENT = re.compile(r"[a-z][a-z_]*\.[a-z][a-z_]*")
ENDINGS = {
    "jsonl",
    "json",
    "key",
    "log",
    "md",
    "mjs",
    "pem",
    "pid",
    "proto",
    "py",
    "qcow2",
    "sqlite",
    "toml",
    "txt",
}
SOURCES = "\n".join(
    path.read_text() for path in FILES if path.suffix in {".py", ".proto"} and "docs" not in path.parts[-3:]
)


@pytest.mark.parametrize("page", sorted((DOCS / "operations").glob("*.md")), ids=name)
def test_every_log_event_named_is_logged(page: Path) -> None:
    events = [
        span for span in spans(page) if EVENT.fullmatch(span) and span.rpartition(".")[2] not in ENDINGS
    ]

    assert [event for event in events if f'"{event}"' not in SOURCES] == []


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_every_code_named_exists(page: Path) -> None:
    """Reasons, faults, states and constants: whoever searches for one finds it."""
    codes = {
        word
        for span in spans(page)
        for word in re.findall(r"(?<![\w.])_?[A-Z]{2,}(?:_[A-Z]+)+(?!\w)", span)
        if not word.startswith("FABRIC_")
    }

    assert [code for code in sorted(codes) if not re.search(rf"\b{code}\b", SOURCES)] == []


@pytest.mark.parametrize("page", sorted((DOCS / "howto").glob("*.md")), ids=name)
def test_adding_something_takes_at_most_five_boxes(page: Path) -> None:
    """With more of them it is not the list that is wrong."""
    boxes = re.findall(r"^- \[ \] ", page.read_text(), flags=re.MULTILINE)

    assert 1 <= len(boxes) <= 5


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_no_line_of_prose_is_too_long_to_review(page: Path) -> None:
    """Tables have long lines, and so have commands that cannot be parted."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = [
        line
        for line in text.splitlines()
        if not line.lstrip().startswith("|") and not line.startswith("    ")
    ]

    assert [line for line in lines if len(line) > 140] == []
