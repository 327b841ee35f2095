"""Requests that nobody should send: each field of each message out of its rule, and bytes that are no message at all."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from fabric.rpc.method import Method

TEXTS: Sequence[str] = (
    *(
        "",
        "x",
        "x" * 64,
        "x" * 256,
        "x" * 100_000,
        "\x00",
        "a\nb",
        "\x1b[2J",
        "\u202ecod.exe",
        "é\N{GRINNING FACE}",
    ),
    *(
        "../../etc/shadow",
        "a/b",
        "%2e%2e%2f",
        "%s%n",
        "' OR 1=1 --",
        "{0.__class__}",
        "-1",
        "NaN",
        "*",
        ".*",
        "(a+)+$",
    ),
    *("00000000-0000-4000-8000-000000000001", "0" * 64, "fab_" + "A" * 43, "a" * 255 + "!"),
)
INT32 = (0, 1, -1, 2**31 - 1, -(2**31))
INT64 = (*INT32, 2**53, 2**63 - 1, -(2**63))
BYTES = (b"", b"\x00", b"\xff" * 70_000, b"x" * 300_000)
ENUMS = (0, 1, 2, 77, -1)


def odd_requests(methods: Sequence[Method], chance: random.Random) -> Iterator[tuple[Method, bytes]]:
    """Without end: every method in turn."""
    while True:
        for method in methods:
            yield method, _odd(method.request, chance)


def _odd(kind: type[Message], chance: random.Random) -> bytes:
    match chance.randrange(8):
        case 0:
            return chance.randbytes(chance.randrange(200))
        case 1:
            return b"\x0b" * chance.choice([1, 100, 10_000])  # groups that never end
        case 2:
            return b"\x0a\x02\xff\xfe"  # text that is none
        case 3:
            message = _filled(kind, chance)
            return message + b"\xc2\x3e\x05owned"  # a field that nobody knows
        case 4:
            message = _filled(kind, chance)
            return message[: chance.randrange(len(message) + 1)]
        case 5:
            data = bytearray(_filled(kind, chance))
            for _ in range(chance.randrange(1, 6)):
                if data:
                    data[chance.randrange(len(data))] = chance.randrange(256)
            return bytes(data)
        case _:
            return _filled(kind, chance)


def _filled(kind: type[Message], chance: random.Random) -> bytes:
    message = kind()
    _fill(message, chance, depth=3)
    return message.SerializeToString()[:1_000_000]


def _fill(message: Message, chance: random.Random, *, depth: int) -> None:
    for field in cast("list[FieldDescriptor]", message.DESCRIPTOR.fields):
        if chance.random() < 0.25:
            continue
        if field.message_type is None:
            _set(message, field, chance)
        elif field.message_type.GetOptions().map_entry:
            for _ in range(chance.choice([1, 2, 70])):
                getattr(message, field.name)[chance.choice(TEXTS)[:300]] = chance.choice(TEXTS)[:300]
        elif depth:
            inner = getattr(message, field.name)
            for each in (
                [inner.add() for _ in range(chance.choice([1, 300]))] if field.is_repeated else [inner]
            ):
                _fill(each, chance, depth=depth - 1)


def _set(message: Message, field: FieldDescriptor, chance: random.Random) -> None:
    values: Sequence[Any] = ENUMS
    if field.enum_type is None:
        values = {
            FieldDescriptor.TYPE_STRING: TEXTS,
            FieldDescriptor.TYPE_BYTES: BYTES,
            FieldDescriptor.TYPE_BOOL: (True, False),
            FieldDescriptor.TYPE_INT64: INT64,
        }.get(field.type, INT32)
    if field.is_repeated:
        getattr(message, field.name).extend([chance.choice(values)] * chance.choice([1, 2, 2000]))
    else:
        setattr(message, field.name, chance.choice(values))
