"""What a fabric on one machine consists of, as values. Pure: ports and facts about the machine come in as arguments."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct

from fabric.config.settings import LONGEST_RECLAIM_S
from fabric.errors import InvalidRequest
from fabric.model.host import Resources

DEFAULT_STATE: Final = Path("/var/lib/cellfabric")
"""On disk, not below /run: guests' disks live here. Short, because paths of Unix sockets end at 107 bytes."""

LONGEST_STATE: Final = 48
"""What a state folder's path may have, so that the longest socket below it still has a name that fits."""

LEAST_MTU: Final = 576
MOST_MTU: Final = 9216
"""What fabric-api's own setting allows."""
MOST_CELLS: Final = 8
MOST_HOSTS: Final = 60
"""Hosts with a network namespace, in all cells: each takes a /30 of one /24 for its link, and the segments take one more."""
MOST_FAKE_HOSTS: Final = 200
"""Hosts without hardware, in all cells."""

_UNDERLAY: Final = 253
_OUTSIDE: Final = 254
"""Third octets, above those of hosts' guests and below that of the links."""

API_PORT: Final = 7600
"""Where the API listens when nobody else does: the port that the command line knows."""

UNDERLAY: Final = "underlay"
OUTSIDE: Final = "outside"
"""A host's interfaces in the two segments, and the segments' bridges."""

SHARED_VOLUMES: Final = "shared"
"""The directory for volumes that all hosts share, by name."""

Hypervisor = Literal["libvirt", "fake"]
Accelerator = Literal["auto", "kvm", "qemu"]


class Options(Struct, frozen=True, kw_only=True):
    """What a person chooses. `hosts` is per cell."""

    state: Path = DEFAULT_STATE
    cells: int = 1
    hosts: int = 1
    hypervisor: Hypervisor = "libvirt"
    etcd_members: int = 1
    accelerator: Accelerator = "auto"
    dns_servers: tuple[str, ...] = ()
    mtu: int = 1500
    reclaim_s: float = 0.0


class Member(Struct, frozen=True, kw_only=True):
    """One etcd process. Ports of 127.0.0.1."""

    name: str
    client_port: int
    peer_port: int
    metrics_port: int


class StoreTopology(Struct, frozen=True, kw_only=True):
    """One etcd cluster: `global`, or the cell's name."""

    name: str
    members: tuple[Member, ...]

    @property
    def endpoints(self) -> tuple[str, ...]:
        """How clients reach it."""
        return tuple(f"127.0.0.1:{member.client_port}" for member in self.members)


class Link(Struct, frozen=True, kw_only=True):
    """The way between the machine and a simulated host: a pair of interfaces with a /30 between them.

    `outer` is the machine's end, `inner` the host's, inside `netns`.
    """

    netns: str
    outer: str
    inner: str
    outer_address: str
    inner_address: str


class Segments(Struct, frozen=True, kw_only=True):
    """What hosts have in common, in a namespace of its own: the underlay of their tunnels, and the world that routers lead to.

    `link` joins it to the machine. `gateway` is the outside's, with its prefix length; `first` to `last` are routers' and floating IPs.
    """

    link: Link
    outside_cidr: str
    gateway: str
    first: str
    last: str


class HostTopology(Struct, frozen=True, kw_only=True):
    """One simulated host. Without hardware it has no `link`.

    `tunnel_address` is its own in the underlay; empty in a fabric that was made before there was one.
    """

    name: str
    cell: str
    capacity: Resources
    guest_cidr: str
    link: Link | None
    tunnel_address: str = ""


class CellTopology(Struct, frozen=True, kw_only=True):
    """One cell: its store, its conductor, its hosts."""

    name: str
    store: StoreTopology
    conductor_port: int
    hosts: tuple[HostTopology, ...]


class Topology(Struct, frozen=True, kw_only=True):
    """All of it. Written once, when the fabric is made; everything else is derived from it."""

    state: Path
    hypervisor: Hypervisor
    accelerator: Accelerator
    api_port: int
    internal_port: int
    scheduler_port: int
    global_store: StoreTopology
    cells: tuple[CellTopology, ...]
    console_port: int = 0
    """Where browsers connect; 0 in a fabric that was made before there was such a port."""
    segments: Segments | None = None
    """None in a fabric that was made before hosts had any in common."""
    dns_servers: tuple[str, ...] = ()
    """What guests on the default network resolve names with."""
    mtu: int = 1500
    """The default network's."""
    reclaim_s: float = 0.0
    """How long deleted servers are kept."""

    @property
    def shares_volumes(self) -> bool:
        """Whether its hosts share a directory for volumes; those without hardware have nothing to share."""
        return self.hypervisor == "libvirt"

    @property
    def paths(self) -> Paths:
        """Where its files are."""
        return Paths(self.state)

    @property
    def hosts(self) -> tuple[HostTopology, ...]:
        """The hosts of all cells."""
        return tuple(host for cell in self.cells for host in cell.hosts)

    @property
    def stores(self) -> tuple[StoreTopology, ...]:
        """The global store, then every cell's."""
        return (self.global_store, *(cell.store for cell in self.cells))


class Paths:
    """The layout of a state folder."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.mark = state / "cellfabric-dev"
        self.topology = state / "topology.json"
        self.lock = state / "lock"
        self.pid = state / "supervisor.pid"
        self.control = state / "control.sock"
        self.log = state / "log"
        self.settings = state / "settings"
        self.pki = state / "pki"
        self.client = state / "client"
        self.admin_password = state / "pki" / "admin-password"
        self.blobs = state / "blobs"
        self.audit = state / "log" / "audit.jsonl"

    def log_of(self, process: str) -> Path:
        """What a process says."""
        return self.log / f"{process}.log"

    def settings_of(self, process: str) -> Path:
        """What a process is told."""
        return self.settings / f"{process}.toml"

    def store_pki(self, store: str) -> Path:
        """The authority of one store, and the certificates it issued: no other authority's open that store."""
        return self.pki / f"store-{store}"

    def store_data(self, member: str) -> Path:
        """An etcd member's data."""
        return self.state / "etcd" / member

    def host(self, host: str) -> Path:
        """What one simulated host keeps: its journal, its disks."""
        return self.state / "host" / host

    @property
    def shared_volumes(self) -> Path:
        """The directory for volumes that all hosts share."""
        return self.state / "shared-volumes"

    def libvirt(self, host: str) -> Path:
        """The folder of a simulated host's own libvirtd."""
        return self.host(host) / "lv"


def check(options: Options) -> None:
    """Refuse what cannot be built. Raises InvalidRequest, naming the option."""
    most = MOST_HOSTS if options.hypervisor == "libvirt" else MOST_FAKE_HOSTS
    if not options.state.is_absolute():
        raise InvalidRequest(f"{options.state} is not an absolute path", field="state")
    if len(str(options.state)) > LONGEST_STATE:
        raise InvalidRequest(
            f"{options.state} is too long: sockets below it need {LONGEST_STATE} characters or less",
            field="state",
        )
    if not 1 <= options.cells <= MOST_CELLS:
        raise InvalidRequest(f"there can be 1 to {MOST_CELLS} cells", field="cells")
    if options.hosts < 0 or options.cells * options.hosts > most:
        raise InvalidRequest(f"there can be {most} {options.hypervisor} hosts in all", field="hosts")
    if not 0 <= options.reclaim_s <= LONGEST_RECLAIM_S:
        raise InvalidRequest(f"deleted servers are kept for 0 to {LONGEST_RECLAIM_S} s", field="reclaim")
    if options.etcd_members not in {1, 3}:
        raise InvalidRequest("a store has 1 or 3 members", field="etcd_members")
    if not LEAST_MTU <= options.mtu <= MOST_MTU:
        raise InvalidRequest(f"the MTU can be {LEAST_MTU} to {MOST_MTU}", field="mtu")
    for server in options.dns_servers:
        try:
            ipaddress.IPv4Address(server)
        except ValueError:
            raise InvalidRequest(f"{server!r} is not an IPv4 address", field="dns_server") from None


def tag_of(state: Path) -> str:
    """Four characters that tell fabrics on one machine apart, in the names of interfaces."""
    return hashlib.blake2b(str(state).encode(), digest_size=2).hexdigest()


def draw_up(
    options: Options, *, ports: Sequence[int], api_port: int, block: int, capacity: Sequence[Resources]
) -> Topology:
    """Everything about a new fabric.

    Args:
        options: what was chosen; `check` has passed.
        ports: free ports of 127.0.0.1, as many as `ports_needed` says.
        api_port: where the API will listen.
        block: the second octet of the addresses: guests, links and segments get theirs from 10.<block>.0.0/16.
        capacity: what each host offers, in order, one for each host of all cells.
    """
    free = iter(ports)
    tag = tag_of(options.state)
    offers = iter(capacity)
    return Topology(
        state=options.state,
        hypervisor=options.hypervisor,
        accelerator=options.accelerator,
        dns_servers=options.dns_servers,
        mtu=options.mtu,
        api_port=api_port,
        internal_port=next(free),
        scheduler_port=next(free),
        console_port=next(free),
        reclaim_s=options.reclaim_s,
        global_store=_store("global", options.etcd_members, free),
        cells=tuple(
            CellTopology(
                name=f"cell{number}",
                store=_store(f"cell{number}", options.etcd_members, free),
                conductor_port=next(free),
                hosts=tuple(
                    _host(
                        f"cell{number}",
                        index + 1,
                        next(offers),
                        tag=tag,
                        block=block,
                        place=(number - 1) * options.hosts + index,
                        is_wired=options.hypervisor == "libvirt",
                    )
                    for index in range(options.hosts)
                ),
            )
            for number in range(1, options.cells + 1)
        ),
        segments=_segments(tag, block),
    )


def ports_needed(options: Options) -> int:
    """How many ports `draw_up` hands out, besides the API's."""
    return 3 + 3 * options.etcd_members + options.cells * (3 * options.etcd_members + 1)


def free_block(tag: str, taken: Iterable[str]) -> int:
    """A second octet such that 10.<octet>.0.0/16 overlaps nothing that the machine has a route to.

    Where the search begins depends on the fabric, so that two that start at the same time meet rarely. Raises InvalidRequest
    when every octet is taken.
    """
    networks = [ipaddress.ip_network(each, strict=False) for each in taken]
    begin = int(tag, 16)
    for step in range(128):
        octet = 128 + (begin + step) % 128
        ours = ipaddress.ip_network(f"10.{octet}.0.0/16")
        if not any(each.version == 4 and each.prefixlen > 0 and each.overlaps(ours) for each in networks):
            return octet
    raise InvalidRequest("every network in 10.128.0.0/9 is in use on this machine", field="state")


def load(path: Path) -> Topology:
    """The topology kept in a file. Raises InvalidRequest when it is not one of this version."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Topology, dec_hook=_decode)
    except msgspec.ValidationError as wrong:
        raise InvalidRequest(f"{path} was written by another version: {wrong}", field="state") from None


def dump(topology: Topology) -> bytes:
    """What `load` reads."""
    return msgspec.json.format(msgspec.json.encode(topology, enc_hook=str), indent=1)


def _decode(kind: type, value: object) -> object:
    if issubclass(kind, Path):
        return kind(str(value))
    raise NotImplementedError(kind)  # how msgspec is told that a type is none of ours


def _store(name: str, members: int, free: Iterator[int]) -> StoreTopology:
    return StoreTopology(
        name=name,
        members=tuple(
            Member(
                name=f"etcd-{name}" if members == 1 else f"etcd-{name}-{number}",
                client_port=next(free),
                peer_port=next(free),
                metrics_port=next(free),
            )
            for number in range(1, members + 1)
        ),
    )


def _host(
    cell: str, number: int, capacity: Resources, *, tag: str, block: int, place: int, is_wired: bool
) -> HostTopology:
    return HostTopology(
        name=f"{cell}-host{number}",
        cell=cell,
        capacity=capacity,
        guest_cidr=f"10.{block}.{place}.0/24",
        link=Link(
            netns=f"cf-{tag}-{place + 1}",
            outer=f"cf-{tag}-{place + 1}",
            inner="uplink",
            outer_address=f"10.{block}.255.{4 * place + 1}/30",
            inner_address=f"10.{block}.255.{4 * place + 2}/30",
        )
        if is_wired
        else None,
        tunnel_address=f"10.{block}.{_UNDERLAY}.{place + 1}",
    )


def _segments(tag: str, block: int) -> Segments:
    return Segments(
        link=Link(
            netns=f"cf-{tag}-segments",
            outer=f"cf-{tag}-out",
            inner="machine",
            outer_address=f"10.{block}.255.{4 * MOST_HOSTS + 1}/30",
            inner_address=f"10.{block}.255.{4 * MOST_HOSTS + 2}/30",
        ),
        outside_cidr=f"10.{block}.{_OUTSIDE}.0/24",
        gateway=f"10.{block}.{_OUTSIDE}.1/24",
        first=f"10.{block}.{_OUTSIDE}.10",
        last=f"10.{block}.{_OUTSIDE}.254",
    )
