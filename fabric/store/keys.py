"""Every key that is ever stored, one row each: its template, its record, who writes it, and why it exists.

Nothing else in the fabric spells a key. Templates are for people and for the generated reference; `Key.at` fills one in, `Key.under` is
the prefix of a listing. Values of fields may not contain a slash (ids, names of hosts and cells never do; other names are escaped).
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass
from typing import Generic, TypeVar
from urllib.parse import quote

from fabric.model import (
    binding,
    console,
    event,
    flavor,
    host,
    identity,
    image,
    instance,
    keypair,
    network,
    quota,
    security_group,
    volume,
)

V = TypeVar("V")


class Place(enum.StrEnum):
    """Which store a key lives in."""

    GLOBAL = "global"
    CELL = "cell"


@dataclass(frozen=True, slots=True, kw_only=True)
class Key(Generic[V]):
    """One kind of key. `fields` are the placeholders of `template`, in order."""

    template: str
    record: type[V]
    place: Place
    owner: str
    why: str
    leased: bool = False

    def at(self, *fields: str) -> str:
        """The key with these fields filled in. Raises ValueError when their number is not the template's."""
        head, *rest = self.template.split("{")
        if len(fields) != len(rest):
            raise ValueError(f"{self.template} takes {len(rest)} fields, not {len(fields)}")
        return head + "".join(
            quote(name, safe="") + tail.partition("}")[2] for name, tail in zip(fields, rest, strict=True)
        )

    def under(self, *fields: str) -> str:
        """The prefix of every key whose first fields are these."""
        head, *rest = self.template.split("{")
        return head + "".join(
            quote(name, safe="") + tail.partition("}")[2] for name, tail in zip(fields, rest, strict=False)
        )


def _global(template: str, record: type[V], owner: str, why: str) -> Key[V]:
    return Key(template=template, record=record, place=Place.GLOBAL, owner=owner, why=why)


def _cell(template: str, record: type[V], owner: str, why: str, *, leased: bool = False) -> Key[V]:
    return Key(template=template, record=record, place=Place.CELL, owner=owner, why=why, leased=leased)


PROJECT = _global("project/{project}", identity.Project, "api", "What owns servers and quota.")
PROJECT_NAME = _global("project-name/{name}", str, "api", "Makes project names unique; the value is the id.")
USER = _global("user/{user}", identity.User, "api", "Somebody, with the hash of their password.")
USER_NAME = _global("user-name/{name}", str, "api", "Makes user names unique; the value is the id.")
ROLE = _global("role/{user}/{project}", identity.RoleGrant, "api", "What a user may do in a project.")
TOKEN = _global(
    "token/{sha256}",
    identity.Token,
    "api",
    "A token that was issued; deleting it revokes it. Leased to its lifetime.",
)
CONSOLE_TICKET = _global(
    "console-ticket/{sha256}",
    console.ConsoleTicket,
    "api",
    "What a ticket opens; whoever deletes it has used it. Leased to its lifetime.",
)
FLAVOR = _global("flavor/{flavor}", flavor.Flavor, "api", "A size on the menu.")
FLAVOR_NAME = _global("flavor-name/{name}", str, "api", "Makes flavor names unique; the value is the id.")
KEYPAIR = _global("keypair/{user}/{name}", keypair.Keypair, "api", "A user's public key.")
IMAGE = _global("image/{image}", image.Image, "api", "An image's record; its bytes are in the blob store.")
IMAGE_NAME = _global(
    "image-name/{project}/{name}", str, "api", "Makes image names unique in a project; the value is the id."
)
NETWORK = _global("network/{network}", network.Network, "api", "A network that servers can be attached to.")
NETWORK_NAME = _global(
    "network-name/{name}",
    str,
    "api",
    "Makes the names unique of networks that everybody sees; the value is the id.",
)
PROJECT_NETWORK_NAME = _global(
    "project-network-name/{project}/{name}",
    str,
    "api",
    "Makes network names unique in a project; the value is the id.",
)
VNI = _global(
    "vni/{vni}", str, "api", "Who has a VXLAN network identifier: the network's or the router's id."
)
SUBNET = _global("subnet/{subnet}", network.Subnet, "api", "A range of a network's addresses.")
SUBNET_NAME = _global(
    "subnet-name/{project}/{name}", str, "api", "Makes subnet names unique in a project; the value is the id."
)
ADDRESS = _global(
    "address/{subnet}/{address}",
    str,
    "api",
    "Who holds an address: the id of a port, router or floating IP. None is left: the subnet may go.",
)
PORT_MAC = _global(
    "port-mac/{network}/{mac}",
    str,
    "api",
    "Who has a MAC on a network: the id of a port or router. None is left: the network may go.",
)
PORT = _global("port/{project}/{port}", network.NetworkPort, "api", "A place on a network.")
PORT_NAME = _global(
    "port-name/{project}/{name}", str, "api", "Makes port names unique in a project; the value is the id."
)
ROUTER = _global("router/{project}/{router}", network.Router, "api", "What joins subnets and leads out.")
ROUTER_NAME = _global(
    "router-name/{project}/{name}", str, "api", "Makes router names unique in a project; the value is the id."
)
ROUTER_FLOATING_IP = _global(
    "router-floating-ip/{router}/{subnet}/{floating_ip}",
    str,
    "api",
    "Which floating IPs need a router and its interface in a subnet; the value is the floating IP's id.",
)
FLOATING_IP = _global(
    "floating-ip/{project}/{floating_ip}",
    network.FloatingIp,
    "api",
    "An external address that leads to a port, or may.",
)
SECURITY_GROUP = _global(
    "security-group/{project}/{group}", security_group.SecurityGroup, "api", "What its members allow."
)
SECURITY_GROUP_NAME = _global(
    "security-group-name/{project}/{name}",
    str,
    "api",
    "Makes names of groups unique in a project; the value is the id.",
)
SECURITY_GROUP_MEMBER = _global(
    "security-group-member/{group}/{port}",
    str,
    "api",
    "Which ports are in a group; the value is the port's project. None is left: the group may go.",
)
SECURITY_GROUP_REFERRER = _global(
    "security-group-referrer/{group}/{rule}",
    str,
    "api",
    "Which rules of other groups let a group's members in; the value is the rule's group.",
)
PORT_BINDING = _global(
    "port-binding/{network}/{port}",
    binding.PortBinding,
    "conductor",
    "Which host a server's port is on, and where its tunnel ends: what other hosts' plans are made of.",
)
ROUTER_GATEWAY = _global(
    "router-gateway/{router}",
    binding.RouterGateway,
    "conductor",
    "The host from which a router leads out: the compare-and-set point of choosing one.",
)
NETWORK_USE = _global(
    "network-use/{project}/{kind}/{slot}",
    str,
    "api",
    "A place among what a project may have of a kind (networks, subnets, …); the value is who has it.",
)
VOLUME_ENTRY = _global(
    "volume/{project}/{volume}",
    volume.VolumeEntry,
    "api, reconciler",
    "A volume: whose it is, what it is called, which cell it is used in.",
)
VOLUME_NAME = _global(
    "volume-name/{project}/{name}", str, "api", "Makes volume names unique in a project; the value is the id."
)
QUOTA = _global(
    "quota/{project}",
    quota.Quota,
    "api, reconciler",
    "Limits and what is charged: the compare-and-set point of creates.",
)
CELL = _global("cell/{cell}", host.Cell, "operator", "A cell that servers may be placed in.")
CAPACITY = _global(
    "capacity/{cell}",
    host.CellCapacity,
    "scheduler",
    "What a cell can take: a hint for choosing the first cell of a create.",
)
ANSWERED = _global(
    "request/{project}/{request}",
    instance.Answered,
    "api",
    "What a request_id was answered with, for 24 hours.",
)
LOCATION = _global(
    "location/{instance}",
    instance.Location,
    "api, scheduler",
    "Which cell a server lives in, whose it is, what it is charged.",
)
BUILD = _global(
    "build/{cell}/{instance}", instance.Build, "api, scheduler", "An accepted create that has no host yet."
)

HOST = _cell(
    "host/{host}", host.Host, "api", "What the admin approved of a host; never written by or for hosts."
)
SESSION = _cell("session/{host}", host.Session, "conductor", "The fence of every write made for a host (R1).")
ALIVE = _cell(
    "alive/{host}",
    str,
    "conductor",
    "The host's session beats; the value is its epoch. A hint only.",
    leased=True,
)
USE = _cell(
    "use/{host}",
    host.Use,
    "scheduler, conductor",
    "What is claimed of a host: the compare-and-set point of claims.",
)
REPORT = _cell(
    "report/{host}",
    host.HostReport,
    "conductor",
    "What the host's resource tracker measured, when it changed.",
)
ASSIGNMENT = _cell(
    "assignment/{host}/{instance}",
    instance.Assignment,
    "scheduler, api, conductor",
    "What a host must make true.",
)
TOMBSTONE = _cell(
    "tombstone/{host}/{instance}",
    instance.Tombstone,
    "conductor",
    "A copy that a host must forget, and has not confirmed yet.",
)
INSTANCE = _cell(
    "instance/{instance}",
    instance.Instance,
    "scheduler, api, conductor",
    "A server: what was asked, what is wanted, what is.",
)
VOLUME = _cell(
    "volume/{volume}",
    volume.Volume,
    "api, scheduler, conductor",
    "Where a volume's data is and which server has it: the compare-and-set point of attaching. Kept for a day after its end.",
)
VOLUME_END = _cell(
    "volume-end/{volume}",
    volume.VolumeEnd,
    "api, conductor",
    "A volume whose data is gone: the reconciler removes its index row and gives the charge back, once.",
)
OVER = _cell(
    "over/{instance}",
    instance.Over,
    "api, scheduler, conductor",
    "The server's life is over: stops a late claim from raising it.",
)
REFUND = _cell(
    "refund/{instance}",
    instance.Refund,
    "api, scheduler, conductor",
    "The cell has let go: the reconciler gives the charge back, once.",
)
MOVE = _cell(
    "move/{instance}",
    instance.MoveWanted,
    "api, scheduler, conductor",
    "A server that wants another host, or one at all: what the scheduler has to do. Its claim takes the key away.",
)
DISCARD = _cell(
    "discard/{image}",
    instance.Discard,
    "api, scheduler, conductor",
    "An image that only carried one server's disk: the reconciler takes it away.",
)
RECHARGE = _cell(
    "recharge/{instance}",
    instance.Recharge,
    "api, scheduler, conductor",
    "A move has ended: the reconciler charges the project for what the server is now.",
)
PORT_LEFT = _cell(
    "port-left/{port}",
    instance.PortLeft,
    "api, conductor",
    "A port of a tenant network that its server does not have, or no more: the reconciler gives it back.",
)
RENAMED = _cell(
    "renamed/{instance}",
    instance.Renamed,
    "api, scheduler",
    "The server has another name: the reconciler brings it to the index.",
)
EVENT = _cell(
    "event/{instance}/{slot}",
    event.Event,
    "scheduler, api, conductor",
    "An earlier action of a server, of the last 32; kept for 24 hours after its end.",
)
ACTED = _cell(
    "acted/{project}/{request}",
    instance.Answered,
    "api",
    "What an action's request_id was answered with, for 24 hours.",
)

KEYS: tuple[Key[object], ...] = tuple(value for value in list(globals().values()) if isinstance(value, Key))
"""All of them, in the order above."""


def console_ticket_key(secret: str) -> str:
    """The key of a console ticket: the SHA-256 of its secret."""
    return CONSOLE_TICKET.at(hashlib.sha256(secret.encode()).hexdigest())


def token_key(secret: str) -> str:
    """The key of a token: the SHA-256 of its secret, so that the store never holds what would let somebody in."""
    return TOKEN.at(hashlib.sha256(secret.encode()).hexdigest())
