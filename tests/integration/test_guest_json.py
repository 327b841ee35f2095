"""The guest's JSON reader against Python's, on odd, broken and random text."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

READER = Path(__file__).parents[2] / "tools/guest_image/overlay/rootfs/usr/lib/cellfabric/json-values"
UNPACKED = Path(__file__).parents[2] / ".cache" / "packages" / "unpacked"


def awks() -> list[str]:
    """The guest's own awk, once the image has been built here, and whatever awk this machine has."""
    return [*map(str, sorted(UNPACKED.glob("*/bin/busybox"))[:2]), *filter(None, [shutil.which("awk")])]


@pytest.fixture(params=awks(), ids=lambda path: "-".join(path.split("/")[-3:]))
def awk(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder to put first in PATH, in which `awk` is the one under test."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "awk").symlink_to(request.param)
    return tmp_path / "bin"


def read(awk: Path, text: bytes, *keys: str) -> subprocess.CompletedProcess[bytes]:
    file = awk.parent / "text.json"
    file.write_bytes(text)
    path = f"{awk}:{os.environ['PATH']}"
    return subprocess.run(
        ["sh", str(READER), str(file), *keys], capture_output=True, check=False, env={"PATH": path}
    )


@pytest.mark.parametrize(
    ("text", "keys", "printed"),
    [
        ('{"uuid": "a"}', ["uuid"], "a\n"),
        ('{"meta": {"uuid": "no"}, "uuid": "yes"}', ["uuid"], "yes\n"),
        ('{"meta": {"uuid": "no"}, "uuid": "yes"}', ["meta", "uuid"], "no\n"),
        ('{"note": "\\"uuid\\": \\"no\\"", "uuid":\n\t"yes" }', ["uuid"], "yes\n"),
        ('{"keys": [{"data": "a"}, {"name": "-"}, {"data": "b"}]}', ["keys", "*", "data"], "a\nb\n"),
        ('{"keys": ["a", "b", "c"]}', ["keys", "1"], "b\n"),
        (
            '{"public_keys": {"k k": "ssh-rsa AAAA\\n", "*": "x"}}',
            ["public_keys", "*"],
            "ssh-rsa AAAA\n\nx\n",
        ),
        ('{"a": "\\u00e9\\u20ac\\ud83d\\ude00 é€😀 \\/\\\\\\t"}', ["a"], "é€😀 é€😀 /\\\t\n"),
        ('{"a": "\\ud83d x \\ude00 \\u0000"}', ["a"], "\ufffd x \ufffd \ufffd\n"),
        ('{"a": {"b": "no"}, "b": []}', ["a"], ""),
        ('{"a": null, "b": true, "c": -1.5e+3}', ["*"], "null\ntrue\n-1.5e+3\n"),
        ('{"": "empty"}', [""], "empty\n"),
        ('{"1": "text", "x": ["a"]}', ["1.0"], ""),
        ('"alone"', [], "alone\n"),
        ("{}", ["a"], ""),
        ("[" * 60 + "]" * 60, ["a"], ""),
        ('{"$(id)": "`id`; $(id) %s %d \\\\n"}', ["$(id)"], "`id`; $(id) %s %d \\n\n"),
    ],
)
def test_keys_lead_to_decoded_values(awk: Path, text: str, keys: list[str], printed: str) -> None:
    done = read(awk, text.encode(), *keys)

    assert (done.returncode, done.stdout.decode()) == (0, printed), done.stderr


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"<html>404</html>",
        b'{"a": "x"',
        b'{"a": "x",}',
        b'{"a": "x"} {"a": "y"}',
        b'{"a" "x"}',
        b"{a: 1}",
        b"{'a': 1}",
        b'{"a": 01}',
        b'{"a": +1}',
        b'{"a": .5}',
        b'{"a": truest}',
        b'{"a": "\\x"}',
        b'{"a": "\\u12g4"}',
        b'{"a": "\\u12"}',
        b'{"a": "two\nlines"}',
        b'{"a": "x\\',
        b"[1 2]",
        b"[1,,2]",
        b"[1}",
        b"[" * 100 + b"]" * 100,
        b'{"a": "x"}\x00trailing',
    ],
)
def test_malformed_text_prints_nothing_and_fails_with_a_reason(awk: Path, text: bytes) -> None:
    done = read(awk, text, "a")

    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.startswith(b"json-values: ")


def test_a_missing_file_fails_with_a_reason() -> None:
    done = subprocess.run(["sh", str(READER), "/nonexistent", "a"], capture_output=True, check=False)

    assert done.returncode == 1
    assert b"cannot be read" in done.stderr


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("ascii_only", [True, False])
def test_random_documents_read_as_python_reads_them(awk: Path, seed: int, ascii_only: bool) -> None:
    rng = random.Random(seed)
    document = {f"k{i}": random_value(rng, 0) for i in range(8)}
    indent = rng.choice([None, 2])
    text = json.dumps(document, ensure_ascii=ascii_only, indent=indent).encode()
    expected = "".join(f"{value}\n" for value in document.values() if isinstance(value, str))

    done = read(awk, text, "*")
    texts = [line for line in done.stdout.decode().splitlines(keepends=True) if line.strip() not in SCALARS]

    assert done.returncode == 0, done.stderr
    assert "".join(texts) == "".join(
        line for line in expected.splitlines(keepends=True) if line.strip() not in SCALARS
    )


SCALARS = {"null", "true", "false", "-12.5", "7"}
LETTERS = 'abc"\\/{}[]:,\t\r\b\f %$`é€😀\x1f\x7f'


def random_value(rng: random.Random, depth: int) -> Any:
    kind = rng.randrange(6 if depth < 4 else 4)
    if kind == 0:
        return rng.choice([None, True, False, -12.5, 7])
    if kind == 4:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 5:
        return {random_text(rng): random_value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return random_text(rng)


def random_text(rng: random.Random) -> str:
    return "".join(rng.choices(LETTERS, k=rng.randrange(30)))
