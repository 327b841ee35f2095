"""The generator moves Python modules and nothing else: what goes over the wire must not notice."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
_spec = importlib.util.spec_from_file_location("generate", ROOT / "tools" / "proto" / "generate.py")
assert _spec is not None
assert _spec.loader is not None
generate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generate)


@pytest.mark.parametrize(
    ("made", "kept"),
    [
        ("from fabric.compute.v1 import a_pb2 as _a", "from fabric.pb.compute.v1 import a_pb2 as _a"),
        ("import fabric.compute.v1.a_pb2", "import fabric.pb.compute.v1.a_pb2"),
        (
            "_builder.BuildTopDescriptorsAndMessages(DESCRIPTOR, 'fabric.compute.v1.a_pb2', _globals)",
            "_builder.BuildTopDescriptorsAndMessages(DESCRIPTOR, 'fabric.pb.compute.v1.a_pb2', _globals)",
        ),
    ],
)
def test_modules_move_below_pb(made: str, kept: str) -> None:
    assert generate.moved(made, stub=False) == kept


@pytest.mark.parametrize(
    "made",
    [
        "AddSerializedFile(b'fabric/compute/v1/a.proto\\x12\\x11fabric.compute.v1')",
        "            '/fabric.compute.v1.InstanceService/GetInstance',",
        "    'fabric.compute.v1.InstanceService', rpc_method_handlers)",
        "from google.protobuf import descriptor as _descriptor",
        "from fabric.pb.compute.v1 import a_pb2",
    ],
)
def test_what_goes_over_the_wire_stays(made: str) -> None:
    assert generate.moved(made, stub=False) == made
    assert generate.moved(made, stub=True) == made


def test_a_stub_may_name_a_module_in_full() -> None:
    assert (
        generate.moved("    a: fabric.compute.v1.a_pb2.A", stub=True) == "    a: fabric.pb.compute.v1.a_pb2.A"
    )


def test_only_files_with_services_get_stubs() -> None:
    assert generate.has_service('syntax = "proto3";\nservice KeypairService {\n}')
    assert not generate.has_service("// The service that reads this is elsewhere.\nmessage service_like {}")


def _write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_every_kind_of_difference_is_named(tmp_path: Path) -> None:
    fresh = _write(tmp_path / "fresh", {"same.py": "1", "new/v1/a.py": "1", "other.py": "1"})
    kept = _write(tmp_path / "kept", {"same.py": "1", "other.py": "2", "old/v1/b.py": "1"})

    assert list(generate.differences(fresh, kept)) == [
        "missing: new/v1/a.py",
        "stale: old/v1/b.py",
        "changed: other.py",
    ]


def test_replacing_leaves_no_difference_and_no_empty_folder(tmp_path: Path) -> None:
    fresh = _write(tmp_path / "fresh", {"same.py": "1", "new/v1/a.py": "1"})
    kept = _write(tmp_path / "kept", {"same.py": "1", "old/v1/b.py": "1", "old/v1/__pycache__/b.pyc": "1"})

    assert generate.replace(fresh, kept) == 2
    assert list(generate.differences(fresh, kept)) == []
    assert not (kept / "old").exists()
    assert generate.replace(fresh, kept) == 0
