"""What a value has, its message shows, or a row here says why not."""

from __future__ import annotations

import dataclasses
import enum
import typing
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message

from fabric.api import convert, network_messages
from fabric.model import image as image_model
from fabric.model.flavor import Flavor
from fabric.model.host import Host, HostReport, Resources, Session, SessionState, Use
from fabric.model.identity import Project, User
from fabric.model.image import Image
from fabric.model.keypair import Keypair
from fabric.model.network import FloatingIp, Network, NetworkKind, NetworkPort, Router, Subnet
from fabric.model.quota import Charge, Quota
from fabric.model.security_group import Direction, EtherType, SecurityGroup, SecurityRule
from fabric.pb.image.v1 import image_service_pb2
from fabric.pb.network.v1 import security_group_service_pb2


def filled(kind: type[Any], salt: int = 3) -> Any:
    """A value with something of its own in every field."""
    hints = typing.get_type_hints(kind)
    fields: dict[str, Any] = {}
    for number, field in enumerate(dataclasses.fields(kind), start=salt):
        hint = hints[field.name]
        origin = typing.get_origin(hint)
        if origin is tuple:
            (item, _) = typing.get_args(hint)
            if isinstance(item, type) and dataclasses.is_dataclass(item):
                fields[field.name] = (filled(item, number * 10),)
            else:
                fields[field.name] = (number,) if item is int else (f"{field.name}-{number}",)
        elif origin is not None:
            fields[field.name] = {f"{field.name}-{number}": "v"}
        elif issubclass(hint, enum.Enum):
            fields[field.name] = list(hint)[-1]
        elif hint is bool:
            fields[field.name] = True
        elif hint is int:
            fields[field.name] = number * 1000
        elif hint is str:
            fields[field.name] = f"{field.name}-{number}"
        else:
            fields[field.name] = filled(hint, number * 10)
    return kind(**fields)


def project(value: Project) -> Message:
    return convert.project_message(value, filled(Quota))


def host(value: Host) -> Message:
    return convert.host_message(value, 7, session=filled(Session), use=filled(Use), report=filled(HostReport))


def flavor(value: Flavor) -> Message:
    return convert.flavor_message(value, 7)


def network(value: Network) -> Message:
    return network_messages.network_message(value, 7, is_admin=True)


def subnet(value: Subnet) -> Message:
    return network_messages.subnet_message(value, 7)


def port(value: NetworkPort) -> Message:
    return network_messages.port_message(value, 7)


def router(value: Router) -> Message:
    return network_messages.router_message(value, 7)


def floating_ip(value: FloatingIp) -> Message:
    return network_messages.floating_ip_message(value, 7)


def group(value: SecurityGroup) -> Message:
    return network_messages.group_message(value, 7)


def rule(value: SecurityRule) -> Message:
    return network_messages.rule_message(value, filled(SecurityGroup))


CASES: list[tuple[type[Any], Callable[[Any], Message], set[str]]] = [
    (Flavor, flavor, {"update_time_ms"}),  # flavors never change
    (Keypair, convert.keypair_message, {"key_type"}),  # there is one kind
    (Network, network, {"quota_slot"}),
    (Subnet, subnet, {"quota_slot"}),
    (
        NetworkPort,
        port,
        {"quota_slot", "floating_ips"},  # they are shown by themselves
    ),
    (
        Router,
        router,
        {"quota_slot", "external_mac", "vni"},  # what is outside, and between hosts, is the operator's
    ),
    (
        FloatingIp,
        floating_ip,
        {"quota_slot", "subnet_id", "fixed_subnet_id"},  # the addresses say it
    ),
    (SecurityGroup, group, {"quota_slot"}),
    (SecurityRule, rule, set()),
    (
        Image,
        convert.image_message,
        {
            "update_time_ms",
            "fault",
            "hidden",
        },  # a refused image has no record, and a hidden one is shown to nobody
    ),
    (User, convert.user_message, {"password_hash", "update_time_ms"}),
    (Project, project, {"update_time_ms"}),
    (
        Host,
        host,
        {"slots", "update_time_ms"},  # what the subnet has; hosts are shown with their approval's time
    ),
]


def _unset(message: Message, path: str = "") -> list[str]:
    found = []
    for field in message.DESCRIPTOR.fields:
        name = f"{path}{field.name}"
        value = getattr(message, field.name)
        if field.is_repeated:
            found += [] if len(value) else [name]
        elif field.message_type is not None:
            if not message.HasField(field.name):
                found.append(name)
            elif field.message_type.full_name != "google.protobuf.Timestamp":
                found += _unset(value, f"{name}.")
        elif not value:
            found.append(name)
    return found


@pytest.mark.parametrize(
    ("kind", "message_of"), [case[:2] for case in CASES], ids=lambda each: getattr(each, "__name__", "")
)
def test_no_field_of_a_message_is_forgotten(kind: type[Any], message_of: Callable[[Any], Message]) -> None:
    unset = set(_unset(message_of(filled(kind))))

    assert unset <= {
        "spec.disabled",  # of a host that is enabled
        "no_gateway",  # of what has one
        "no_dhcp",
        "no_fixed_ip",
        "no_security_group",
        "port_security_disabled",
        "snat_disabled",
    }


@pytest.mark.parametrize(
    ("kind", "message_of", "left_out"), CASES, ids=lambda each: getattr(each, "__name__", "")
)
def test_no_field_of_a_value_is_forgotten(
    kind: type[Any], message_of: Callable[[Any], Message], left_out: set[str]
) -> None:
    """Each field by itself changes what is shown, unless a row says that it is not to be shown."""
    value = filled(kind)
    shown = message_of(value).SerializeToString(deterministic=True)
    other = filled(kind, 50)

    for field in dataclasses.fields(kind):
        replacement = getattr(other, field.name)
        if replacement == getattr(value, field.name):
            replacement = type(replacement)(1) if isinstance(replacement, enum.Enum) else not replacement
        changed = message_of(dataclasses.replace(value, **{field.name: replacement}))
        is_shown = changed.SerializeToString(deterministic=True) != shown
        assert is_shown == (field.name not in left_out), field.name


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (image_model.ImageFormat, image_service_pb2.ImageFormat),
        (image_model.Visibility, image_service_pb2.Visibility),
        (Direction, security_group_service_pb2.Direction),
        (EtherType, security_group_service_pb2.EtherType),
    ],
    ids=["ImageFormat", "Visibility", "Direction", "EtherType"],
)
def test_enums_have_the_same_numbers_on_both_sides(ours: type[enum.IntEnum], theirs: Any) -> None:
    mine = {each.name: each.value for each in ours}

    assert {name.rpartition("_")[2]: number for name, number in theirs.items()} == mine


def test_a_host_that_never_came_reads_as_unreachable() -> None:
    message = convert.host_message(filled(Host), 7, session=None, use=None, report=None)

    assert message.status.state == SessionState.UNREACHABLE.name


def test_limits_come_back_as_they_were_asked_for() -> None:
    message = convert.project_message(filled(Project), filled(Quota))

    assert convert.charge_value(message.quota_limit, Charge()) == filled(Quota).limit
    assert convert.charge_value(message.quota_used, Charge()) == filled(Quota).used
    assert isinstance(filled(Host).capacity, Resources)
    assert isinstance(filled(Quota).limit, Charge)


def test_every_kind_of_network_has_a_word() -> None:
    assert set(network_messages.KIND_WORDS) == set(NetworkKind)


def test_a_vni_is_the_operators_business() -> None:
    assert network_messages.network_message(filled(Network), 7).vni == 0
