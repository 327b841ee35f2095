"""Frozen dataclasses to Protobuf messages and back, by a plan made from the two definitions.

A `Mapping` pairs dataclasses with messages. Making it refuses pairs that differ: a field added to one side and forgotten on the other fails
when the module that makes it is imported, not at the first upgrade. Enums travel by number, absent optionals as unset messages, tuples
as repeated fields.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections import abc
from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import Message

V = TypeVar("V")

_Fill = Callable[[Message, Any], None]
_Take = Callable[[Message], Any]


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    fills: tuple[tuple[str, _Fill], ...]
    takes: tuple[tuple[str, _Take], ...]


def _scalar(name: str, kind: type) -> tuple[_Fill, _Take]:
    def fill(message: Message, value: Any) -> None:
        setattr(message, name, value)

    def take(message: Message) -> Any:
        return getattr(message, name)

    def take_enum(message: Message) -> Any:
        return kind(getattr(message, name))

    return fill, take_enum if issubclass(kind, enum.Enum) else take


def _plain_list(name: str) -> tuple[_Fill, _Take]:
    def fill(message: Message, value: Any) -> None:
        getattr(message, name).extend(value)

    def take(message: Message) -> Any:
        return tuple(getattr(message, name))

    return fill, take


def _plain_map(name: str) -> tuple[_Fill, _Take]:
    def fill(message: Message, value: Any) -> None:
        getattr(message, name).update(value)

    def take(message: Message) -> Any:
        return dict(getattr(message, name))

    return fill, take


class Mapping:
    """A set of pairs (dataclass, message). `ignored` fields exist only in messages, and are the caller's to fill."""

    def __init__(
        self, pairs: abc.Mapping[type, type[Message]], *, ignored: abc.Set[str] = frozenset()
    ) -> None:
        self._pairs = dict(pairs)
        self._plans = {value: self._plan(value, message, ignored) for value, message in pairs.items()}

    def message_type(self, kind: type) -> type[Message]:
        """The message a value of this kind travels as. Raises KeyError for a kind that has none."""
        return self._pairs[kind]

    def fill(self, value: object, message: Message) -> None:
        """Write a value's fields into an empty message of its type. Raises ValueError or TypeError for a value out of range."""
        for name, fill in self._plans[type(value)].fills:
            fill(message, getattr(value, name))

    def take(self, kind: type[V], message: Message) -> V:
        """The value in a message. Raises ValueError for an enum number that this version does not know."""
        return kind(**{name: take(message) for name, take in self._plans[kind].takes})

    def pack(self, value: object) -> Message:
        """A new message with the value in it."""
        message = self._pairs[type(value)]()
        self.fill(value, message)
        return message

    def _plan(self, kind: type, message_type: type[Message], ignored: abc.Set[str]) -> _Plan:
        names = {field.name for field in dataclasses.fields(kind)}
        carried = {field.name for field in message_type.DESCRIPTOR.fields} - ignored
        if names != carried:
            raise TypeError(
                f"{kind.__name__} and its message differ in: {', '.join(sorted(names ^ carried))}"
            )
        hints = typing.get_type_hints(kind)
        made = {field.name: self._field(field.name, hints[field.name]) for field in dataclasses.fields(kind)}
        return _Plan(
            fills=tuple((name, fill) for name, (fill, _) in made.items()),
            takes=tuple((name, take) for name, (_, take) in made.items()),
        )

    def _field(self, name: str, hint: Any) -> tuple[_Fill, _Take]:
        origin = typing.get_origin(hint)
        if origin in (types.UnionType, typing.Union):
            (kind,) = (each for each in typing.get_args(hint) if each is not type(None))
            return self._nested(name, kind, optional=True)
        if origin is tuple:
            (kind, _) = typing.get_args(hint)
            return self._nested_list(name, kind) if kind in self._pairs else _plain_list(name)
        if origin is not None and issubclass(origin, abc.Mapping):
            return _plain_map(name)
        return self._nested(name, hint, optional=False) if hint in self._pairs else _scalar(name, hint)

    def _nested(self, name: str, kind: type, *, optional: bool) -> tuple[_Fill, _Take]:
        def fill(message: Message, value: Any) -> None:
            if value is not None:
                target = getattr(message, name)
                target.SetInParent()
                self.fill(value, target)

        def take(message: Message) -> Any:
            return self.take(kind, getattr(message, name)) if not optional or message.HasField(name) else None

        return fill, take

    def _nested_list(self, name: str, kind: type) -> tuple[_Fill, _Take]:
        def fill(message: Message, value: Any) -> None:
            items = getattr(message, name)
            for item in value:
                self.fill(item, items.add())

        def take(message: Message) -> Any:
            return tuple(self.take(kind, item) for item in getattr(message, name))

        return fill, take
