"""Tripwires: what nobody should have to remember in review.

Each rule says why it is there. A rule with exceptions keeps them in one table with a reason for each, and an exception that is no longer
needed fails too, so the tables only ever tell the truth.
"""

from __future__ import annotations

import ast
import functools
import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fabric import errors

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
Node = TypeVar("Node", bound=ast.AST)

# ------------------------------------------------------------------------------------------ the tables of exceptions

LONG_FILES: dict[str, str] = {}
"""Hand-written files that may exceed 600 lines, each with its reason."""

WORLD = (
    "asyncio.subprocess",
    "asyncio.create_subprocess_exec",
    "asyncio.open_connection",
    "asyncio.open_unix_connection",
    "asyncio.start_server",
    "asyncio.to_thread",
    "concurrent",
    "datetime.datetime.now",
    "datetime.datetime.today",
    "datetime.datetime.utcnow",
    "multiprocessing",
    "numpy.random",
    "os.getrandom",
    "os.urandom",
    "random",
    "secrets",
    "select",
    "selectors",
    "signal",
    "socket",
    "subprocess",
    "threading",
    "time",
    "uuid",
)
"""What reaches around the ports: clocks, chance, threads, processes and sockets."""

ADAPTERS = {
    "fabric/cli/": "a process of its own, never simulated",
    "fabric/client/": "the far side of the wire, never simulated",
    "fabric/clock.py": "is the clock",
    "fabric/ids.py": "is the source of ids",
    "fabric/server/": "puts processes together and starts them",
    "fabric/store/etcd/": "is the real store",
    "fabric/workers.py": "is the threads",
    "hostd/driver/libvirt/": "libvirt's calls block, so they have a thread",
    "hostd/images/copies.py": "is the disk that copies of guests' disks are kept on: its calls block, so they have threads",
    "hostd/images/disks.py": "is the disk that guests write to, likewise",
    "hostd/images/storage.py": "reads and writes what those two and the images' cache keep, in threads likewise",
    "hostd/main.py": "puts the process together",
    "hostd/network/dnsmasq.py": "keeps a DHCP server that outlives the daemon",
    "hostd/network/metadata.py": "serves guests over HTTP",
    "hostd/network/nfnetlink.py": "asks the kernel over netlink, in a thread of netns.py's",
    "hostd/network/speaker.py": "sends frames that no socket of asyncio sends, in a router's namespace",
    "hostd/network/netns.py": "opens sockets in another network namespace, which takes a thread",
    "hostd/processes.py": "runs qemu-img, nft, ip and dnsmasq",
    "hostd/threads.py": "is the threads of what may be away for hours",
    "hostd/volumes/files.py": "is the disk that volumes are kept on, likewise",
}
"""The real adapters, by file or folder: the only shipped code that may use WORLD."""

IN_CORE = (
    *WORLD,
    "asyncio",
    "fcntl",
    "grpc",
    "io",
    "libvirt",
    "logging",
    "os",
    "pathlib",
    "shutil",
    "ssl",
    "structlog",
    "tempfile",
    "fabric.pb",
)
"""What a core may not reach, directly or through our own modules."""

DOORS = {"fabric.clock": {"Clock"}, "fabric.ids": {"Ids", "is_id"}}
"""Ports that stand beside their real adapter: a core may take these names from them, which have neither time nor chance in them."""

# ------------------------------------------------------------------------------------------ reading the tree

SKIPPED = {".git", ".venv", ".cache", ".hypothesis", "__pycache__", "build", "dist", "node_modules", "var"}


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if not path.is_dir():
            yield path
        elif path.name not in SKIPPED and not path.name.endswith(("_cache", ".egg-info")):
            yield from _walk(path)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


FILES = tuple(_walk(ROOT))
HAND_WRITTEN = tuple(
    path for path in FILES if path.suffix == ".py" and not _name(path).startswith("fabric/pb/")
)
SHIPPED = tuple(path for path in HAND_WRITTEN if _name(path).startswith(("fabric/", "hostd/")))


def _at(path: Path, node: ast.expr | ast.stmt) -> str:
    return f"{_name(path)}:{node.lineno}"


def _calls(paths: tuple[Path, ...]) -> Iterator[tuple[Path, ast.Call]]:
    return ((path, call) for path in paths for call in _nodes(path, ast.Call))


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=_name(path))


def _nodes(path: Path, kind: type[Node]) -> Iterator[Node]:
    return (node for node in ast.walk(_tree(path)) if isinstance(node, kind))


def _dotted(node: ast.expr) -> str:
    """`a.b.c` for a chain of names, else the empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := _dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


@functools.cache
def _imported(path: Path) -> dict[str, str]:
    """Local name -> full dotted name, of every import in the file wherever it stands."""
    found: dict[str, str] = {}
    for node in _nodes(path, ast.Import):
        for alias in node.names:
            found[alias.asname or alias.name] = alias.name
    for imports in _nodes(path, ast.ImportFrom):
        for alias in imports.names:
            found[alias.asname or alias.name] = f"{imports.module}.{alias.name}"
    return found


@functools.cache
def _used(path: Path) -> frozenset[str]:
    """Full dotted names of what the file imports, and of what it takes from those imports by attribute."""
    imported = _imported(path)
    found = set(imported.values())
    for node in _nodes(path, ast.Attribute):
        dotted = _dotted(node)
        for local, full in imported.items():
            if dotted.startswith(f"{local}."):
                found.add(f"{full}{dotted[len(local) :]}")
    return frozenset(found)


def _among(names: frozenset[str], forbidden: tuple[str, ...]) -> list[str]:
    return sorted(
        name for name in names if any(name == bad or name.startswith(f"{bad}.") for bad in forbidden)
    )


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(path): path for path in SHIPPED}


def _ours(names: frozenset[str]) -> set[str]:
    """The modules of ours that importing `names` runs: each with the packages around it."""
    found: set[str] = set()
    for name in names:
        parts = name.split(".")
        found |= {".".join(parts[:length]) for length in range(1, len(parts) + 1)} & MODULES.keys()
    return found


def _reached(start: str) -> dict[str, str]:
    """Every module of ours that `start` reaches by imports -> the way there. Doors are not walked through."""
    ways = {start: start}
    waiting = [start]
    while waiting:
        module = waiting.pop()
        for found in sorted(_ours(_used(MODULES[module]))):
            if found not in ways and found not in DOORS:
                ways[found] = f"{ways[module]} -> {found}"
                waiting.append(found)
    return ways


def _is_core(path: Path) -> bool:
    name = _name(path)
    return "core" in path.with_suffix("").parts[len(ROOT.parts) :] or name.startswith(
        ("fabric/model/", "fabric/lifecycle/")
    )


CORES = tuple(path for path in SHIPPED if _is_core(path))

# ------------------------------------------------------------------------------------------ layout


def test_cmd_is_never_a_package() -> None:
    """cmd/__init__.py would shadow the standard library's cmd, which pdb and so pytest import."""
    assert list((ROOT / "cmd").rglob("__init__.py")) == []


def test_every_command_is_installed_and_every_installed_command_is_here() -> None:
    """`python cmd/x` and an installed `x` are the same program, or one of them is a surprise."""
    in_tree = {}
    for path in (ROOT / "cmd").rglob("*.py"):
        assert path.name == "__main__.py", f"{_name(path)}: a command is one __main__.py"
        (origin,) = (full for local, full in _imported(path).items() if local == "main")
        in_tree[path.parent.name] = origin

    installed = {name: target.replace(":", ".") for name, target in PROJECT["project"]["scripts"].items()}
    assert in_tree == installed


def test_a_command_only_calls_main() -> None:
    """What grows in cmd/ can be neither imported nor tested."""
    commands = list((ROOT / "cmd").glob("*/__main__.py"))

    assert [_name(path) for path in commands if len(path.read_text().splitlines()) > 15] == []


def test_no_file_is_longer_than_600_lines() -> None:
    """Beyond that nobody reads a file before changing it. Most should stay below 400."""
    long = {_name(path) for path in HAND_WRITTEN if len(path.read_text().splitlines()) > 600}

    assert long == LONG_FILES.keys()
    assert all(LONG_FILES.values())


def test_every_check_that_is_switched_off_says_why_on_its_line() -> None:
    """Whoever reads it next must see whether it is still needed, and nobody copies a reason that is not there."""
    off = re.compile(r"#\s*(?:noqa|type:\s*ignore|pragma:)")
    explained = re.compile(r"# (?:noqa: [A-Z0-9, ]+ - |type: ignore\[[a-z, -]+\]  # |fmt: )\S")

    assert [
        f"{_name(path)}:{number}"
        for path in HAND_WRITTEN
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if off.search(line) and not explained.search(line) and "re.compile" not in line
    ] == []


def test_no_module_is_named_after_nothing() -> None:
    """utils, helpers and managers have no subject, so everything belongs there in the end."""
    nothing = {"common", "helper", "helpers", "manager", "managers", "misc", "tools", "util", "utils"}
    named = {part for path in SHIPPED for part in path.relative_to(ROOT).with_suffix("").parts}

    assert named & nothing == set()


def test_a_base_module_is_a_protocol() -> None:
    """base.py is where a port is declared, not where shared code collects."""
    bases = [path for path in SHIPPED if path.name == "base.py"]

    assert bases
    for path in bases:
        protocols = [
            node.name
            for node in _nodes(path, ast.ClassDef)
            if "Protocol" in {_dotted(base) for base in node.bases}
        ]
        assert protocols, f"{_name(path)} declares no Protocol"


# ------------------------------------------------------------------------------------------ cores and ports


def test_a_core_never_waits() -> None:
    """Decisions are functions of values: so they can be replayed, searched for counter-examples, and run a million times a minute."""
    waiting = [
        _name(path) for path in CORES for kind in (ast.AsyncFunctionDef, ast.Await) if any(_nodes(path, kind))
    ]
    doing = [
        _at(path, call) for path, call in _calls(CORES) if _dotted(call.func) in {"open", "input", "print"}
    ]

    assert waiting == []
    assert doing == []


def test_a_core_reaches_no_clock_chance_or_world_even_indirectly() -> None:
    """Time, randomness and ids are arguments; one module in between must not be the way around that."""
    found = [
        f"{way}: {name}"
        for path in CORES
        for module, way in _reached(_module(path)).items()
        for name in _among(_used(MODULES[module]), IN_CORE)
    ]

    assert found == []


def test_a_core_takes_from_the_doors_only_what_is_plain() -> None:
    """fabric.clock and fabric.ids hold the ports and, beside them, the real clock and the real chance."""
    allowed = {f"{door}.{name}" for door, names in DOORS.items() for name in names}
    taken = {
        f"{_name(path)}: {name}"
        for path in CORES
        for name in _among(_used(path), tuple(DOORS))
        if ".".join(name.split(".")[:3]) not in allowed
    }

    assert taken == set()


def test_only_adapters_reach_around_the_ports() -> None:
    """The simulation runs the shipped shells on a virtual clock: whatever they do beside the ports it can neither see nor repeat."""
    reaching = {_name(path): names for path in SHIPPED if (names := _among(_used(path), WORLD))}
    written = {_name(path) for path in SHIPPED if path.name != "__init__.py"}
    needless = [
        place
        for place in ADAPTERS
        if any(name.startswith(place) for name in written)
        and not any(name.startswith(place) for name in reaching)
    ]

    assert {name: names for name, names in reaching.items() if not name.startswith(tuple(ADAPTERS))} == {}
    assert needless == []


def test_libvirt_is_spoken_in_one_package() -> None:
    """A second place that knows libvirt would make a second driver impossible, and would block an event loop."""
    speaking = {
        _name(path) for path in SHIPPED if _among(_used(path), ("libvirt", "libvirt_qemu", "libvirtaio"))
    }

    assert {name for name in speaking if not name.startswith("hostd/driver/libvirt/")} == set()


def test_generated_code_stays_at_the_edges() -> None:
    """The middle works on fabric.model, so that wire and disk can change without it. The list is import-linter's."""
    (contract,) = (
        it
        for it in PROJECT["tool"]["importlinter"]["contracts"]
        if it.get("protected_modules") == ["fabric.pb"]
    )
    edges = tuple(contract["allowed_importers"])
    using = {_module(path) for path in SHIPPED if _among(_used(path), ("fabric.pb",))}

    assert {name for name in using if not f"{name}.".startswith(tuple(f"{edge}." for edge in edges))} == set()


# ------------------------------------------------------------------------------------------ dangerous things


def test_nothing_runs_text_as_code() -> None:
    """Also where a lint is silenced: nothing here is worth eval, pickle, or a shell with somebody's name in its command."""
    text_runners = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}
    loaders = (
        "pickle",
        "marshal",
        "shelve",
        "dill",
        "asyncio.create_subprocess_shell",
        "asyncio.subprocess.create_subprocess_shell",
    )

    assert [
        _at(path, call) for path, call in _calls(HAND_WRITTEN) if _dotted(call.func) in text_runners
    ] == []
    assert [
        _at(path, call)
        for path, call in _calls(HAND_WRITTEN)
        if any(it.arg == "shell" for it in call.keywords)
    ] == []
    assert {_name(path): found for path in HAND_WRITTEN if (found := _among(_used(path), loaders))} == {}


def test_qemu_img_is_always_told_the_format() -> None:
    """A guest that writes a qcow2 header into its raw disk would choose the backing file, and so read the host's, if qemu-img guessed."""
    guessing = []
    for path in SHIPPED:
        named = {
            target.id
            for statement in _tree(path).body
            if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(statement.value, ast.Constant)
            if str(statement.value.value).endswith("qemu-img")
            for target in (statement.targets if isinstance(statement, ast.Assign) else [statement.target])
            if isinstance(target, ast.Name)
        }
        functions: list[ast.FunctionDef | ast.AsyncFunctionDef] = [
            *_nodes(path, ast.FunctionDef),
            *_nodes(path, ast.AsyncFunctionDef),
        ]
        for function in functions:
            words = {part.value for part in ast.walk(function) if isinstance(part, ast.Constant)}
            names = {part.id for part in ast.walk(function) if isinstance(part, ast.Name)}
            if ("qemu-img" in words or names & named) and "-f" not in words:
                guessing.append(f"{_at(path, function)} {function.name}")

    assert guessing == []


# ------------------------------------------------------------------------------------------ logs and errors

LOGGERS = re.compile(r"(^|\.)_?(log|logger)$")
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
EVENT = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")


def _is_event(call: ast.Call) -> bool:
    """Whether the one positional argument is a constant `noun.verb`."""
    match call.args:
        case [ast.Constant(value=str(event))]:
            return EVENT.fullmatch(event) is not None
        case _:
            return False


def test_a_log_event_is_a_constant_noun_and_verb() -> None:
    """Events are counted and searched by name; what varies goes into fields, where secrets can be told from facts."""
    logging = [
        (path, call)
        for path, call in _calls(SHIPPED)
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in LEVELS
        and LOGGERS.search(_dotted(call.func.value))
    ]

    assert [_at(path, call) for path, call in logging if not _is_event(call)] == []


def _errors(kind: type[errors.FabricError]) -> set[type[errors.FabricError]]:
    """`kind` and what is below it."""
    return {kind}.union(*(_errors(below) for below in kind.__subclasses__()))


def test_every_error_of_ours_is_in_the_drawn_tree() -> None:
    """The tree in fabric/errors.py is what a caller reads to know what can happen."""
    drawn = set(re.findall(r"(?:├─|└─)\s+(\w+)", errors.__doc__ or "")) | {"FabricError"}

    assert {kind.__name__ for kind in _errors(errors.FabricError)} == drawn


def test_errors_are_declared_in_one_place() -> None:
    """One declared elsewhere would be missing from the tree, and from the map to gRPC codes."""
    elsewhere = [
        f"{_at(path, node)} {node.name}"
        for path in SHIPPED
        if path != ROOT / "fabric" / "errors.py"
        for node in _nodes(path, ast.ClassDef)
        for base in node.bases
        if "fabric.errors" in _imported(path).get(_dotted(base).split(".")[0], "")
        and _imported(path)[_dotted(base).split(".")[0]] != "fabric.errors.Reason"
    ]

    assert elsewhere == []


# ------------------------------------------------------------------------------------------ what leaves this machine

# Put together here, or this file would be the first to break its own rule.
FOREIGN = re.compile(
    "|".join(
        (
            "/" + "work/",
            "/root/" + r"(?:\.pyenv|\.cache|\.venv|venv|src)\b",
            "/" + "tmp/bash",
            "files.python" + "hosted",
            "py" + "pi.org",
            "registry." + "npm",
            "deb." + r"debian\.org",
            "snapshot." + "debian",
            "proxy." + "golang",
        )
    )
)


def test_no_file_names_a_machine_or_a_registry() -> None:
    """The tree works wherever it is cloned, and gets packages from wherever that machine gets them."""
    naming = {}
    for path in FILES:
        content = path.read_bytes()
        if b"\0" not in content and (found := FOREIGN.findall(content.decode())):
            naming[_name(path)] = found

    assert naming == {}


def _locked(name: str) -> dict[str, set[str]]:
    """Package -> its locked versions (more than one where they depend on the Python)."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines():
        if pinned := re.match(r"([A-Za-z0-9._-]+)==([^ ;\\]+)", line):
            found.setdefault(canonicalize_name(pinned[1]), set()).add(pinned[2])
    return found


def _group(name: str) -> list[str]:
    entries = PROJECT["dependency-groups"][name]
    return [one for it in entries for one in ([it] if isinstance(it, str) else _group(it["include-group"]))]


@pytest.mark.parametrize(
    ("lock", "requirements"),
    [
        ("build", PROJECT["build-system"]["requires"]),
        ("runtime", PROJECT["project"]["dependencies"]),
        ("host", PROJECT["project"]["optional-dependencies"]["host"]),
        ("dev", [*PROJECT["project"]["dependencies"], *_group("dev")]),
    ],
)
def test_the_locks_hold_what_the_project_asks_for(lock: str, requirements: list[str]) -> None:
    """A dependency added without `make lock` would be missing on every machine but its author's."""
    locked = _locked(lock)
    for wanted in map(Requirement, requirements):
        versions = locked.get(canonicalize_name(wanted.name), set())
        assert versions, f"{wanted} is not in requirements/{lock}.txt: make lock"
        assert all(wanted.specifier.contains(version) for version in versions), (
            f"{wanted}: locked {versions}: make lock"
        )


@pytest.mark.parametrize("lock", ["build", "runtime", "host", "dev"])
def test_every_locked_package_has_its_hash(lock: str) -> None:
    """A version can be replaced on an index; its hash cannot."""
    lines = (ROOT / "requirements" / f"{lock}.txt").read_text().replace("\\\n", " ").splitlines()
    packages = [line for line in lines if line and not line.startswith("#")]

    assert packages
    assert [package for package in packages if "--hash=sha256:" not in package or "://" in package] == []


# ------------------------------------------------------------------------------------------ errors on the wire


def test_every_error_has_a_status() -> None:
    """An error without a gRPC code would reach its caller as Unknown, which promises nothing."""
    status = importlib.import_module("fabric.rpc.status")
    kinds = {kind for kind in _errors(errors.FabricError) if kind.__module__.startswith("fabric")}

    assert status.CODE.keys() >= kinds - {errors.FabricError}
