"""What is stored has a message, and its words have the same numbers on disk as in memory."""

from __future__ import annotations

import dataclasses
import enum
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from fabric.errors import Bug
from fabric.store import codec, keys


def test_every_key_has_a_record_that_can_be_stored() -> None:
    stored = {str, *codec.RECORDS}

    assert [key.template for key in keys.KEYS if key.record not in stored] == []


def _enums() -> Iterator[tuple[str, type[enum.Enum], Any]]:
    """Every enum field of every record: where it is, our enum, the message's."""
    for kind, message in codec.RECORDS.items():
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            hint, descriptor = hints[field.name], message.DESCRIPTOR.fields_by_name[field.name]
            if isinstance(hint, type) and issubclass(hint, enum.Enum):
                yield f"{kind.__name__}.{field.name}", hint, descriptor.enum_type


def test_a_words_number_is_the_same_in_memory_and_on_disk() -> None:
    """A number without a name in the protos is stored all the same, and means nothing to whoever reads the store by them."""
    found = list(_enums())

    assert found
    for where, ours, stored in found:
        assert stored is not None, f"{where} is stored as a number without a name"
        prefix = f"{''.join(f'_{it}' if it.isupper() else it for it in stored.name).lstrip('_').upper()}_"
        # Zero is what is not set, and there each side may have its own word.
        names = {value.number: value.name.removeprefix(prefix) for value in stored.values if value.number}
        assert names == {each.value: each.name for each in ours if each.value}, where


@pytest.mark.parametrize("row", keys.KEYS, ids=lambda row: row.template)
def test_bytes_that_are_no_such_record_are_a_bug_that_names_the_record_and_not_the_bytes(
    row: keys.Key[object],
) -> None:
    """Plain text said so in an error of Python's, which whoever guards against broken records does not expect."""
    with pytest.raises(Bug) as raised:
        codec.decode(row.record, b"\xffsecret")

    assert row.record.__name__ in raised.value.message
    assert "secret" not in raised.value.message
