"""Whether a request is what its proto says: field rules, compiled once for every message type.

What is declared is checked before any handler sees the request, and an error names the field by its path (`host.spec.vcpus`,
`flavor.properties[trait:GPU]`). Rules never loop: a pattern is applied to text whose length was checked first, and nesting is bounded by
the parser.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from fabric.errors import InvalidRequest
from fabric.ids import is_id
from fabric.pb.common.v1 import options_pb2

DEFAULT_MAX_LEN = 255
"""The greatest length of a string, of bytes, of a list or a map that declares none."""

_Check = Callable[[Any, str], None]
"""Checks a value found at a path. Raises InvalidRequest."""

_NUMBERS = frozenset({FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT32,
                      FieldDescriptor.CPPTYPE_UINT64})  # fmt: skip


def validate(request: Message) -> None:
    """Check a request against its field rules. Raises InvalidRequest for the first field at fault, in the proto's order."""
    _check_message(request, "")


def secret_fields(message: type[Message]) -> frozenset[str]:
    """The full names of every field in a message type, and in the messages within it, that must never be logged."""
    return frozenset(_secrets(cast("Descriptor", message.DESCRIPTOR), set()))


def _secrets(descriptor: Descriptor, seen: set[str]) -> Iterable[str]:
    if descriptor.full_name in seen:
        return
    seen.add(descriptor.full_name)
    for field in descriptor.fields:
        if _rules(field).secret:
            yield field.full_name
        if field.message_type is not None:
            yield from _secrets(field.message_type, seen)


def _check_message(message: Message, path: str) -> None:
    for field in _fields(message.DESCRIPTOR):
        field.check(message, f"{path}.{field.name}" if path else field.name)


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    check: Callable[[Message, str], None]


@functools.cache
def _fields(descriptor: Descriptor) -> tuple[_Field, ...]:
    return tuple(_Field(field.name, _compile(field)) for field in descriptor.fields)


def _rules(field: FieldDescriptor) -> options_pb2.FieldRules:
    return field.GetOptions().Extensions[options_pb2.rules]


def _compile(field: FieldDescriptor) -> Callable[[Message, str], None]:
    """How to check one field of a message that has it."""
    rules = _rules(field)
    name = field.name
    if field.is_repeated:
        return _compile_map(field, rules) if _is_map(field) else _compile_list(field, rules)
    is_message = field.message_type is not None
    check_value = _value_check(field, rules)

    def check(message: Message, path: str) -> None:
        value = getattr(message, name)
        is_set = message.HasField(name) if is_message or field.has_presence else bool(value)
        if not is_set:
            if rules.required:
                raise InvalidRequest(f"{path} is required", field=path)
            # Zero is how proto3 says "not set", and also a number: only numbers have rules that forbid it.
            if field.cpp_type in _NUMBERS and field.containing_oneof is None:
                check_value(value, path)
            return
        if rules.output_only:
            raise InvalidRequest(f"{path} is set by the server; leave it out", field=path)
        check_value(value, path)

    return check


def _compile_list(field: FieldDescriptor, rules: options_pb2.FieldRules) -> Callable[[Message, str], None]:
    # `max_len` counts items here, so the items themselves have the default length.
    check_item = _value_check(field, _item_rules(rules))

    def check(message: Message, path: str) -> None:
        items = getattr(message, field.name)
        _check_count(len(items), rules, path)
        for index, item in enumerate(items):
            check_item(item, f"{path}[{index}]")

    return check


def _compile_map(field: FieldDescriptor, rules: options_pb2.FieldRules) -> Callable[[Message, str], None]:
    assert field.message_type is not None
    entry = field.message_type.fields_by_name
    plain = options_pb2.FieldRules()
    check_key = _value_check(entry["key"], plain)
    check_value = _value_check(entry["value"], plain)

    def check(message: Message, path: str) -> None:
        items = getattr(message, field.name)
        _check_count(len(items), rules, path)
        # In order, so that the same request always gets the same answer.
        for key in sorted(items):
            check_key(key, path)
            check_value(items[key], f"{path}[{key}]")

    return check


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _item_rules(rules: options_pb2.FieldRules) -> options_pb2.FieldRules:
    items = options_pb2.FieldRules(pattern=rules.pattern, hint=rules.hint, uuid=rules.uuid)
    if rules.HasField("gte"):
        items.gte = rules.gte
    if rules.HasField("lte"):
        items.lte = rules.lte
    return items


def _check_count(count: int, rules: options_pb2.FieldRules, path: str) -> None:
    if count and rules.output_only:
        raise InvalidRequest(f"{path} is set by the server; leave it out", field=path)
    if not count and rules.required:
        raise InvalidRequest(f"{path} is required", field=path)
    _check_length(count, "items", rules, path)


def _check_length(length: int, unit: str, rules: options_pb2.FieldRules, path: str) -> None:
    most = rules.max_len or DEFAULT_MAX_LEN
    if length > most:
        raise InvalidRequest(f"{path} has {length} {unit}; at most {most} are allowed", field=path)
    if length < rules.min_len:
        raise InvalidRequest(f"{path} has {length} {unit}; at least {rules.min_len} are needed", field=path)


def _value_check(field: FieldDescriptor, rules: options_pb2.FieldRules) -> _Check:
    """How to check one value of a field's type: a scalar, a message, or an item of a list."""
    if field.message_type is not None:
        # Not compiled here: a message may contain itself.
        return _check_message
    if field.enum_type is not None:
        known = field.enum_type.values_by_number
        names = ", ".join(value.name for number, value in known.items() if number)

        def check_enum(value: int, path: str) -> None:
            if value not in known:
                raise InvalidRequest(f"{path} is {value}, which is none of {names}", field=path)

        return check_enum
    if field.type == FieldDescriptor.TYPE_STRING:
        return _string_check(rules)
    if field.type == FieldDescriptor.TYPE_BYTES:

        def check_bytes(value: bytes, path: str) -> None:
            _check_length(len(value), "bytes", rules, path)

        return check_bytes
    if field.cpp_type in _NUMBERS:
        return _number_check(rules)
    return _anything


def _anything(_value: object, _path: str) -> None:
    """A bool is always right."""


def _string_check(rules: options_pb2.FieldRules) -> _Check:
    pattern = re.compile(rules.pattern) if rules.pattern else None
    hint = rules.hint or "of another form"

    def check(value: str, path: str) -> None:
        _check_length(len(value), "characters", rules, path)
        if pattern is not None and pattern.fullmatch(value) is None:
            raise InvalidRequest(f"{path} must be {hint}", field=path)
        if rules.uuid and not is_id(value):
            raise InvalidRequest(f"{path} must be a UUID in its 36-character form", field=path)

    return check


def _number_check(rules: options_pb2.FieldRules) -> _Check:
    least = rules.gte if rules.HasField("gte") else None
    most = rules.lte if rules.HasField("lte") else None

    def check(value: int, path: str) -> None:
        if least is not None and value < least:
            raise InvalidRequest(f"{path} is {value}; it must be at least {least}", field=path)
        if most is not None and value > most:
            raise InvalidRequest(f"{path} is {value}; it must be at most {most}", field=path)

    return check
