"""Everything a hostile host may think of saying: each field of each message, with each value that somebody got wrong once."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from fabric.conductor.core import guard
from fabric.errors import InvalidRequest
from fabric.model.session import Hello, PlanFollowed
from fabric.pb.host.v1 import host_session_service_pb2 as pb
from fabric.rpc.session_codec import unpack_from_host

OWN_PLACEMENT, OWN_GENERATION = 2, 3

_INT64 = (0, 1, 2, 3, 4, -1, 2**31, 2**53 - 1, 2**53, 2**63 - 1, -(2**63))
_INT32 = (0, 1, 50, 100, 101, -1, 4096, 4097, 2**31 - 1, -(2**31))
_TEXTS = (
    *("", "ok", "x" * 64, "x" * 65, "x" * 512, "x" * 513, "x" * 100_000, "\x1b]0;pwned\x07", "\x00", "a\nb"),
    *("\u202e\u200f", "../../etc/shadow", "%s%n", "DISK_FULL", "PAY_ME", "networking", "\N{GRINNING FACE}"),
)
_BYTES = (b"", b"\x00" * 100, b"x" * 102_400, b"x" * 102_401, b"\xff" * 900_000)


def every_word(*, own: str, others: Sequence[str], epoch: int) -> Iterator[bytes]:
    """Each message that is right, and that with each field changed to each value, alone."""
    ids = (own, *others, own.upper(), own.replace("-", ""), f"{own}\n")
    right = _right(own, epoch)
    for arm in pb.SessionRequest.DESCRIPTOR.oneofs_by_name["message"].fields:
        base = right[arm.name]
        yield _wrapped(arm.name, base)
        for place, field in _paths(base):
            for value in _values(field, ids, epoch):
                changed = type(base)()
                changed.CopyFrom(base)
                _set(_at(changed, place), field, value)
                yield _wrapped(arm.name, changed)


def floods(epoch: int) -> Iterator[bytes]:
    """As many elements as fit, and as many bytes."""
    yield pb.SessionRequest(
        inventory=pb.Inventory(epoch=epoch, held=[pb.Held()] * 100_000)
    ).SerializeToString()
    yield pb.SessionRequest(inventory=pb.Inventory(epoch=epoch, strays=[""] * 1_900_000)).SerializeToString()
    yield pb.SessionRequest(console_log=pb.ConsoleLog(data=b"x" * 4_000_000)).SerializeToString()
    yield pb.SessionRequest(hello=pb.Hello(boot_id="x" * 4_000_000)).SerializeToString()
    # All at once: the last one counts, and the others must not linger. The last is one that names a server, by no id at all.
    each = dict(_right("x", epoch))
    last = each.pop("status")
    yield b"".join([*(_wrapped(arm, message) for arm, message in each.items()), _wrapped("status", last)])
    yield b""


def garbage(chance: random.Random, words: Sequence[bytes]) -> Iterator[bytes]:
    """Truncated, damaged and random frames, without end; some may parse all the same."""
    while True:
        data = bytearray(chance.choice(words)[:4096])
        match chance.randrange(5):
            case 0:
                yield chance.randbytes(chance.randrange(1, 200))
            case 1:
                yield bytes(data[: chance.randrange(len(data) + 1)])
            case 2:
                for _ in range(chance.randrange(1, 8)):
                    if data:
                        data[chance.randrange(len(data))] = chance.randrange(256)
                yield bytes(data)
            case 3:
                yield bytes(data) + b"\xc2\x3e\x05owned"  # a field that nobody knows
            case _:
                yield b"\x0b" * chance.randrange(1, 2000)  # groups that never end


def is_in_form(word: bytes) -> bool:
    """Whether the guard lets it pass as far as form goes. What it says may still be anything."""
    try:
        message = unpack_from_host(word)
    except InvalidRequest:
        return False
    return not isinstance(message, Hello) and guard.breach(message) is None


def is_offence(word: bytes, *, epoch: int) -> bool:
    """Whether it counts against a host that has a session and was told no plan: out of form or invented, and not just late."""
    try:
        message = unpack_from_host(word)
    except InvalidRequest:
        return True
    is_invented = isinstance(message, PlanFollowed)
    return (is_invented or not is_in_form(word)) and guard.epoch_of(message) in {None, epoch}


# ------------------------------------------------------------------------------------------ how they are made


def _right(own: str, epoch: int) -> Mapping[str, Message]:
    """One message of each kind that is as it should be, by the name of its arm."""
    amounts = pb.Amounts(vcpus=1, ram_mib=512, disk_gib=1)
    return {
        "hello": pb.Hello(boot_id="boot", agent_version="1", highest_epoch=epoch),
        "beat": pb.Beat(seq=1, epoch=epoch),
        "status": pb.Status(
            epoch=epoch,
            instance_id=own,
            placement_epoch=OWN_PLACEMENT,
            generation=OWN_GENERATION,
            state=pb.HOST_STATE_ACTIVE,
            power=pb.POWER_RUNNING,
            steps=[pb.StepDone(name=1, began_ago_ms=2, took_ms=1)],
        ),
        "released": pb.Released(epoch=epoch, instance_id=own, placement_epoch=OWN_PLACEMENT),
        "report": pb.Report(
            epoch=epoch,
            total=pb.Amounts(vcpus=8, ram_mib=8192, disk_gib=100),
            used=amounts,
            running=1,
            hypervisor="qemu",
            hypervisor_version="9",
            agent_version="1",
            health="ok",
        ),
        "console_log": pb.ConsoleLog(question=1, data=b"Linux version"),
        "progress": pb.Progress(
            epoch=epoch, instance_id=own, placement_epoch=OWN_PLACEMENT, step="image", percent=40
        ),
        "inventory": pb.Inventory(
            epoch=epoch,
            held=[pb.Held(instance_id=own, placement_epoch=OWN_PLACEMENT, power=pb.POWER_RUNNING)],
            strays=["somebody-elses"],
        ),
        "diagnostics": pb.Diagnostics(
            question=1,
            power=pb.POWER_RUNNING,
            uptime_s=5,
            vcpu_time_ms=[7],
            memory_kib=131072,
            disks=[pb.DiskCounters(device="vda", read_bytes=1)],
            interfaces=[pb.InterfaceCounters(mac="fa:16:3e:00:00:01", rx_bytes=1)],
        ),
        "password_set": pb.PasswordSet(question=1),
        "tunnel_refused": pb.TunnelRefused(question=1, fault_code="CONSOLE_IN_USE"),
        "plan_followed": pb.PlanFollowed(epoch=epoch, revision=1),
    }


def _paths(message: Message) -> Iterator[tuple[tuple[str, ...], FieldDescriptor]]:
    """Each field, and each field of a message within: where it is, and what."""
    for field in cast("list[FieldDescriptor]", message.DESCRIPTOR.fields):
        yield (), field
        if field.message_type is not None:
            for each in cast("list[FieldDescriptor]", field.message_type.fields):
                yield (field.name,), each


def _at(message: Message, place: tuple[str, ...]) -> Message:
    for name in place:
        found = getattr(message, name)
        message = found if isinstance(found, Message) else found[0]
    return message


def _values(field: FieldDescriptor, ids: Sequence[str], epoch: int) -> Sequence[Any]:
    if field.is_repeated:
        return (0, 2, 4096, 4097)
    if field.message_type is not None:
        return ("absent",)
    if field.enum_type is not None:
        return (*range(9), 77, -1, 2**31 - 1)
    if field.name == "instance_id":
        return (*ids, *_TEXTS)
    if field.name == "epoch":
        return (*_INT64, epoch - 1, epoch + 1)
    return {
        FieldDescriptor.TYPE_BOOL: (False, True),
        FieldDescriptor.TYPE_INT64: _INT64,
        FieldDescriptor.TYPE_INT32: _INT32,
        FieldDescriptor.TYPE_STRING: _TEXTS,
        FieldDescriptor.TYPE_BYTES: _BYTES,
    }[field.type]


def _set(message: Message, field: FieldDescriptor, value: Any) -> None:
    if field.is_repeated:
        items = getattr(message, field.name)
        first = list(items[:1])
        message.ClearField(field.name)
        getattr(message, field.name).extend(first * value)
    elif field.message_type is not None:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, value)


def _wrapped(arm: str, message: Message) -> bytes:
    envelope = pb.SessionRequest()
    getattr(envelope, arm).CopyFrom(message)
    getattr(envelope, arm).SetInParent()
    return envelope.SerializeToString()
