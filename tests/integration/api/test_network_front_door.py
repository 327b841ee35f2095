"""Networks over real gRPC: the cookbook, field rules, roles, strangers, and what the audit log says of it."""

from __future__ import annotations

import json
import uuid

import pytest
from google.protobuf.message import Message

from fabric.errors import InvalidRequest, NotFound, PermissionDenied
from fabric.pb.compute.v1 import instance_service_pb2 as instances
from fabric.pb.network.v1 import floating_ip_service_pb2 as floating_ips
from fabric.pb.network.v1 import network_service_pb2 as networks
from fabric.pb.network.v1 import port_service_pb2 as ports
from fabric.pb.network.v1 import router_service_pb2 as routers
from fabric.pb.network.v1 import security_group_service_pb2 as groups
from fabric.pb.network.v1 import subnet_service_pb2 as subnets
from tests.integration.api.front_door import FrontDoor
from tests.integration.api.test_front_door import INSTANCES, make_flavor, make_image
from tests.unit.api import network_books


def rid() -> str:
    return uuid.uuid4().hex


def service(noun: str) -> str:
    return f"fabric.network.v1.{noun}Service"


async def outside(door: FrontDoor) -> None:
    """A network that leads out, as an administrator makes it."""
    network = networks.Network(name="public", external=True)
    await door.ask(
        service("Network"),
        "CreateNetwork",
        networks.CreateNetworkRequest(request_id=rid(), network=network),
        "system admin",
    )
    subnet = subnets.Subnet(name="public-subnet", network="public", cidr="172.24.4.0/24")
    await door.ask(
        service("Subnet"),
        "CreateSubnet",
        subnets.CreateSubnetRequest(request_id=rid(), subnet=subnet),
        "system admin",
    )


async def cookbook(door: FrontDoor, who: str) -> floating_ips.FloatingIp:
    """From nothing to an address that leads to a port with SSH open."""
    steps: list[tuple[str, str, Message]] = [
        (
            "Network",
            "CreateNetwork",
            networks.CreateNetworkRequest(network=networks.Network(name="nebula_net")),
        ),
        (
            "Subnet",
            "CreateSubnet",
            subnets.CreateSubnetRequest(
                subnet=subnets.Subnet(name="nebula_subnet", network="nebula_net", cidr="10.0.0.0/24")
            ),
        ),
        (
            "Router",
            "CreateRouter",
            routers.CreateRouterRequest(router=routers.Router(name="r", external_network="public")),
        ),
        (
            "Router",
            "AddRouterInterface",
            routers.AddRouterInterfaceRequest(router="r", subnet="nebula_subnet"),
        ),
        (
            "SecurityGroup",
            "CreateSecurityGroup",
            groups.CreateSecurityGroupRequest(security_group=groups.SecurityGroup(name="web")),
        ),
        (
            "SecurityGroup",
            "CreateSecurityGroupRule",
            groups.CreateSecurityGroupRuleRequest(
                rule=groups.SecurityGroupRule(security_group="web", protocol="tcp", port_range_min=22)
            ),
        ),
        (
            "Port",
            "CreatePort",
            ports.CreatePortRequest(port=ports.Port(name="p", network="nebula_net", security_groups=["web"])),
        ),
    ]
    for noun, method, request in steps:
        request.request_id = rid()  # type: ignore[attr-defined]  # every change has one
        await door.ask(service(noun), method, request, who)
    request = floating_ips.CreateFloatingIpRequest(
        request_id=rid(), floating_ip=floating_ips.FloatingIp(network="public", port="p")
    )
    answer = await door.ask(service("FloatingIp"), "CreateFloatingIp", request, who)
    return floating_ips.CreateFloatingIpResponse.FromString(answer).floating_ip


async def test_two_projects_cook_by_the_same_book_and_the_books_balance(door: FrontDoor) -> None:
    await outside(door)

    made = [await cookbook(door, who) for who in ("own member", "other member")]

    assert len({each.ip_address for each in made}) == 2
    found = await network_books.check(door.store)
    assert [each.cidr for each in found["subnet/{subnet}"]].count("10.0.0.0/24") == 2


async def test_what_is_anothers_is_not_there(door: FrontDoor) -> None:
    await outside(door)
    made = await cookbook(door, "own member")
    port = made.port

    told = []
    for word in (port, str(uuid.uuid4())):
        with pytest.raises(NotFound) as raised:
            await door.ask(service("Port"), "GetPort", ports.GetPortRequest(port=word), "other admin")
        told.append(repr((raised.value.message, sorted(raised.value.facts.items()))).replace(word, "X"))
    assert told[0] == told[1]
    for noun, kind in (("Port", ports.ListPortsRequest), ("Router", routers.ListRoutersRequest)):
        assert await door.ask(service(noun), f"List{noun}s", kind(), "other admin")
    listed = await door.ask(service("Port"), "ListPorts", ports.ListPortsRequest(), "other admin")
    assert not ports.ListPortsResponse.FromString(listed).ports


async def test_readers_read(door: FrontDoor) -> None:
    await outside(door)
    await cookbook(door, "own member")

    answer = await door.ask(service("Port"), "GetPort", ports.GetPortRequest(port="p"), "own reader")
    with pytest.raises(PermissionDenied):
        await door.ask(
            service("Port"), "DeletePort", ports.DeletePortRequest(request_id=rid(), port="p"), "own reader"
        )

    assert ports.GetPortResponse.FromString(answer).port.name == "p"


BAD: list[tuple[str, str, Message, str]] = [
    (
        "Network",
        "CreateNetwork",
        networks.CreateNetworkRequest(request_id="r", network=networks.Network(name="a/b")),
        "network.name",
    ),
    (
        "Network",
        "CreateNetwork",
        networks.CreateNetworkRequest(request_id="r", network=networks.Network(name="n", vni=7)),
        "network.vni",
    ),
    (
        "Network",
        "CreateNetwork",
        networks.CreateNetworkRequest(request_id="r", network=networks.Network(name="n", mtu=100)),
        "network.mtu",
    ),
    (
        "Network",
        "UpdateNetwork",
        networks.UpdateNetworkRequest(request_id="r", network="public"),
        "update_mask",
    ),
    (
        "Subnet",
        "CreateSubnet",
        subnets.CreateSubnetRequest(
            request_id="r", subnet=subnets.Subnet(name="s", network="public", cidr="10.0.0.9/24")
        ),
        "subnet.cidr",
    ),
    (
        "Port",
        "CreatePort",
        ports.CreatePortRequest(request_id="r", port=ports.Port(network="public", mac_address="nonsense")),
        "port.mac_address",
    ),
    (
        "Port",
        "CreatePort",
        ports.CreatePortRequest(request_id="r", port=ports.Port(network="default")),
        "port.network",
    ),
    (
        "SecurityGroup",
        "CreateSecurityGroupRule",
        groups.CreateSecurityGroupRuleRequest(
            request_id="r",
            rule=groups.SecurityGroupRule(security_group="default", protocol="tcp", port_range_min=70_000),
        ),
        "rule.port_range_min",
    ),
]


@pytest.mark.parametrize("case", BAD, ids=lambda case: f"{case[1]}-{case[3]}")
async def test_bad_input_names_its_field_and_changes_nothing(
    door: FrontDoor, case: tuple[str, str, Message, str]
) -> None:
    noun, method, request, field = case
    await outside(door)
    await door.ask(
        service("SecurityGroup"), "ListSecurityGroups", groups.ListSecurityGroupsRequest(), "system admin"
    )
    before = door.store.revision

    with pytest.raises(InvalidRequest) as raised:
        await door.ask(service(noun), method, request, "system admin")

    assert raised.value.field == field
    assert door.store.revision == before


async def test_servers_are_attached_to_what_they_name_and_else_to_the_hosts_own_network(
    door: FrontDoor,
) -> None:
    await outside(door)
    await cookbook(door, "own member")
    await make_flavor(door)
    await make_image(door)
    create = instances.CreateInstanceRequest(
        request_id=rid(), name="web", flavor="m1.nebula_micro", image="linux"
    )

    answer = await door.ask(INSTANCES, "CreateInstance", create, "own member")
    plain = instances.CreateInstanceResponse.FromString(answer).instance
    create.request_id, create.network = rid(), "nebula_net"
    answer = await door.ask(INSTANCES, "CreateInstance", create, "own member")
    wired = instances.CreateInstanceResponse.FromString(answer).instance
    create.request_id, create.network = rid(), "public"
    with pytest.raises(PermissionDenied, match="floating IP"):
        await door.ask(INSTANCES, "CreateInstance", create, "own member")

    (address,) = wired.status.addresses
    assert (plain.spec.network_name, list(plain.status.addresses)) == ("default", [])
    assert (wired.spec.network_name, address.network_name) == ("nebula_net", "nebula_net")


async def test_every_change_is_in_the_audit_log_with_its_target(door: FrontDoor) -> None:
    await outside(door)
    await cookbook(door, "own member")

    told = [json.loads(line) for line in door.audit.written]

    methods = [line["method"].rpartition("/")[2] for line in told]
    assert "AddRouterInterface" in methods
    assert "CreateSecurityGroupRule" in methods
    assert [line["target"] for line in told if line["method"].endswith("CreateNetwork")] == [
        "public",
        "nebula_net",
    ]
