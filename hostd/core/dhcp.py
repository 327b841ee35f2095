"""What dnsmasq is told: its command, its fixed hosts and their options. Pure.

dnsmasq(8) reads the two files when it starts; the command has everything else. No DNS is served (port 0): guests are told the
network's own servers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from fabric.model.network import METADATA_ADDRESS, Port
from hostd.core.ruleset import Subnet

LEASE_S: Final = 86_400
_HOSTNAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A port and the name of the guest that has it."""

    port: Port
    hostname: str

    @property
    def tag(self) -> str:
        """What ties the port's options to its host line."""
        return "p" + self.port.mac.replace(":", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where dnsmasq's files are."""

    hosts: str
    options: str
    leases: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What a server serves: `ranges` as words of its command, the texts of its two files, and whose each address is, by MAC."""

    interface: str
    ranges: tuple[str, ...] = ()
    hosts: str = ""
    options: str = ""
    holders: Mapping[str, str] = field(default_factory=dict)


def host_local(bridge: str, subnets: Iterable[Subnet], leases: Iterable[Lease]) -> Serving:
    """The server of the hosts' own network, on the host's bridge."""
    leases = tuple(leases)
    return Serving(
        interface=bridge,
        ranges=tuple(
            f"--dhcp-range={subnet.network.network_address},static,{subnet.network.netmask},{LEASE_S}s"
            for subnet in subnets
        ),
        hosts=hosts_file(leases),
        options=options_file(leases),
        holders={lease.port.address: lease.port.mac for lease in leases},
    )


def command(serving: Serving, files: Files, user: str) -> tuple[str, ...]:
    """How dnsmasq is started, in the foreground."""
    return (
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        # None: the default is one file for the whole machine, and of two servers that start at once the loser gives up.
        "--pid-file=",
        "--no-hosts",
        "--no-resolv",
        "--port=0",
        "--bind-interfaces",
        f"--interface={serving.interface}",
        "--except-interface=lo",
        "--dhcp-authoritative",
        "--no-ping",
        f"--user={user}",
        f"--dhcp-leasefile={files.leases}",
        f"--dhcp-hostsfile={files.hosts}",
        f"--dhcp-optsfile={files.options}",
        *serving.ranges,
    )


def is_in_the_way(line: str, holders: Mapping[str, str]) -> bool:
    """Whether a line of dnsmasq's lease file is of an address that is another's now; `holders` are the MACs that have each.

    Of IPv4 it is expiry, MAC, address, name, client id; of IPv6 expiry, IAID, address, name, DUID, of which the two most common kinds
    end with the MAC (RFC 8415, section 11). A client whose DUID does not say gets the same address when it asks again.
    """
    words = line.split()
    if len(words) < 5 or words[2] not in holders:
        return False
    holder = holders[words[2]]
    return not words[4].endswith(holder) if ":" in words[2] else words[1] != holder


def hostname_word(hostname: str) -> str:
    """The name as the last word but one of a host line; nothing for what is no hostname."""
    return f",{hostname}" if _HOSTNAME.fullmatch(hostname) else ""


def hosts_file(leases: Iterable[Lease]) -> str:
    """A line per port. A hostname that is none is left out: the guest still gets its address."""
    lines = []
    for lease in leases:
        name = hostname_word(lease.hostname)
        lines.append(f"{lease.port.mac},set:{lease.tag},{lease.port.address}{name},{LEASE_S}s\n")
    return "".join(lines)


def options_file(leases: Iterable[Lease]) -> str:
    """Router, MTU, name servers, and the route to the metadata service.

    A client that takes option 121 ignores the router option (RFC 3442), so the default route is in both.
    """
    lines = []
    for lease in leases:
        port = lease.port
        options = [
            f"option:router,{port.gateway}",
            f"option:mtu,{port.mtu}",
            f"option:classless-static-route,{METADATA_ADDRESS}/32,{port.gateway},0.0.0.0/0,{port.gateway}",
        ]
        if port.dns_servers:
            options.append(f"option:dns-server,{','.join(port.dns_servers)}")
        lines += [f"tag:{lease.tag},{option}\n" for option in options]
    return "".join(lines)
