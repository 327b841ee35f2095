from __future__ import annotations

import json
from typing import Any

import click
import pytest
from click.testing import CliRunner

from fabric.cli.output import Cell, Shape, harmless, print_list, print_one

COLUMNS = ("ID", "Name", "Size")
ROWS = (("2", "web", 10), ("1", "db", 9), ("3", None, None))


def printed(
    shape: Shape, columns: tuple[str, ...] = COLUMNS, rows: tuple[tuple[Any, ...], ...] = ROWS
) -> str:
    @click.command()
    def command() -> None:
        print_list(shape, columns, rows)

    result = CliRunner().invoke(command, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_a_table_is_ruled_and_aligned() -> None:
    assert printed(Shape(), rows=ROWS[:2]) == (
        "+----+------+------+\n"
        "| ID | Name | Size |\n"
        "+----+------+------+\n"
        "| 2  | web  | 10   |\n"
        "| 1  | db   | 9    |\n"
        "+----+------+------+\n"
    )


def test_wide_letters_take_two_columns() -> None:
    lines = printed(Shape(), ("Name",), (("日本",), ("abcd",))).splitlines()

    assert lines[3] == "| 日本 |"
    assert lines[4] == "| abcd |"


def test_json_is_an_array_of_objects_with_the_columns_names_and_types() -> None:
    assert json.loads(printed(Shape(format="json")))[1:] == [
        {"ID": "1", "Name": "db", "Size": 9},
        {"ID": "3", "Name": None, "Size": None},
    ]


def test_yaml_is_a_list_of_mappings_with_quoted_strings() -> None:
    text = printed(Shape(format="yaml"), ("ID", "Name"), (("1", "no: yes"), ("2", 'say "ä"')))

    assert text == '- "ID": "1"\n  "Name": "no: yes"\n- "ID": "2"\n  "Name": "say \\"\\u00e4\\""\n'
    assert printed(Shape(format="yaml"), rows=()) == "[]\n"


def test_value_is_bare_and_one_line_for_each() -> None:
    assert printed(Shape(format="value", columns=("name", "id")), rows=(("1", "a\nb", 0),)) == "a\\nb 1\n"


def test_columns_are_chosen_in_the_order_asked_for_whatever_their_case() -> None:
    assert printed(Shape(format="value", columns=("size", "ID"))).splitlines()[0] == "10 2"


def test_numbers_sort_by_size_and_what_is_missing_comes_last() -> None:
    text = printed(Shape(format="value", columns=("ID",), sort=("size",)))

    assert text.split() == ["1", "2", "3"]


def test_an_unknown_column_is_answered_with_the_known_ones() -> None:
    with pytest.raises(click.UsageError, match="there are ID, Name, Size"):
        printed(Shape(columns=("colour",)))


def test_people_and_programs_read_a_cell_differently() -> None:
    rows = ((Cell({"net": ["10.0.0.5"]}, "net=10.0.0.5"),),)

    assert "| net=10.0.0.5 |" in printed(Shape(), ("Networks",), rows)
    assert json.loads(printed(Shape(format="json"), ("Networks",), rows)) == [
        {"Networks": {"net": ["10.0.0.5"]}}
    ]


def test_one_thing_is_printed_field_by_field(capsys: pytest.CaptureFixture[str]) -> None:
    print_one(
        Shape(),
        {"id": "1", "ports": ["a", "b"], "is_up": True, "labels": {"a": "b"}, "lines": Cell(2, "x\ny")},
    )

    assert capsys.readouterr().out.splitlines()[3:-1] == [
        "| id     | 1     |",
        "| ports  | a, b  |",
        "| is_up  | True  |",
        "| labels | a='b' |",
        "| lines  | x     |",
        "|        | y     |",
    ]


def test_what_a_terminal_would_obey_is_shown_as_escapes() -> None:
    assert harmless("a\x1b[2Jb\x9b\r\nc\u202e") == "a\\x1b[2Jb\\x9b\\r\nc\\u202e"
    assert "\x1b" not in printed(Shape(), ("Name",), (("\x1b]0;owned\x07",),))
    assert json.loads(printed(Shape(format="json"), ("Name",), (("\x1b",),))) == [{"Name": "\x1b"}]
