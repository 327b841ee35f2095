"""The host session's values to their wire messages and back (fabric.host.v1)."""

from __future__ import annotations

import re
from typing import Final, cast

from google.protobuf.message import DecodeError, Message

from fabric.errors import InvalidRequest, Reason
from fabric.mapping import Mapping
from fabric.model import host, instance, network, session, volume
from fabric.pb.host.v1 import host_session_service_pb2 as pb

FROM_HOST_LIMIT_BYTES: Final = 1024 * 1024
"""No message of a host is larger: the fullest inventory that the guard lets pass takes seven tenths of it."""

ELEMENTS_LIMIT: Final = 4096
"""No list in a message of a host has more. Two bytes make an element, and a million of them would hold up every other host's session for
longer than its lease lasts: so they are counted before any is looked at."""

_MAPPING = Mapping(
    {
        host.Resources: pb.Amounts,
        network.HostRoute: pb.HostRoute,
        network.PortAddress: pb.PortAddress,
        network.Port: pb.Port,
        instance.ImageRef: pb.ImageRef,
        volume.GuestVolume: pb.GuestVolume,
        instance.VolumeImage: pb.VolumeImage,
        instance.Guest: pb.Guest,
        instance.Rescue: pb.Rescue,
        session.Hello: pb.Hello,
        session.Beat: pb.Beat,
        session.StepDone: pb.StepDone,
        session.Status: pb.Status,
        session.Released: pb.Released,
        session.Report: pb.Report,
        session.ConsoleLog: pb.ConsoleLog,
        session.Progress: pb.Progress,
        session.Held: pb.Held,
        session.Inventory: pb.Inventory,
        session.DiskCounters: pb.DiskCounters,
        session.InterfaceCounters: pb.InterfaceCounters,
        session.Diagnostics: pb.Diagnostics,
        session.PasswordSet: pb.PasswordSet,
        session.TunnelRefused: pb.TunnelRefused,
        session.DiagnosticsWanted: pb.DiagnosticsWanted,
        session.PasswordWanted: pb.PasswordWanted,
        session.TunnelWanted: pb.TunnelWanted,
        session.Granted: pb.Granted,
        session.Order: pb.Order,
        session.Release: pb.Release,
        session.Snapshot: pb.Snapshot,
        session.BeatAck: pb.BeatAck,
        session.StatusAck: pb.StatusAck,
        session.ReleaseAck: pb.ReleaseAck,
        session.ConsoleLogWanted: pb.ConsoleLogWanted,
        session.Goodbye: pb.Goodbye,
        session.PlanPart: pb.PlanPart,
        session.PlanFollowed: pb.PlanFollowed,
    }
)


def _arm(kind: type) -> str:
    """The name of the oneof's field that carries this kind: the kind's own name, in snake case."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


_FROM_HOST = {_arm(kind): kind for kind in session.FromHost.__args__}
_FROM_CONDUCTOR = {_arm(kind): kind for kind in session.FromConductor.__args__}


def pack_from_host(value: session.FromHost) -> bytes:
    """What a host says, as bytes."""
    return _pack(pb.SessionRequest(), value)


def pack_from_conductor(value: session.FromConductor) -> bytes:
    """What a conductor says, as bytes."""
    return _pack(pb.SessionResponse(), value)


def unpack_from_host(data: bytes) -> session.FromHost:
    """What a host said. Raises InvalidRequest for bytes that say nothing we know: the stream's owner decides what that costs.

    A host is not trusted: what this may cost is bounded before anything else is asked.
    """
    if len(data) > FROM_HOST_LIMIT_BYTES:
        raise InvalidRequest(
            f"the message has more than {FROM_HOST_LIMIT_BYTES} bytes",
            field="message",
            reason=Reason.TOO_LARGE,
        )
    return cast(
        "session.FromHost", _unpack(pb.SessionRequest(), _FROM_HOST, data, elements_limit=ELEMENTS_LIMIT)
    )


def unpack_from_conductor(data: bytes) -> session.FromConductor:
    """What a conductor said. Raises InvalidRequest for bytes that say nothing we know."""
    return cast("session.FromConductor", _unpack(pb.SessionResponse(), _FROM_CONDUCTOR, data))


def pack_diagnostics(value: session.Diagnostics) -> pb.Diagnostics:
    """A guest's counters as a message of its own, for whoever asked the conductor."""
    message = pb.Diagnostics()
    _MAPPING.fill(value, message)
    return message


def unpack_diagnostics(message: pb.Diagnostics) -> session.Diagnostics:
    """A guest's counters, from the conductor. Raises ValueError for what this version does not know."""
    return _MAPPING.take(session.Diagnostics, message)


def _pack(envelope: Message, value: object) -> bytes:
    arm = getattr(envelope, _arm(type(value)))
    arm.SetInParent()
    _MAPPING.fill(value, arm)
    return envelope.SerializeToString()


def _unpack(
    envelope: Message, kinds: dict[str, type], data: bytes, *, elements_limit: int | None = None
) -> object:
    try:
        envelope.ParseFromString(data)
        arm = envelope.WhichOneof("message")
        if arm is None:
            raise InvalidRequest(
                "the message is empty, or of a kind this version does not know", field="message"
            )
        said: Message = getattr(envelope, arm)
        if elements_limit is not None:
            _count(said, elements_limit)
        return _MAPPING.take(kinds[arm], said)
    except (DecodeError, ValueError) as broken:
        raise InvalidRequest(
            "the message does not parse", field="message", reason=Reason.MESSAGE_MALFORMED
        ) from broken


def _count(message: Message, most: int) -> None:
    """Messages of hosts have lists at their top level only; a test sees to that."""
    for field, value in message.ListFields():
        if field.is_repeated and len(value) > most:
            raise InvalidRequest(
                f"{field.name} has more than {most} elements", field=field.name, reason=Reason.TOO_LARGE
            )
