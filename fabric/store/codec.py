"""Frozen values to stored bytes and back, through the messages of fabric.record.v1.

Bytes that do not parse are a `Bug` that names the record, never its content.
"""

from __future__ import annotations

from collections import abc
from typing import TypeVar, cast

from google.protobuf.message import DecodeError, Message

from fabric.errors import Bug
from fabric.mapping import Mapping
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
    placement,
    quota,
    security_group,
    volume,
)
from fabric.pb.record.v1 import (
    binding_pb2,
    catalogue_pb2,
    event_pb2,
    host_pb2,
    identity_pb2,
    instance_pb2,
    network_pb2,
    placement_pb2,
    quota_pb2,
    volume_pb2,
)
from fabric.store.schema import SCHEMA_VERSION

V = TypeVar("V")

_VERSION_FIELD = "schema_version"

RECORDS: abc.Mapping[type, type[Message]] = {
    identity.Project: identity_pb2.Project,
    identity.User: identity_pb2.User,
    identity.RoleGrant: identity_pb2.RoleGrant,
    identity.Token: identity_pb2.Token,
    console.ConsoleTicket: identity_pb2.ConsoleTicket,
    flavor.Flavor: catalogue_pb2.Flavor,
    keypair.Keypair: catalogue_pb2.Keypair,
    image.Image: catalogue_pb2.Image,
    network.Network: catalogue_pb2.Network,
    network.Port: instance_pb2.Port,
    network.PortAddress: instance_pb2.PortAddress,
    network.AddressRange: network_pb2.AddressRange,
    network.HostRoute: network_pb2.HostRoute,
    network.Subnet: network_pb2.Subnet,
    network.FixedAddress: network_pb2.FixedAddress,
    network.AddressPair: network_pb2.AddressPair,
    network.NetworkPort: network_pb2.NetworkPort,
    network.RouterInterface: network_pb2.RouterInterface,
    network.Router: network_pb2.Router,
    network.FloatingIp: network_pb2.FloatingIp,
    security_group.SecurityRule: network_pb2.SecurityRule,
    security_group.SecurityGroup: network_pb2.SecurityGroup,
    binding.PortBinding: binding_pb2.PortBinding,
    binding.RouterGateway: binding_pb2.RouterGateway,
    placement.Refusal: placement_pb2.Refusal,
    placement.Decision: placement_pb2.Decision,
    quota.Charge: quota_pb2.Charge,
    quota.Quota: quota_pb2.Quota,
    host.Resources: host_pb2.Resources,
    host.Host: host_pb2.Host,
    host.Session: host_pb2.Session,
    host.Use: host_pb2.Use,
    host.HostReport: host_pb2.HostReport,
    host.Cell: host_pb2.Cell,
    host.CellCapacity: host_pb2.CellCapacity,
    event.EventStep: event_pb2.EventStep,
    event.Event: event_pb2.Event,
    volume.GuestVolume: volume_pb2.GuestVolume,
    volume.VolumeEntry: volume_pb2.VolumeEntry,
    volume.Volume: volume_pb2.Volume,
    volume.VolumeEnd: volume_pb2.VolumeEnd,
    volume.Plug: volume_pb2.Plug,
    instance.ActionMark: instance_pb2.ActionMark,
    instance.ImageRef: instance_pb2.ImageRef,
    instance.VolumeImage: instance_pb2.VolumeImage,
    instance.Guest: instance_pb2.Guest,
    instance.Rescue: instance_pb2.Rescue,
    instance.Fault: instance_pb2.Fault,
    instance.Request: instance_pb2.Request,
    instance.Place: instance_pb2.Place,
    instance.Move: instance_pb2.Move,
    instance.Instance: instance_pb2.Instance,
    instance.Assignment: instance_pb2.Assignment,
    instance.Tombstone: instance_pb2.Tombstone,
    instance.MoveWanted: instance_pb2.MoveWanted,
    instance.Discard: instance_pb2.Discard,
    instance.Recharge: instance_pb2.Recharge,
    instance.Over: instance_pb2.Over,
    instance.Refund: instance_pb2.Refund,
    instance.Renamed: instance_pb2.Renamed,
    instance.PortLeft: instance_pb2.PortLeft,
    instance.Location: instance_pb2.Location,
    instance.Build: instance_pb2.Build,
    instance.Answered: instance_pb2.Answered,
}
"""Which message each value is stored as."""

_MAPPING = Mapping(RECORDS, ignored={_VERSION_FIELD})


def to_record(value: object) -> Message:
    """The message a value is stored as, with the schema version it is written under."""
    message = _MAPPING.pack(value)
    if _VERSION_FIELD in message.DESCRIPTOR.fields_by_name:
        setattr(message, _VERSION_FIELD, SCHEMA_VERSION)
    return message


def encode(value: object) -> bytes:
    """Stored bytes of a value; a plain string is stored as UTF-8. Deterministic: equal values give equal bytes."""
    if isinstance(value, str):
        return value.encode()
    return to_record(value).SerializeToString(deterministic=True)


def decode(kind: type[V], data: bytes) -> V:
    """The value in stored bytes. Raises Bug when they are not such a record."""
    try:
        if kind is str:
            return cast("V", data.decode())
        message = RECORDS[kind]()
        message.ParseFromString(data)
        return _MAPPING.take(kind, message)
    except (DecodeError, ValueError) as broken:
        raise Bug(f"a stored {kind.__name__} does not parse", record=kind.__name__) from broken
