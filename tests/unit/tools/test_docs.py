"""Pages are compared byte by byte, so what a cell may hold must not change a table's shape."""

from __future__ import annotations

from fabric import errors
from fabric.store import keys
from tools import api_docs, docs


def test_a_cell_cannot_break_its_table() -> None:
    lines = list(docs.table(("a", "b"), [("one|two", "first\n    second")]))

    assert lines == ["| a | b |", "| --- | --- |", r"| one\|two | first second |"]


def test_every_key_is_on_its_page() -> None:
    text = "\n".join(docs.stored_keys())

    assert [key.template for key in keys.KEYS if f"| `{key.template}` |" not in text] == []


def test_every_error_and_reason_is_on_its_page() -> None:
    text = "\n".join(docs.error_reasons())
    kinds = {kind.__name__ for kind in docs.error_kinds(errors.FabricError)} - {"FabricError"}

    assert [name for name in kinds if f"| `{name}` |" not in text] == []
    assert [reason for reason in errors.Reason if f"`{reason}`" not in text] == []


def test_every_method_of_ours_says_who_may_call_it() -> None:
    methods = [
        method
        for file in docs.proto_files()
        if file.package.startswith("fabric.")
        for service in file.services_by_name.values()
        for method in service.methods
    ]

    assert methods
    assert [method.full_name for method in methods if docs.caller(method) == "unspecified"] == []


def test_every_method_and_field_of_the_api_is_on_its_page() -> None:
    """With the comment that stands at it in protos/: an API is known by its comments."""
    lines = list(api_docs.page(docs.ROOT / "protos"))
    files = [file for file in docs.proto_files() if not file.package.startswith(api_docs.LEFT_OUT)]
    services = [service for file in files for service in file.services_by_name.values()]
    messages = [message for file in files for message in file.message_types_by_name.values()]
    rows = sum(len(service.methods) for service in services) + sum(len(it.fields) for it in messages)
    values = sum(len(kind.values) for file in files for kind in file.enum_types_by_name.values())

    assert [it.full_name for it in (*services, *messages) if f"## {it.full_name}" not in lines] == []
    assert len([line for line in lines if line.startswith("| `")]) == rows + values
    assert [line for line in lines if line.startswith("| `") and line.endswith("|  |")] == []
