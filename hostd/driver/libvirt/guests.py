"""What can be asked of a running domain besides its state: its consoles, its counters, and the agent inside it.

Functions for `Connection.call`: they block, and raise `libvirt.libvirtError`, or `DriverError` for what has a word of its own.
"""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import libvirt
import libvirt_qemu

from fabric.model.session import Diagnostics, DiskCounters, InterfaceCounters
from fabric.model.states import PowerState
from hostd.core.faults import FaultCode
from hostd.driver.base import driver_error

_TERMINALS: Final = "/dev/pts/"
_AGENT: Final = "org.qemu.guest_agent.0"
_STATS: Final = (
    libvirt.VIR_DOMAIN_STATS_VCPU
    | libvirt.VIR_DOMAIN_STATS_BALLOON
    | libvirt.VIR_DOMAIN_STATS_BLOCK
    | libvirt.VIR_DOMAIN_STATS_INTERFACE
)
_AGENT_IS_AWAY: Final = frozenset(
    {
        libvirt.VIR_ERR_AGENT_UNRESPONSIVE,
        libvirt.VIR_ERR_AGENT_UNSYNCED,
    }
)
_RUN_FOLDER: Final = Path("/run/libvirt")


class Opened:
    """A descriptor that is closed where nobody takes it: whoever has asked for it may have given up by the time it is there."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def take(self) -> int:
        """The descriptor, which is the caller's from now on."""
        taken, self._descriptor = self._descriptor, -1
        return taken

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


def open_serial(domain: libvirt.virDomain) -> Opened:
    """A descriptor of the serial port's terminal.

    The terminal itself, not libvirt's stream: see `descriptors`. What it carries is the guest's alone; the log beside is virtlogd's.
    """
    source = _live(domain).find("devices/serial/source")
    path = "" if source is None else source.get("path", "")
    if not path.startswith(_TERMINALS):
        raise driver_error(FaultCode.CONSOLE_UNAVAILABLE)
    try:
        return Opened(os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        raise driver_error(FaultCode.CONSOLE_UNAVAILABLE) from error


def open_screen(domain: libvirt.virDomain) -> Opened:
    """A descriptor of a connection to the screen. Nothing listens for it: libvirt hands QEMU the other end."""
    descriptor: int = domain.openGraphicsFD(0, libvirt.VIR_DOMAIN_OPEN_GRAPHICS_SKIPAUTH)
    opened = Opened(descriptor)
    os.set_blocking(descriptor, False)
    return opened


def diagnostics(connect: libvirt.virConnect, domain: libvirt.virDomain, power: PowerState) -> Diagnostics:
    """The domain's counters."""
    ((_, stats),) = connect.domainListGetStats([domain], _STATS)
    memory_kib = stats.get("balloon.current", 0)
    macs = [mac.get("address", "") for mac in _live(domain).iterfind("devices/interface/mac")]
    return Diagnostics(
        power=power,
        uptime_s=_uptime_s(connect, domain),
        vcpu_time_ms=tuple(
            stats.get(f"vcpu.{number}.time", 0) // 1_000_000 for number in range(stats.get("vcpu.current", 0))
        ),
        memory_kib=memory_kib,
        memory_resident_kib=stats.get("balloon.rss", 0),
        # The guest's own word: it may be any number, and what nobody can believe of a host costs that its session.
        memory_unused_kib=min(stats.get("balloon.unused", 0), memory_kib),
        disks=tuple(_disk(stats, number) for number in range(stats.get("block.count", 0))),
        interfaces=tuple(
            _interface(stats, number, mac) for number, mac in enumerate(macs) if f"net.{number}.name" in stats
        ),
    )


def _disk(stats: Mapping[str, Any], number: int) -> DiskCounters:
    name = f"block.{number}"
    return DiskCounters(
        device=str(stats.get(f"{name}.name", "")),
        read_bytes=stats.get(f"{name}.rd.bytes", 0),
        read_requests=stats.get(f"{name}.rd.reqs", 0),
        write_bytes=stats.get(f"{name}.wr.bytes", 0),
        write_requests=stats.get(f"{name}.wr.reqs", 0),
    )


def _interface(stats: Mapping[str, Any], number: int, mac: str) -> InterfaceCounters:
    """Counted at the host's end of the wire, and turned round by libvirt: `rx` is what the guest received."""
    name = f"net.{number}"
    return InterfaceCounters(
        mac=mac,
        rx_bytes=stats.get(f"{name}.rx.bytes", 0),
        rx_packets=stats.get(f"{name}.rx.pkts", 0),
        rx_errors=stats.get(f"{name}.rx.errs", 0),
        rx_drops=stats.get(f"{name}.rx.drop", 0),
        tx_bytes=stats.get(f"{name}.tx.bytes", 0),
        tx_packets=stats.get(f"{name}.tx.pkts", 0),
        tx_errors=stats.get(f"{name}.tx.errs", 0),
        tx_drops=stats.get(f"{name}.tx.drop", 0),
    )


def _uptime_s(connect: libvirt.virConnect, domain: libvirt.virDomain) -> int:
    """How long the domain's QEMU has been there, by the kernel; 0 where it cannot be found out. libvirt does not tell."""
    socket = parse_qs(urlsplit(connect.getURI()).query).get("socket", [""])[0]
    folder = Path(socket).parent if socket else _RUN_FOLDER
    try:
        pid = int((folder / "qemu" / f"{domain.name()}.pid").read_text(encoding="ascii"))
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        up_s = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError):
        return 0
    # The 22nd field (proc(5)), counted from behind the name, which may hold anything.
    start_ticks = int(stat.rpartition(")")[2].split()[19])
    return max(0, int(up_s - start_ticks / os.sysconf("SC_CLK_TCK")))


def ask_agent(
    domain: libvirt.virDomain, command: str, arguments: Mapping[str, object], timeout_s: float
) -> object:
    """What the agent in the guest returns. An agent that is not connected is not waited for."""
    if not domain.isActive():
        raise driver_error(FaultCode.GUEST_OFF)
    if not _has_agent(domain):
        raise driver_error(FaultCode.AGENT_MISSING)
    asked = json.dumps({"execute": command, "arguments": dict(arguments)})
    try:
        returned: object = json.loads(
            libvirt_qemu.qemuAgentCommand(domain, asked, max(1, round(timeout_s)), 0)
        )["return"]
    except libvirt.libvirtError as error:
        # From here on libvirt's own words are not for a log: they may repeat what the agent was asked.
        away = error.get_error_code() in _AGENT_IS_AWAY
        raise driver_error(FaultCode.AGENT_MISSING if away else FaultCode.AGENT_FAILED) from None
    except (ValueError, TypeError, LookupError, RecursionError):
        # The guest's to choose: half a document, a number without end, more brackets than anybody can count.
        raise driver_error(FaultCode.AGENT_FAILED) from None
    return returned


def _has_agent(domain: libvirt.virDomain) -> bool:
    """Whether somebody in the guest has the agent's port open."""
    targets = _live(domain).iterfind("devices/channel/target")
    return any(each.get("name") == _AGENT and each.get("state") == "connected" for each in targets)


def _live(domain: libvirt.virDomain) -> ET.Element:
    return ET.fromstring(domain.XMLDesc(0))  # noqa: S314 - from libvirt
