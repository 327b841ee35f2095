"""The reference of the gRPC API: every service, method and message of protos/, with the comments that stand there.

The modules in fabric/pb carry no comments, so protoc is asked for descriptors that do. What is only stored (`fabric.record`) or only
spoken to etcd is not part of the API.
"""

from __future__ import annotations

import importlib.resources
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)

from fabric.pb.common.v1 import options_pb2
from tools.proto.generate import GenerationFailed, sources

LEFT_OUT = ("fabric.record.", "fabric.etcd.")

_SERVICE, _MESSAGE, _ENUM = 6, 4, 5
"""The numbers of FileDescriptorProto's fields: paths to comments begin with them (google/protobuf/descriptor.proto)."""

_METHOD_OF_SERVICE, _FIELD_OF_MESSAGE, _VALUE_OF_ENUM = 2, 2, 2

Comments = Mapping[tuple[int, ...], str]


def described(protos: Path) -> list[FileDescriptorProto]:
    """The API's files with their comments, in the order of their names. Raises GenerationFailed."""
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory(prefix="proto-") as scratch:
        out = Path(scratch) / "protos.bin"
        include = [f"-I{protos}", f"-I{importlib.resources.files('grpc_tools') / '_proto'}"]
        flags = ["--include_source_info", f"--descriptor_set_out={out}"]
        if protoc.main(["protoc", *include, *flags, *(str(path) for path in sources(protos))]) != 0:
            raise GenerationFailed("protoc failed; see above")
        found = FileDescriptorSet.FromString(out.read_bytes())
    return sorted((it for it in found.file if not it.package.startswith(LEFT_OUT)), key=lambda it: it.name)


def page(protos: Path) -> Iterator[str]:
    """The lines of docs/generated/api.md."""
    yield "# The gRPC API"
    yield ""
    yield "Source: `protos/`. Who may call a method is in [permissions](permissions.md), how one fails in [errors](errors.md), and"
    yield "in which state an action is allowed in [the life of a server](lifecycle.md)."
    yield ""
    yield "Lengths are in characters of text, bytes of `bytes`, items of lists and maps; texts without a length of their own have"
    yield "at most 255 characters."
    files = described(protos)
    for file in files:
        for number, service in enumerate(file.service):
            yield from _service(file, service, number)
    yield ""
    yield "# Messages"
    for file in files:
        comments = _comments(file)
        for number, message in enumerate(file.message_type):
            yield from _message(file.package, message, comments, (_MESSAGE, number))
        for number, kind in enumerate(file.enum_type):
            yield from _enum(file.package, kind, comments, (_ENUM, number))


def _service(file: FileDescriptorProto, service: ServiceDescriptorProto, number: int) -> Iterator[str]:
    comments = _comments(file)
    yield ""
    yield f"## {file.package}.{service.name}"
    yield ""
    yield comments.get((_SERVICE, number), "")
    yield ""
    yield from _table(
        ("method", "takes", "gives", ""),
        (
            (
                f"`{method.name}`",
                _link(method.input_type, streams=method.client_streaming),
                _link(method.output_type, streams=method.server_streaming),
                _about(method, comments.get((_SERVICE, number, _METHOD_OF_SERVICE, place), "")),
            )
            for place, method in enumerate(service.method)
        ),
    )


def _about(method: MethodDescriptorProto, comment: str) -> str:
    mutates = method.options.Extensions[options_pb2.authz].mutates
    return f"{comment} **Changes something.**" if mutates else comment


def _message(
    package: str, message: DescriptorProto, comments: Comments, path: tuple[int, ...]
) -> Iterator[str]:
    yield ""
    yield f"## {package}.{message.name}"
    yield ""
    yield comments.get(path, "")
    if message.field:
        maps = {f".{package}.{message.name}.{it.name}": it for it in message.nested_type}
        yield ""
        yield from _table(
            ("field", "no.", "type", "must be", ""),
            (
                (
                    f"`{field.name}`",
                    str(field.number),
                    _type(field, maps),
                    _rules(field),
                    comments.get((*path, _FIELD_OF_MESSAGE, place), ""),
                )
                for place, field in enumerate(message.field)
            ),
        )


def _enum(
    package: str, kind: EnumDescriptorProto, comments: Comments, path: tuple[int, ...]
) -> Iterator[str]:
    yield ""
    yield f"## {package}.{kind.name}"
    yield ""
    yield comments.get(path, "")
    yield ""
    yield from _table(
        ("value", "no.", ""),
        (
            (f"`{value.name}`", str(value.number), comments.get((*path, _VALUE_OF_ENUM, place), ""))
            for place, value in enumerate(kind.value)
        ),
    )


def _type(field: FieldDescriptorProto, maps: Mapping[str, DescriptorProto]) -> str:
    entry = maps.get(field.type_name)
    if entry is not None:
        key, value = (_type(it, {}) for it in entry.field)
        return f"map of {key} to {value}"
    named = field.type in {FieldDescriptorProto.TYPE_MESSAGE, FieldDescriptorProto.TYPE_ENUM}
    words = _link(field.type_name) if named else FieldDescriptorProto.Type.Name(field.type)[5:].lower()
    return f"list of {words}" if field.label == FieldDescriptorProto.LABEL_REPEATED else words


def _rules(field: FieldDescriptorProto) -> str:
    """A field's rules, as people say them."""
    rules = field.options.Extensions[options_pb2.rules]
    said = [
        ("given", rules.required),
        (f"at least {rules.min_len} long", rules.min_len),
        (f"at most {rules.max_len} long", rules.max_len),
        (f"{rules.gte} or more", rules.HasField("gte")),
        (f"{rules.lte} or less", rules.HasField("lte")),
        (rules.hint or f"`{rules.pattern}`", rules.pattern),
        ("a UUID", rules.uuid),
        ("empty in requests", rules.output_only),
        ("(a secret: never logged)", rules.secret),
    ]
    return ", ".join(words for words, applies in said if applies)


def _link(full: str, *, streams: bool = False) -> str:
    name = full.removeprefix(".")
    short = name.rpartition(".")[2]
    # GitHub's anchors: lower case, without the dots.
    words = f"[{short}](#{name.replace('.', '').lower()})" if name.startswith("fabric.") else f"`{short}`"
    return f"stream of {words}" if streams else words


def _comments(file: FileDescriptorProto) -> Comments:
    return {
        tuple(it.path): " ".join(it.leading_comments.split())
        for it in file.source_code_info.location
        if it.leading_comments
    }


def _table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + " --- |" * len(head)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |"
