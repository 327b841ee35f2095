"""Network namespaces of simulated hosts, and the link from the machine to each.

A link carries what the machine opens: SSH to a guest, and its answers. Guests open nothing towards the machine, and there is no
default route: what runs inside cannot reach the network that this machine is in. Deleting a namespace takes its bridge, its taps, its
packet filter and both ends of its link with it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from fabric.errors import Bug
from fabric.server.dev.machine import search_path
from fabric.server.dev.topology import HostTopology, Link, Topology, tag_of

NAMED: Final = Path("/run/netns")

_GUARD: Final = """\
table inet fabric_dev {{
  chain forward {{
    type filter hook forward priority filter - 10; policy accept;
    oifname "{inner}" ct state new drop
  }}
}}
"""
"""Nothing new goes out by the link. The machine's own way in is not new on its way back."""


def raise_all(topology: Topology) -> None:
    """Make the namespace and the link of every host that has one. Raises Bug with what `ip` or `nft` said."""
    for host in topology.hosts:
        if host.link is not None:
            _raise(host, host.link)


def _raise(host: HostTopology, link: Link) -> None:
    inside = ("-n", link.netns)
    peer = ("type", "veth", "peer", "name", link.inner, "netns", link.netns)
    gateway = link.inner_address.partition("/")[0]
    for arguments in (
        ("netns", "add", link.netns),
        ("link", "add", link.outer, *peer),
        ("addr", "add", link.outer_address, "dev", link.outer),
        ("link", "set", link.outer, "up"),
        (*inside, "addr", "add", link.inner_address, "dev", link.inner),
        (*inside, "link", "set", link.inner, "up"),
        (*inside, "link", "set", "lo", "up"),
        ("route", "add", host.guest_cidr, "via", gateway, "dev", link.outer),
    ):
        _run("ip", *arguments)
    _run("ip", "netns", "exec", link.netns, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
    _run("ip", "netns", "exec", link.netns, "nft", "-f", "-", stdin=_GUARD.format(inner=link.inner))


def lower_all(state: Path) -> None:
    """Delete every namespace and link of the fabric in `state`, whether or not anybody remembers them. None there is fine."""
    for name in namespaces(state):
        _run("ip", "netns", "del", name)
    for name in links(state):
        with contextlib.suppress(Bug):  # its other end went away with the namespace, and took this one along
            _run("ip", "link", "del", name)


def namespaces(state: Path) -> list[str]:
    """The namespaces of the fabric in `state`."""
    if not NAMED.is_dir():
        return []
    return sorted(each.name for each in NAMED.iterdir() if _is_ours(each.name, state))


def links(state: Path) -> list[str]:
    """The machine's ends of the links of the fabric in `state`."""
    answer = _run("ip", "-j", "link", "show")
    return sorted(each["ifname"] for each in json.loads(answer or "[]") if _is_ours(each["ifname"], state))


def fold_away() -> None:
    """Undo what `ip netns add` does to a machine without named namespaces: a folder that is mounted on itself, and is now empty."""
    if not NAMED.is_dir() or any(NAMED.iterdir()):
        return
    # Somebody else's namespace may appear meanwhile: then the folder is in use, and stays.
    with contextlib.suppress(Bug, OSError):
        for _ in range(Path("/proc/self/mounts").read_text(encoding="utf-8").count(f" {NAMED} ")):
            _run("umount", str(NAMED))
        NAMED.rmdir()


def _is_ours(name: str, state: Path) -> bool:
    return name.startswith(f"cf-{tag_of(state)}-")


def _run(*command: str, stdin: str = "") -> str:
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, check=False, env={"PATH": search_path()}
    )
    if done.returncode != 0:
        raise Bug(f"{_words(command)} failed: {done.stderr.strip()}")
    return done.stdout


def _words(command: Iterable[str]) -> str:
    return " ".join(command)
