from __future__ import annotations

from fabric.cli.docs import page
from fabric.cli.exits import MEANING
from tests.unit.cli.shell import verbs
from tests.unit.cli.test_tree import DOC

TEXT = "\n".join(page())


def test_every_verb_is_on_the_page_with_its_options() -> None:
    absent = [words for words in verbs() if f"\n## fabric {' '.join(words)}\n" not in TEXT]

    assert absent == []
    assert "| `--wait-timeout SECONDS` |" in TEXT


def test_what_people_read_of_exit_codes_is_what_the_command_line_does() -> None:
    for code, meaning in MEANING.items():
        assert f"| {code} | {meaning} |" in TEXT
        assert f"| {code} | {meaning} |" in DOC
