"""What this machine has: programs, ports, memory, networks in use, and the processes that carry our mark."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from fabric.errors import InvalidRequest
from fabric.model.host import Resources
from fabric.server.dev.plan import OURS, Programs, programs_in
from fabric.server.dev.topology import Options

MARK: Final = "FABRIC_DEV_MARK"
"""In the environment of every process of a fabric, with its state folder: how they are found when nobody remembers them."""

RESERVED_RAM_MIB: Final = 2048
"""What the machine keeps for itself and for the control plane."""
RESERVED_DISK_GIB: Final = 4
VCPUS_PER_CPU: Final = 4
"""Guests' processors for each real one: they seldom want them at the same time."""

FAKE_HOST: Final = Resources(vcpus=64, ram_mib=262_144, disk_gib=4096)
"""What a host without hardware says it has."""

_LIBVIRT_PROGRAMS: Final = (
    ("libvirtd", "libvirt-daemon"),
    ("virtlogd", "libvirt-daemon"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-img", "qemu-utils"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("dnsmasq", "dnsmasq-base"),
    ("genisoimage", "genisoimage"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
)
_SBIN: Final = "/usr/local/sbin:/usr/sbin:/sbin"


def search_path() -> str:
    """PATH with the folders of administrators' programs, which sudo and su may leave out."""
    return f"{os.environ.get('PATH', os.defpath)}:{_SBIN}"


def find_programs(options: Options) -> Programs:
    """Where everything is that will run. Raises InvalidRequest naming all that is missing, and what brings it."""
    scripts = Path(sysconfig.get_path("scripts"))
    etcd = _checkouts_etcd() or shutil.which("etcd", path=search_path())
    missing = [f"{name} (in {scripts})" for name in OURS if not (scripts / name).exists()]
    if etcd is None:
        missing.append("etcd (in .cache/bin of the checkout, or etcd-server)")
    if options.hypervisor == "libvirt":
        missing += [
            f"{name} ({package})"
            for name, package in _LIBVIRT_PROGRAMS
            if shutil.which(name, path=search_path()) is None
        ]
    if missing or etcd is None:
        raise InvalidRequest(f"missing: {', '.join(missing)}. `make setup` installs them", field="programs")
    return programs_in(scripts, python=sys.executable, etcd=etcd)


def _checkouts_etcd() -> str | None:
    """The etcd that tools/setup put beside the environment this runs in."""
    found = Path(sys.prefix).parent / ".cache" / "bin" / "etcd"
    return str(found) if found.exists() else None


def guest_image_folder() -> Path:
    """Where `make image` puts the guest image."""
    return Path(sys.prefix).parent / ".cache" / "guest-image"


def require_root() -> None:
    """Raises InvalidRequest for whoever may not make namespaces."""
    if os.geteuid() != 0:
        raise InvalidRequest(
            "a fabric makes network namespaces and starts libvirtd: run this as root", field="user"
        )


def free_ports(count: int, preferred: int) -> tuple[int, tuple[int, ...]]:
    """`preferred` of 127.0.0.1, or another port where it is taken, and `count` more that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        first = _bind(stack, preferred) or _bind(stack, 0)
        return first, tuple(_bind(stack, 0) for _ in range(count))


def _bind(stack: contextlib.ExitStack, port: int) -> int:
    listening = stack.enter_context(socket.socket())
    # As servers do: a port whose last connections are still timing out is free.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
    except OSError:
        return 0
    taken: int = listening.getsockname()[1]
    return taken


def routed_networks() -> list[str]:
    """Every IPv4 network the machine has a route to, but for the default."""
    answer = subprocess.run(
        ("ip", "-j", "-4", "route", "show", "table", "all"),
        capture_output=True,
        check=True,
        env={"PATH": search_path()},
    )
    return [route["dst"] for route in json.loads(answer.stdout or b"[]") if route["dst"][:1].isdigit()]


def share_out(options: Options) -> list[Resources]:
    """What each simulated host offers: an equal share of what this machine has now, besides what it needs itself.

    Raises:
        InvalidRequest: the machine is too small for so many hosts.
    """
    hosts = options.cells * options.hosts
    if options.hypervisor == "fake" or not hosts:
        return [FAKE_HOST] * hosts
    memory_mib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    folder = next(each for each in (options.state, *options.state.parents) if each.exists())
    disk_gib = shutil.disk_usage(folder).free >> 30
    share = Resources(
        vcpus=max(1, len(os.sched_getaffinity(0)) * VCPUS_PER_CPU // hosts),
        ram_mib=(memory_mib - RESERVED_RAM_MIB) // hosts,
        disk_gib=(disk_gib - RESERVED_DISK_GIB) // hosts,
    )
    if share.ram_mib < 512 or share.disk_gib < 1:
        raise InvalidRequest(
            f"{memory_mib} MiB of memory and {disk_gib} GiB of free disk are not enough for {hosts} hosts: "
            f"{RESERVED_RAM_MIB} MiB and {RESERVED_DISK_GIB} GiB stay free, and a host needs 512 MiB and 1 GiB",
            field="hosts",
        )
    return [share] * hosts


# ---------------------------------------------------------------------------------------------------- processes


def marked(state: Path) -> set[int]:
    """The processes that carry the mark of a fabric, this one excepted. Ended ones that nobody has reaped do not count."""
    wanted = f"{MARK}={state}".encode()
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.add(int(entry.name))
    return found


def in_namespace(name: str) -> set[int]:
    """The processes in a network namespace (ip-netns(8))."""
    answer = subprocess.run(
        ("ip", "netns", "pids", name), capture_output=True, check=False, env={"PATH": search_path()}
    )
    return {int(word) for word in answer.stdout.split()}


def end(
    find: Callable[[], set[int]],
    *,
    patience_s: float,
    signals: Sequence[int] = (signal.SIGTERM, signal.SIGKILL),
) -> None:
    """Ask processes to end, then make them. Looks again each time: those that end may have started others."""
    for number in signals:
        until_s = time.monotonic() + patience_s
        asked: set[int] = set()
        while (found := find()) and time.monotonic() < until_s:
            for pid in found - asked:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
                    os.kill(pid, number)
            asked |= found
            time.sleep(0.05)


def command_line(pid: int) -> str:
    """What a process was started as; empty when it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def resident_kib(pid: int) -> int:
    """A process's resident memory (proc(5)); 0 when it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    return 0


def mounts_below(folder: Path) -> Iterator[str]:
    """What is mounted below a folder, as this process sees it."""
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
        target = line.split()[1]
        if target.startswith(f"{folder}/"):
            yield target
