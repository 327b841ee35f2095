"""Network namespaces of simulated hosts, the segments that they have in common, and the links from the machine to all of these.

A link carries what the machine opens: SSH to a guest, and its answers. Guests open nothing towards the machine, and there is no
default route: what runs inside cannot reach the network that this machine is in. Deleting a namespace takes its bridge, its taps, its
packet filter and both ends of its link with it.

The segments are bridges in one more namespace: the underlay, which has only the hosts' tunnel addresses, and the outside. That namespace
is the outside's gateway, and the machine reaches floating IPs through it, by a route; so nothing bridges into the machine, where other
people's packet filters would see it.
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
from fabric.server.dev.topology import (
    OUTSIDE,
    UNDERLAY,
    HostTopology,
    Link,
    Segments,
    Topology,
    tag_of,
)

NAMED: Final = Path("/run/netns")

_GUARD: Final = """\
table inet fabric_dev {{
  chain forward {{
    type filter hook forward priority filter - 10; policy accept;
    oifname {{ {closed} }} ct state new drop
  }}
}}
"""
"""Nothing new that is not a host's own goes out there. The machine's own way in is not new on its way back."""


def raise_all(topology: Topology) -> None:
    """Make the namespace and the link of every host that has one, and the segments. Raises Bug with what `ip` or `nft` said."""
    linked = [(host, host.link) for host in topology.hosts if host.link is not None]
    for host, link in linked:
        # Guests have no business in the underlay: who reaches it can speak for any network.
        _raise(link, host.guest_cidr, closed=(link.inner, UNDERLAY, OUTSIDE))
    if topology.segments is not None and linked:
        _raise_segments(topology.segments)
        for number, (host, link) in enumerate(linked, start=1):
            _attach(host, link, topology.segments, number)


def _raise(link: Link, behind: str, *, closed: Iterable[str]) -> None:
    """A namespace, its link, and the machine's route to what is behind it. `closed` are interfaces that nothing may leave by."""
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
        ("route", "add", behind, "via", gateway, "dev", link.outer),
    ):
        _run("ip", *arguments)
    _run("ip", "netns", "exec", link.netns, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
    quoted = ", ".join(f'"{name}"' for name in closed)
    _run("ip", "netns", "exec", link.netns, "nft", "-f", "-", stdin=_GUARD.format(closed=quoted))


def _raise_segments(segments: Segments) -> None:
    _raise(segments.link, segments.outside_cidr, closed=(segments.link.inner,))
    inside = ("-n", segments.link.netns)
    for bridge in (UNDERLAY, OUTSIDE):
        kind = ("type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
        _run("ip", *inside, "link", "add", "name", bridge, *kind)
        _run("ip", *inside, "link", "set", bridge, "addrgenmode", "none", "up")
    _run("ip", *inside, "addr", "add", segments.gateway, "dev", OUTSIDE)


def _attach(host: HostTopology, link: Link, segments: Segments, number: int) -> None:
    """An interface of the host in each segment: its own address in the underlay, none outside, where routers have theirs."""
    inside, common = ("-n", link.netns), ("-n", segments.link.netns)
    for bridge in (UNDERLAY, OUTSIDE):
        port = f"{bridge}{number}"
        peer = ("type", "veth", "peer", "name", port, "netns", segments.link.netns)
        _run("ip", *inside, "link", "add", "name", bridge, *peer)
        _run("ip", *common, "link", "set", port, "addrgenmode", "none", "master", bridge, "up")
        _run("ip", *inside, "link", "set", bridge, "addrgenmode", "none", "up")
    _run("ip", *inside, "addr", "add", f"{host.tunnel_address}/24", "dev", UNDERLAY)


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
