"""A store of three members, the servers, and two compute hosts that are containers; real guests on both of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.running import until
from tests.integration.containers.conftest import REASONS
from tests.integration.containers.places import InContainers, Place

pytestmark = [pytest.mark.owns_machine, pytest.mark.timeout(900)]

BOOT_S = 180.0
"""From ACTIVE to a guest that lets somebody in, under emulation, two at a time on a busy machine."""
NAMES = ("in-box-1", "in-box-2")
OFFICE = "office"
"""A network of the project's own: it spans the hosts, which the default one does not."""
PING_BYTES = 1450 - 20 - 8
"""What a packet as large as that network's MTU carries behind the headers of IPv4 and ICMP."""


def shown(place: Place, *words: str) -> Any:
    return json.loads(place.fabric(*words, "-f", "json"))


@pytest.fixture(scope="module")
def key(place: Place) -> str:
    """The private key of the guests' owner."""
    place.fabric("flavor", "create", "--ram", "128", "--disk", "1", "--vcpus", "1", "m1.box")
    place.fabric(
        *("image", "create", "--disk-format", "qcow2", "box"),
        *("--file", f"{place.images}/cellfabric-guest.qcow2"),
    )
    return place.fabric("keypair", "create", "box")


@pytest.fixture(scope="module")
def guests(place: Place, key: str) -> dict[str, dict[str, Any]]:
    """A server on each host, by the host's name. They are reached by the hosts' own network, and are both on the project's."""
    assert key
    place.fabric("network", "create", OFFICE)
    place.fabric(
        "subnet", "create", "--network", OFFICE, "--subnet-range", "10.9.0.0/24", "--gateway", "none", OFFICE
    )
    for name in NAMES:
        place.fabric(
            *("server", "create", "--flavor", "m1.box", "--image", "box", "--key-name", "box"),
            *("--network", "default", "--network", OFFICE, name),
        )

    def settled() -> list[dict[str, Any]]:
        found = [shown(place, "server", "show", name) for name in NAMES]
        return found if all(each["status"] != "BUILD" for each in found) else []

    made = until(settled, "both servers have a host or an error", timeout_s=BOOT_S)
    assert [each["status"] for each in made] == ["ACTIVE"] * len(NAMES)
    return {each["host"]: each for each in made}


def inside(place: Place, server: dict[str, Any], key: str, command: str) -> str:
    """What a command prints in a guest, as somebody logged in from the guest's own host."""
    path = Path(place.folder_on(server["host"])) / f"key-{server['host']}"
    place.on_host(
        server["host"], "sh", "-c", 'umask 077; printf "%s\\n" "$1" >"$2"', "sh", key.strip(), str(path)
    )
    (address,) = server["addresses"]["default"]
    said: list[str] = []

    def answered() -> bool:
        words = place.on_host(
            server["host"],
            *("ssh", "-F", "none", "-i", str(path), "-o", "BatchMode=yes", "-o", "ConnectTimeout=5"),
            *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"),
            *(f"root@{address}", command),
        )
        said.extend([] if words is None else [words])
        return bool(said)

    until(answered, f"{server['name']} lets its owner in", timeout_s=BOOT_S, every_s=1)
    return said[0]


def test_the_hosts_are_containers(place: Place) -> None:
    """Where they cannot be, the tests below are about hosts in network namespaces, and this one says why."""
    if REASONS:
        pytest.skip(f"NO DOCKER ENGINE: {REASONS[0]}")

    assert isinstance(place, InContainers)
    running = {each.Service for each in place.compose.get_containers() if each.State == "running"}
    assert running >= {"etcd-1", "etcd-2", "etcd-3", "api", "scheduler", "conductor", *place.hosts}


def test_both_hosts_are_up(place: Place) -> None:
    until(
        lambda: (
            {row["Name"]: row["State"] for row in shown(place, "host", "list")}
            == dict.fromkeys(place.hosts, "UP")
        ),
        "every host is UP, and there is no other",
        timeout_s=BOOT_S,
    )


def test_a_host_cannot_reach_a_store(place: Place) -> None:
    """Only its conductor can: between a host and a store there is no network."""
    if not isinstance(place, InContainers):
        pytest.skip(f"NO DOCKER ENGINE: {REASONS[0]}")

    knock = ("timeout", "2", "bash", "-c", '</dev/tcp/"$1"/2379', "bash")
    member = (place.on_host("conductor", "getent", "hosts", "etcd-1") or "").split()[0]

    assert place.on_host("conductor", *knock, member) is not None
    assert [place.on_host(host, *knock, member) for host in place.hosts] == [None, None]


def test_servers_spread_over_both_hosts(place: Place, guests: dict[str, dict[str, Any]]) -> None:
    assert set(guests) == set(place.hosts)


def test_each_guest_boots_and_lets_its_owner_in(
    place: Place, guests: dict[str, dict[str, Any]], key: str
) -> None:
    for server in guests.values():
        assert inside(place, server, key, "hostname").strip() == server["name"]
        words = f"GUEST-READY {server['name']}"
        # It lets people in before its boot is over.
        until(
            lambda: words in place.fabric("console", "log", "show", server["name"]),  # noqa: B023 - called at once
            f"{words} on the console",
            timeout_s=BOOT_S,
        )


def test_guests_of_one_network_reach_each_other_across_hosts(
    place: Place, guests: dict[str, dict[str, Any]], key: str
) -> None:
    """By the tunnel between the hosts, with packets as large as the guests are told that they may be."""
    one, other = (guests[host] for host in place.hosts)
    for here, there in ((one, other), (other, one)):
        (address,) = there["addresses"][OFFICE]
        # The other one may not have asked for its address yet: it lets people in before.
        asked = f"for i in $(seq 30); do ping -c 1 -W 2 -s {PING_BYTES} {address} && exit; done; true"

        assert f"{PING_BYTES + 8} bytes from {address}" in inside(place, here, key, asked)


def test_the_fabric_goes_on_without_a_member_of_its_store(
    place: Place, guests: dict[str, dict[str, Any]]
) -> None:
    name = guests[place.hosts[0]]["name"]

    place.lose_a_member()

    place.fabric("server", "stop", "--wait", name)
    assert shown(place, "server", "show", name)["status"] == "SHUTOFF"
    place.fabric("server", "start", "--wait", name)
    assert shown(place, "server", "show", name)["status"] == "ACTIVE"


def test_deleted_servers_leave_their_hosts_without_taps_and_guests(
    place: Place, guests: dict[str, dict[str, Any]]
) -> None:
    def traces(host: str) -> list[str]:
        """The interfaces and guests of a host: its own are there at any time."""
        links = place.on_host(host, "ip", "-br", "link", "show", "type", "tun")
        ids = [each["id"] for each in guests.values() if each["host"] == host]
        processes = place.on_host(host, "ps", "-eo", "args=")
        assert links is not None
        assert processes is not None
        return links.splitlines() + [line for line in processes.splitlines() if any(it in line for it in ids)]

    assert all(traces(host) for host in place.hosts)

    place.fabric("server", "delete", "--wait", *NAMES)

    assert [traces(host) for host in place.hosts] == [[], []]
    # The plan that has the network no longer comes after the last port of it has gone.
    until(
        lambda: (
            [place.on_host(host, "ip", "-br", "link", "show", "type", "vxlan") for host in place.hosts]
            == ["", ""]
        ),
        "the tunnels are gone",
    )
