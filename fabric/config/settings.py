"""The settings of every process: typed values, one Struct for each process, from a TOML file and the environment.

A setting is a field with its type, its bounds and a sentence. The reference in docs/generated/settings.md is made from here, and so is the
check of what people write. Values that are secrets are never settings: a setting names the file that holds them.
"""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

Address = Annotated[
    str,
    Meta(pattern=r"^.+:[0-9]{1,5}$", description="`host:port`; port 0 takes a free one where it listens."),
]
CellName = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
Seconds = Annotated[float, Meta(gt=0)]

LONGEST_RECLAIM_S = 10 * 365 * 24 * 3600
"""Ten years: who keeps deleted servers for longer keeps them for ever, and does not want them deleted."""


class TlsSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A certificate with its key, and whom to believe. PEM files."""

    ca: Annotated[Path, Meta(description="Certificates of the authorities that are believed.")]
    cert: Annotated[Path, Meta(description="Our certificate, with the chain above it.")]
    key: Annotated[Path, Meta(description="The certificate's private key.")]


class StoreSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One etcd cluster."""

    endpoints: Annotated[
        tuple[Address, ...], Meta(min_length=1, description="Its members; one that answers is enough.")
    ]
    tls: Annotated[
        TlsSettings | None, Meta(description="Without it the store is spoken to in plain text.")
    ] = None
    prefix: Annotated[
        str, Meta(description="Put before every key, where several stores share one cluster.")
    ] = ""


class LogSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The log, on standard error."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="The least level that is written.")
    ] = "info"
    format: Annotated[
        Literal["json", "console"], Meta(description="JSON lines for machines, or columns for people.")
    ] = "json"


class BootstrapSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The first system administrator, made once: when the store has no user of that name."""

    user: Annotated[str, Meta(min_length=1, max_length=64, description="The administrator's name.")] = "admin"
    project: Annotated[str, Meta(min_length=1, max_length=64, description="The administrator's project.")] = (
        "admin"
    )
    password_path: Annotated[
        Path, Meta(description="The file that holds the password, on one line, readable by nobody else.")
    ]


class NetworkSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The default network, made when the store has none."""

    name: Annotated[str, Meta(min_length=1, max_length=64, description="Its name.")] = "default"
    mtu: Annotated[int, Meta(ge=576, le=9216, description="The MTU of its interfaces.")] = 1500
    dns_servers: Annotated[
        tuple[str, ...],
        Meta(max_length=4, description="What guests resolve names with; none: they are told of none."),
    ] = ()


class QuotaSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a new project may use when nothing is said."""

    instances: Annotated[int, Meta(ge=0, description="Servers.")] = 10
    vcpus: Annotated[int, Meta(ge=0, description="Virtual CPUs.")] = 20
    ram_mib: Annotated[int, Meta(ge=0, description="Memory.")] = 51_200
    volumes: Annotated[int, Meta(ge=0, description="Volumes.")] = 10
    volume_gib: Annotated[int, Meta(ge=0, description="The size of all volumes together.")] = 1000


class NetworkQuotaSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many of each a project may have of what its networks are made of; -1: any number."""

    networks: Annotated[int, Meta(ge=-1, description="Networks.")] = 100
    subnets: Annotated[int, Meta(ge=-1, description="Subnets.")] = 100
    ports: Annotated[int, Meta(ge=-1, description="Ports.")] = 500
    routers: Annotated[int, Meta(ge=-1, description="Routers.")] = 10
    floating_ips: Annotated[int, Meta(ge=-1, description="Floating IPs.")] = 50
    security_groups: Annotated[int, Meta(ge=-1, description="Security groups, besides the default one.")] = 10


class ImageSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What images may be."""

    max_bytes: Annotated[int, Meta(ge=1, description="The largest upload.")] = 64 * 1024**3
    max_virtual_bytes: Annotated[int, Meta(ge=1, description="The largest disk an image may make.")] = 1024**4
    total_bytes: Annotated[int, Meta(ge=1, description="What all images together may take on disk.")] = (
        1024**4
    )
    uploads: Annotated[
        int, Meta(ge=1, description="Uploads at the same time, half of them for one project.")
    ] = 4
    sweep_s: Annotated[Seconds, Meta(description="How often unused bytes are looked for and removed.")] = (
        600.0
    )


class LimitsSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one principal may ask of one API server."""

    rate_per_s: Annotated[float, Meta(gt=0, description="Calls per second, on average.")] = 100.0
    burst: Annotated[int, Meta(ge=1, description="Calls at once after a quiet time.")] = 200
    in_flight: Annotated[int, Meta(ge=1, description="Calls under way at the same time.")] = 100


class ConsoleSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Consoles, at a terminal and in a browser."""

    idle_s: Annotated[
        Seconds, Meta(description="A console in which nothing is typed or shown for so long is ended.")
    ] = 1800.0
    longest_s: Annotated[
        float, Meta(gt=0, le=3540, description="No console lasts longer, in use or not.")
    ] = 3540.0
    listen: Annotated[
        str,
        Meta(
            pattern=r"^(.+:[0-9]{1,5})?$",
            description="Where browsers connect to servers' screens, `host:port`; empty: they cannot.",
        ),
    ] = ""
    url: Annotated[
        str,
        Meta(
            pattern=r"^(https?://[^/?#]+(/[^?#]*[^/?#])?)?$",
            description="Under which address browsers find that; empty: as it listens.",
        ),
    ] = ""
    tls: Annotated[
        TlsSettings | None,
        Meta(description="The certificate browsers are shown. Without it: the public port's."),
    ] = None
    origins: Annotated[
        tuple[str, ...],
        Meta(
            max_length=32, description="Pages elsewhere that may open consoles, each `https://host[:port]`."
        ),
    ] = ()
    novnc_path: Annotated[
        Path | None,
        Meta(
            description="noVNC's folder, with `core` and `vendor` in it, for the page that shows a screen. Without it"
            " there is the WebSocket alone."
        ),
    ] = None
    most: Annotated[int, Meta(ge=1, description="Browsers at the same time.")] = 200


class _Common(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    log: Annotated[LogSettings, Meta(description="The log.")] = msgspec.field(default_factory=LogSettings)
    reflection: Annotated[
        bool, Meta(description="Whether anybody may read the service definitions from the server.")
    ] = False
    drain_s: Annotated[Seconds, Meta(description="How long calls under way may go on at the end.")] = 5.0


class ApiSettings(_Common, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """fabric-api: the front door."""

    global_store: Annotated[
        StoreSettings, Meta(description="Projects, users, the catalogue, quota, the index.")
    ]
    cells: Annotated[
        dict[CellName, StoreSettings], Meta(description="Every cell's store, by the cell's name.")
    ]
    blob_path: Annotated[Path, Meta(description="The folder that holds the bytes of images.")]
    audit_path: Annotated[
        Path, Meta(description="The audit log: one JSON line for each change and each denial.")
    ]
    listen: Annotated[Address, Meta(description="Where people and programs connect.")] = "127.0.0.1:7600"
    tls: Annotated[TlsSettings | None, Meta(description="The public port's. Without it: plain text.")] = None
    internal_listen: Annotated[Address, Meta(description="Where conductors fetch images.")] = "127.0.0.1:7601"
    internal_tls: Annotated[
        TlsSettings | None,
        Meta(
            description="Between servers: shown to conductors, and demanded of them. Without it: plain text."
        ),
    ] = None
    bootstrap: Annotated[
        BootstrapSettings | None, Meta(description="The first administrator; none is made without it.")
    ] = None
    network: Annotated[NetworkSettings, Meta(description="The default network.")] = msgspec.field(
        default_factory=NetworkSettings
    )
    quota: Annotated[QuotaSettings, Meta(description="A new project's limits.")] = msgspec.field(
        default_factory=QuotaSettings
    )
    network_quota: Annotated[
        NetworkQuotaSettings, Meta(description="Every project's limits of networks and what belongs to them.")
    ] = msgspec.field(default_factory=NetworkQuotaSettings)
    reclaim_s: Annotated[
        float,
        Meta(
            ge=0,
            le=LONGEST_RECLAIM_S,
            description="How long a deleted server is kept, off, to be restored; 0: it is deleted at once."
            " What is kept already keeps its time.",
        ),
    ] = 0.0
    images: Annotated[ImageSettings, Meta(description="What images may be.")] = msgspec.field(
        default_factory=ImageSettings
    )
    limits: Annotated[LimitsSettings, Meta(description="What one principal may ask.")] = msgspec.field(
        default_factory=LimitsSettings
    )
    console: Annotated[ConsoleSettings, Meta(description="Consoles, at a terminal and in a browser.")] = (
        msgspec.field(default_factory=ConsoleSettings)
    )


class SchedulerSettings(_Common, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """fabric-scheduler: chooses cell and host."""

    global_store: Annotated[StoreSettings, Meta(description="The build requests, and the index.")]
    cells: Annotated[
        dict[CellName, StoreSettings], Meta(description="Every cell's store, by the cell's name.")
    ]
    listen: Annotated[Address, Meta(description="Where health is asked.")] = "127.0.0.1:7610"
    tls: Annotated[TlsSettings | None, Meta(description="The health port's. Without it: plain text.")] = None
    strategy: Annotated[
        Literal["spread", "stack"],
        Meta(description="`spread` puts servers on the emptiest host, `stack` on the fullest that fits."),
    ] = "spread"
    ram_weight: Annotated[float, Meta(ge=0, description="How much free memory counts.")] = 1.0
    vcpu_weight: Annotated[float, Meta(ge=0, description="How much free vCPUs count.")] = 1.0
    relist_s: Annotated[
        Seconds, Meta(description="How often build requests are read in full, whatever the watch says.")
    ] = 5.0


class ConductorSettings(_Common, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """fabric-conductor: the guard of one cell."""

    cell: Annotated[CellName, Meta(description="Which cell.")]
    store: Annotated[StoreSettings, Meta(description="The cell's store.")]
    global_store: Annotated[
        StoreSettings | None,
        Meta(description="Where tenant networks are. Without it the cell's hosts are told of none."),
    ] = None
    listen: Annotated[Address, Meta(description="Where hosts and API servers connect.")] = "127.0.0.1:7620"
    advertise: Annotated[
        str,
        Meta(description="`host:port` under which API servers reach this conductor; empty: as it listens."),
    ] = ""
    tls: Annotated[
        TlsSettings | None,
        Meta(
            description="Shown to hosts and servers, and demanded of them. Without it nobody can prove who they are."
        ),
    ] = None
    api_endpoints: Annotated[
        tuple[Address, ...], Meta(description="Internal ports of API servers, for the bytes of images.")
    ] = ()
    session_ttl_s: Annotated[Seconds, Meta(description="How long a silent host keeps its session.")] = 10.0
    upload_bytes_per_s: Annotated[
        float, Meta(gt=0, description="How fast one host may hand in one image of a server.")
    ] = 256 * 1024.0 * 1024.0
    permit_s: Annotated[
        Seconds, Meta(description="How long an acknowledged beat permits a host to start guests.")
    ] = 60.0
    snapshot_s: Annotated[Seconds, Meta(description="How often a host is told everything anew.")] = 30.0
    shelve_offload_s: Annotated[
        float,
        Meta(ge=-1, description="How long a shelved server keeps its host; -1: until somebody frees it."),
    ] = 0.0
    resize_confirm_s: Annotated[
        float, Meta(ge=0, description="After how long a resize is confirmed by itself; 0: never.")
    ] = 0.0
    sweep_s: Annotated[
        float,
        Meta(gt=0, le=2, description="How often hosts that are gone and tasks that overran are looked for."),
    ] = 2.0


class HostNetworkSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is around a host."""

    physical: Annotated[
        dict[str, str],
        Meta(
            description="Physical networks that routers here may lead to, each with the host's interface, or bridge, that is in it."
        ),
    ] = {}
    blocked_cidrs: Annotated[
        tuple[IPv4Network, ...],
        Meta(
            description="Networks that guests of the host's own network are kept out of, such as the underlay and that of the stores."
        ),
    ] = ()


class SharedVolumesSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A directory for volumes that several hosts mount, all under one name."""

    name: Annotated[
        str,
        Meta(
            pattern="^[a-z0-9][a-z0-9_]{0,31}$",
            description="What volumes are made in it by: `fabric volume create --directory NAME`.",
        ),
    ]
    path: Annotated[Path, Meta(description="Where it is mounted. It must hold a file `cellfabric-volumes`.")]


class HostdSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """hostd: the daemon on every host."""

    conductors: Annotated[
        tuple[Address, ...], Meta(min_length=1, description="The cell's conductors, in no order.")
    ]
    tls: Annotated[
        TlsSettings | None, Meta(description="The host's own certificate: it says which host this is.")
    ] = None
    state_path: Annotated[Path, Meta(description="The journal and the disks of guests.")]
    driver: Annotated[Literal["libvirt", "fake"], Meta(description="What runs guests.")] = "libvirt"
    libvirt_uri: Annotated[str, Meta(description="The hypervisor.")] = "qemu:///system"
    netns: Annotated[
        str, Meta(description="The network namespace of the guests' bridge; empty: the host's own.")
    ] = ""
    network: Annotated[HostNetworkSettings, Meta(description="The networks around the host.")] = (
        msgspec.field(default_factory=HostNetworkSettings)
    )
    accelerator: Annotated[
        Literal["auto", "kvm", "tcg"],
        Meta(description="`auto` uses KVM where a probe shows that it works, else emulation."),
    ] = "auto"
    shared_volumes: Annotated[
        SharedVolumesSettings | None,
        Meta(
            description="A directory for volumes that other hosts have too; see operations/shared-volumes.md."
        ),
    ] = None
    spawns: Annotated[int, Meta(ge=1, description="Guests that may be made at the same time.")] = 4
    beat_s: Annotated[Seconds, Meta(description="How often the host says that it is alive.")] = 2.0
    audit_s: Annotated[
        Seconds, Meta(description="How often resources are measured, besides at every change.")
    ] = 60.0
    log: Annotated[LogSettings, Meta(description="The log.")] = msgspec.field(default_factory=LogSettings)


PROCESSES: dict[str, type[Struct]] = {
    "api": ApiSettings,
    "scheduler": SchedulerSettings,
    "conductor": ConductorSettings,
    "hostd": HostdSettings,
}
"""Every process with settings, by the name that its environment variables begin with."""
