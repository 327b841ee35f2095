"""The formats guests know: OpenStack's and the part of EC2's; and who may have them."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.model.instance import Guest
from fabric.model.network import HostRoute, PortAddress
from hostd.core.metadata import VERSIONS, answer, documents, meta_data, network_data
from hostd.core.metadata_request import Request, Response, parse, respond
from tests.conformance.guests import a_guest, a_port, a_tenant_port

GUEST = a_guest(
    "web",
    ports=(a_port(1, mtu=1450),),
    public_keys={"b": "ssh-ed25519 BBBB", "a": "ssh-rsa AAAA"},
    metadata={"role": "web"},
    user_data=b"\x1f\x8b binary is fine",
    availability_zone="nova",
)


def test_meta_data_has_what_cloud_init_asks_of_openstack() -> None:
    said = meta_data(GUEST, random_seed=b"seed")

    assert said["uuid"] == GUEST.id
    assert (said["name"], said["hostname"], said["launch_index"]) == ("web", "web", 0)
    assert said["availability_zone"] == "nova"
    assert said["project_id"] == GUEST.project_id
    assert said["meta"] == {"role": "web"}
    assert said["public_keys"] == GUEST.public_keys
    assert said["keys"][0] == {"name": "a", "type": "ssh", "data": "ssh-rsa AAAA"}
    assert base64.b64decode(said["random_seed"]) == b"seed"


def test_network_data_describes_static_links_by_mac() -> None:
    said = network_data(GUEST.ports)

    assert said["links"] == [
        {
            "id": "link0",
            "vif_id": GUEST.ports[0].id,
            "type": "bridge",
            "mtu": 1450,
            "ethernet_mac_address": "fa:16:3e:00:00:01",
        }
    ]
    (network,) = said["networks"]
    assert (network["type"], network["link"]) == ("ipv4", "link0")
    assert (network["ip_address"], network["netmask"]) == ("10.77.0.2", "255.255.255.0")
    assert network["routes"] == [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.77.0.1"}]  # noqa: S104 - a route, nothing listens
    assert said["services"] == [{"type": "dns", "address": "192.0.2.53"}]


def test_only_the_first_port_has_a_default_route_and_servers_are_told_once() -> None:
    said = network_data((a_port(1), a_port(2)))

    assert [len(network["routes"]) for network in said["networks"]] == [1, 0]
    assert len(said["services"]) == 1


def test_a_port_of_a_projects_network_is_described_with_all_its_addresses() -> None:
    """Only the first address was told, as an IPv4 one: a guest with both families had no IPv6, and one whose first address is IPv6 could
    not be started at all, because there is no IPv4 netmask of 64 bits.
    """
    route = HostRoute(destination="10.9.0.0/16", next_hop="10.0.0.9")
    six = PortAddress(address="fd00::11", prefix_length=64, gateway="fd00::1")
    port = a_tenant_port(1, routes=(route,), dns_servers=("192.0.2.53", "2001:db8::53"), further=(six,))

    said = network_data((port,))

    four, sixth = said["networks"]
    assert (four["id"], four["type"], four["ip_address"], four["netmask"]) == (
        *("network0", "ipv4"),
        *("10.0.0.11", "255.255.255.0"),
    )
    assert four["routes"] == [
        {"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.0.0.1"},  # noqa: S104 - the default route, not a bind
        {"network": "10.9.0.0", "netmask": "255.255.0.0", "gateway": "10.0.0.9"},
    ]
    assert (sixth["id"], sixth["type"], sixth["ip_address"], sixth["netmask"]) == (
        *("network1", "ipv6"),
        *("fd00::11", "ffff:ffff:ffff:ffff::"),
    )
    assert sixth["routes"] == [{"network": "::", "netmask": "::", "gateway": "fd00::1"}]
    assert [each["address"] for each in four["services"]] == ["192.0.2.53"]
    assert [each["address"] for each in sixth["services"]] == ["2001:db8::53"]
    assert [each["address"] for each in said["services"]] == ["192.0.2.53", "2001:db8::53"]
    assert {each["link"] for each in said["networks"]} == {said["links"][0]["id"]}


def test_there_is_one_way_out_of_each_family_and_none_where_there_is_no_gateway() -> None:
    six = PortAddress(address="fd00::11", prefix_length=64, gateway="fd00::1")
    isolated, first, second = (
        a_tenant_port(1, gateway="", further=()),
        a_port(2),
        a_tenant_port(3, further=(six,)),
    )

    said = network_data((isolated, first, second))

    assert [
        (network["ip_address"], [route["gateway"] for route in network["routes"]])
        for network in said["networks"]
    ] == [("10.0.0.11", []), ("10.77.0.3", ["10.77.0.1"]), ("10.0.0.13", []), ("fd00::11", ["fd00::1"])]


def test_a_default_route_that_somebody_chose_takes_the_gateways_place() -> None:
    chosen = HostRoute(destination="0.0.0.0/0", next_hop="10.0.0.9")

    said = network_data((a_tenant_port(1, routes=(chosen,), further=()),))

    assert [route["gateway"] for route in said["networks"][0]["routes"]] == ["10.0.0.9"]


def test_of_several_networks_with_metadata_one_is_where_it_is_asked_for() -> None:
    """Two routes of equal weight to one destination are none that a guest can have: the second one fails, and its interface with it."""
    first, second = (
        a_tenant_port(
            number,
            gateway="",
            further=(),
            routes=(HostRoute(destination="169.254.169.254/32", next_hop=f"10.0.0.{number}"),),
        )
        for number in (1, 2)
    )

    said = network_data((first, second))

    assert [network["routes"] for network in said["networks"]] == [
        [{"network": "169.254.169.254", "netmask": "255.255.255.255", "gateway": "10.0.0.1"}],
        [],
    ]


@pytest.mark.parametrize(
    ("further", "networks", "ipv4"),
    [((), 0, None), ((PortAddress(address="fd00::11", prefix_length=64),), 1, None)],
)
def test_a_guest_without_an_ipv4_address_is_told_of_none(
    further: tuple[PortAddress, ...], networks: int, ipv4: bytes | None
) -> None:
    guest = replace(
        GUEST, ports=(a_tenant_port(1, address="", prefix_length=0, gateway="", further=further),)
    )

    assert len(network_data(guest.ports)["links"]) == 1
    assert len(network_data(guest.ports)["networks"]) == networks
    assert answer(guest, "/latest/meta-data/local-ipv4") == ipv4
    assert answer(guest, "/latest/meta-data/mac") is not None


def test_the_drive_has_every_version_and_user_data_byte_for_byte() -> None:
    files = documents(GUEST)

    for version in VERSIONS:
        assert files[f"openstack/{version}/user_data"] == GUEST.user_data
    assert files["ec2/latest/user-data"] == GUEST.user_data
    assert not [name for name in documents(replace(GUEST, user_data=b"")) if "user" in name]


def test_a_client_finds_the_newest_version_that_it_knows() -> None:
    """Only one version and `latest` were served. cloud-init reads the list first, and could take either; a client that asks for a
    version of its own day was told that there is none.
    """
    listed = (answer(GUEST, "/openstack") or b"").decode().split()

    assert listed == list(VERSIONS)
    # What cloud-init 22.4 looks for, and its kin before it.
    assert {"2012-08-10", "2013-04-04", "2013-10-17", "2015-10-15", "2016-10-06", "2018-08-27"} <= set(listed)
    for version in listed:
        assert answer(GUEST, f"/openstack/{version}/meta_data.json") is not None


def test_a_version_has_what_there_was_in_its_day() -> None:
    """As nova's table of versions has it: an old client is not handed what it may take for something else."""

    def said(version: str) -> tuple[set[str], set[str]]:
        names = (answer(GUEST, f"/openstack/{version}") or b"").decode().split()
        fields = json.loads(answer(GUEST, f"/openstack/{version}/meta_data.json", random_seed=b"x") or b"")
        return set(names), set(fields)

    oldest, latest = said("2012-08-10"), said("latest")

    assert oldest[0] == {"meta_data.json", "user_data"}
    assert latest[0] - oldest[0] == {"network_data.json", "vendor_data.json", "vendor_data2.json"}
    assert latest[1] - oldest[1] == {"random_seed", "project_id", "devices", "dedicated_cpus"}
    assert said("2020-10-14") == latest
    assert latest[1] - said("2018-08-27")[1] == {"dedicated_cpus"}


def test_the_drives_ec2_document_is_what_the_service_says_leaf_by_leaf() -> None:
    document = json.loads(documents(GUEST)["ec2/latest/meta-data.json"])

    assert document["instance-id"].encode() == answer(GUEST, "/latest/meta-data/instance-id")
    assert document["public-keys"]["1"]["openssh-key"] == "ssh-ed25519 BBBB"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/", b"2009-04-04\nlatest"),
        ("/openstack", b"\n".join(version.encode() for version in VERSIONS)),
        (
            "/openstack/latest/",
            b"meta_data.json\nnetwork_data.json\nuser_data\nvendor_data.json\nvendor_data2.json",
        ),
        ("/openstack/latest/user_data", GUEST.user_data),
        ("/openstack/latest/vendor_data.json", b"{}"),
        ("/latest", b"meta-data/\nuser-data"),
        ("/latest/user-data", GUEST.user_data),
        ("/2009-04-04/meta-data/local-ipv4", b"10.77.0.2"),
        ("/latest/meta-data/public-keys/", b"0=a\n1=b"),
        ("/latest/meta-data/public-keys/0", b"openssh-key"),
        ("/latest/meta-data/public-keys/1/openssh-key", b"ssh-ed25519 BBBB"),
        ("/latest/meta-data/placement/availability-zone", b"nova"),
        ("//latest//meta-data//hostname", b"web"),
        ("/openstack/1999-01-01/meta_data.json", None),
        ("/latest/meta-data/hostname/more", None),
        ("/latest/meta-data/../../etc/passwd", None),
        ("/nowhere", None),
    ],
)
def test_a_path_has_one_answer(path: str, said: bytes | None) -> None:
    assert answer(GUEST, path) == said


def test_the_listing_names_what_is_there() -> None:
    listing = answer(GUEST, "/latest/meta-data/")
    assert listing is not None

    for name in listing.decode().splitlines():
        assert answer(GUEST, f"/latest/meta-data/{name}") is not None, name


def test_the_service_and_the_drive_say_the_same() -> None:
    shared = {
        path: each
        for path, each in documents(GUEST, random_seed=b"x").items()
        if path.startswith("openstack/")
    }

    assert shared
    for path, content in shared.items():
        assert answer(GUEST, f"/{path}", random_seed=b"x") == content


def test_documents_are_json() -> None:
    for path, content in documents(GUEST).items():
        if path.endswith(".json"):
            assert isinstance(json.loads(content), dict)


# ------------------------------------------------------------------ requests


def ask(request: Request | None, *, guest: Guest | None = GUEST, now_s: float = 1000.0) -> Response:
    return respond(
        request,
        guest,
        now_s=now_s,
        secret=b"secret",
        random_seed=b"",
    )


def get(path: str, **headers: str) -> Request:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request(method="GET", path=path, headers=named)


def token(ttl: str, *, guest: Guest | None = GUEST) -> Response:
    headers = {"x-aws-ec2-metadata-token-ttl-seconds": ttl}
    return ask(Request(method="PUT", path="/latest/api/token", headers=headers), guest=guest)


def test_an_address_that_is_nobodys_is_told_nothing() -> None:
    assert ask(get("/latest/meta-data/hostname"), guest=None).status is HTTPStatus.NOT_FOUND


@pytest.mark.parametrize("header", ["x_forwarded_for", "forwarded", "via", "x_forwarded_host"])
def test_what_came_through_a_proxy_is_refused(header: str) -> None:
    assert ask(get("/", **{header: "10.77.0.3"})).status is HTTPStatus.FORBIDDEN


@pytest.mark.parametrize(
    "ttl", ["", "0", "-1", "21601", "9" * 5000, "00" + "1" * 5, "000001" + "0" * 5000, "1.5", "٣"]
)
def test_a_token_lives_for_a_second_to_six_hours(ttl: str) -> None:
    assert token(ttl).status is HTTPStatus.BAD_REQUEST
    assert token("21600").status is HTTPStatus.OK


def test_a_token_is_good_for_its_guest_until_it_ends() -> None:
    def with_token(text: str, *, now_s: float) -> HTTPStatus:
        return ask(get("/", x_aws_ec2_metadata_token=text), now_s=now_s).status

    mine = token("60").body.decode()
    others = token("60", guest=a_guest("other")).body.decode()

    assert with_token(mine, now_s=1060) is HTTPStatus.OK
    assert with_token(mine, now_s=1061) is HTTPStatus.UNAUTHORIZED
    assert with_token(others, now_s=1000) is HTTPStatus.UNAUTHORIZED
    assert with_token(mine[:-1] + "0x", now_s=1000) is HTTPStatus.UNAUTHORIZED


@given(st.text())
def test_no_made_up_token_is_good(text: str) -> None:
    assert ask(get("/", x_aws_ec2_metadata_token=text)).status is HTTPStatus.UNAUTHORIZED


@given(st.binary())
def test_any_bytes_are_a_request_or_none(head: bytes) -> None:
    request = parse(head + b"\r\n\r\n")

    assert request is None or request.path


def test_a_head_is_read() -> None:
    request = parse(b"GET /a%20b?x=1 HTTP/1.1\r\nHost: x\r\nX-Odd:  value \r\n\r\n")

    assert request == Request(method="GET", path="/a b", headers={"host": "x", "x-odd": "value"})


@pytest.mark.parametrize(
    "head", [b"", b"GET / HTTP/2\r\n", b"GET http://x/ HTTP/1.1\r\n", b"GET / HTTP/1.1\r\n folded\r\n"]
)
def test_what_is_not_plain_http_is_refused(head: bytes) -> None:
    assert parse(head) is None
    assert ask(None).status is HTTPStatus.BAD_REQUEST


def test_an_answer_says_its_length_and_hides_its_body() -> None:
    response = ask(get("/latest/user-data"))

    assert f"Content-Length: {len(GUEST.user_data)}\r\n".encode() in response.encode()
    assert response.encode().endswith(GUEST.user_data)
    assert not response.encode(head_only=True).endswith(GUEST.user_data)
    assert "binary" not in repr(response)
