"""cloud-init itself, of an ordinary Debian, learns who its server is: once from a config drive and nothing else, and from metadata alone,
on its host's network and on one that a project made, where DHCP and metadata are the network's own.

It is Debian's package with Debian's settings. What it finds where is its own decision, and what it made of it is asked of it, in the guest.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.running import Running, Said, a_fabric, cloud_image, until

pytestmark = [pytest.mark.slow, pytest.mark.owns_machine, pytest.mark.timeout(1800)]

NAME_SERVER = "192.0.2.53"
NAME_SERVER6 = "2001:db8::53"
MTU = 1432
OWN_MTU = 1398
"""Nobody's default, so that who has one of them was told."""
BOOT_S = 420.0
"""From ACTIVE to the end of cloud-init's last stage, under emulation on a busy machine; without others about a third."""

CONFIG = """#cloud-config
write_files:
- path: /etc/nebula.conf
  permissions: "0640"
  content: |
    role = web
    text = "käse: 100 %"
runcmd:
- [sh, -c, "echo $(hostname) has $(cat /etc/nebula.conf | wc -l) lines > /root/proof"]
"""
SCRIPT = """#!/bin/sh
echo "a script of $(id -un)" > /root/script
"""


def in_parts(**parts: str) -> str:
    """Several documents as one, each by its kind, as `cloud-init devel make-mime` puts them together."""
    whole = MIMEMultipart()
    for kind, text in parts.items():
        whole.attach(MIMEText(text, kind.replace("_", "-"), "utf-8"))
    return whole.as_string()


@dataclass(frozen=True)
class Way:
    """One of the ways in which a server is told about itself."""

    words: tuple[str, ...]
    datasource: str
    user_data: str
    files: dict[str, str]
    asks_the_service: bool
    families: tuple[int, ...] = (4,)
    mtu: int = MTU
    name_servers: tuple[str, ...] = (NAME_SERVER,)
    floating: bool = False


_WRITTEN = {
    "/etc/nebula.conf": 'role = web\ntext = "käse: 100 %"\n',
    "/root/proof": "{hostname} has 2 lines\n",
}
WAYS = {
    "by-drive": Way(
        words=("--config-drive",),
        datasource="DataSourceConfigDrive [net,ver=2][source=/dev/vd",
        user_data=CONFIG,
        files=_WRITTEN,
        asks_the_service=False,
    ),
    "by-service": Way(
        words=("--no-config-drive",),
        datasource="DataSourceOpenStackLocal [net,ver=2]",
        user_data=in_parts(cloud_config=CONFIG, x_shellscript=SCRIPT),
        files={**_WRITTEN, "/root/script": "a script of root\n"},
        asks_the_service=True,
    ),
    "by-own-network": Way(
        words=("--no-config-drive", "--network", "own", "--security-group", "ssh"),
        datasource="DataSourceOpenStackLocal [net,ver=2]",
        user_data=CONFIG,
        files=_WRITTEN,
        asks_the_service=True,
        families=(4, 6),
        mtu=OWN_MTU,
        name_servers=(NAME_SERVER, NAME_SERVER6),
        floating=True,
    ),
}


class Server:
    """A running server, and commands in it."""

    def __init__(self, fabric: Running, name: str, way: Way, key: Path) -> None:
        self._fabric = fabric
        self._key = key
        self.way = way
        self.shown: dict[str, Any] = fabric.shown("server", "show", name)
        self.hostname = name.lower().replace("_", "-")

    def try_to(self, command: str, *, timeout_s: float) -> str | None:
        """What a command prints; None where it does not succeed, or nobody is let in."""
        words = ("server", "ssh", "-i", str(self._key), self.shown["id"], "--", command)
        try:
            done = self._fabric.run(*words, timeout_s=timeout_s)
        except subprocess.TimeoutExpired:
            return None
        return done.stdout if done.returncode == 0 else None

    def does(self, command: str) -> str:
        """What a command prints, as root."""
        said = self.try_to(f"sudo sh -c {shlex.quote(command)}", timeout_s=60)
        assert said is not None, command
        return said

    def query(self, name: str) -> Any:
        """What cloud-init knows of its instance."""
        return json.loads(self.does("cat /run/cloud-init/instance-data-sensitive.json"))["ds"][name]

    def requests(self) -> list[str]:
        """What its host's metadata service has answered it."""
        lines = [
            line
            for log in (self._fabric.state / "log").glob("hostd-*.log")
            for line in log.read_text(errors="replace").splitlines()
        ]
        return [line for line in lines if "metadata.answered" in line and self.shown["id"] in line]


@pytest.fixture(scope="module")
def fabric() -> Iterator[Running]:
    """One of its own: its network tells of a name server, and has an MTU that nothing has by itself."""
    image = cloud_image()
    with a_fabric("--dns-server", NAME_SERVER, "--mtu", str(MTU)) as running:
        running.cli("flavor", "create", "--ram", "768", "--disk", "2", "--vcpus", "2", "ci.small")
        running.cli(
            *("image", "create", "--disk-format", "qcow2", "--property", "os_admin_user=debian"),
            *("--file", str(image), "debian"),
            timeout_s=300,
        )
        own_network(running)
        yield running


def own_network(fabric: Running) -> None:
    """Both families behind a router, and a group that lets SSH in."""
    fabric.cli("network", "create", "--mtu", str(OWN_MTU), "own")
    fabric.cli("router", "create", "way-out")
    fabric.cli("router", "set", "--external-gateway", "public", "way-out")
    for name, cidr, server in (("four", "10.20.0.0/22", NAME_SERVER), ("six", "fd00:20::/64", NAME_SERVER6)):
        fabric.cli(
            *(
                "subnet",
                "create",
                "--network",
                "own",
                "--subnet-range",
                cidr,
                "--dns-nameserver",
                server,
                name,
            )
        )
        fabric.cli("router", "add", "subnet", "way-out", name)
    fabric.cli("security", "group", "create", "ssh")
    fabric.cli("security", "group", "rule", "create", "--proto", "tcp", "--dst-port", "22", "ssh")


@pytest.fixture(scope="module")
def key(fabric: Running, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "key.pem"
    path.write_text(fabric.cli("keypair", "create", "laptop"))
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module", params=WAYS)
def server(
    request: pytest.FixtureRequest, fabric: Running, key: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server whose cloud-init has come to its end; one after the other, because both want all of a small machine."""
    name, way = f"Nebula_{request.param}", WAYS[request.param]
    user_data = tmp_path_factory.mktemp("data") / "user-data"
    user_data.write_text(way.user_data)
    fabric.cli(
        *("server", "create", "--flavor", "ci.small", "--image", "debian", "--key-name", "laptop"),
        *(*way.words, "--property", "role=web", "--user-data", str(user_data), "--wait", name),
        timeout_s=300,
    )
    address = ""
    if way.floating:
        address = fabric.shown("floating", "ip", "create", "public")["floating_ip_address"]
        fabric.cli("server", "add", "floating", "ip", name, address)
    made = Server(fabric, name, way, key)
    try:
        try:
            until(
                lambda: made.try_to("cat /run/cloud-init/result.json", timeout_s=60),
                "cloud-init came to its end",
                timeout_s=BOOT_S,
                every_s=5,
            )
        except AssertionError as late:
            raise Said(f"{late}; the console:\n{fabric.cli('console', 'log', 'show', name)}") from late
        yield made
    finally:
        fabric.cli("server", "delete", "--wait", name)
        if address:
            fabric.cli("floating", "ip", "delete", address)


def test_cloud_init_took_everything_from_this_source_alone(server: Server) -> None:
    result = json.loads(server.does("cat /run/cloud-init/result.json"))["v1"]

    assert result["datasource"].startswith(server.way.datasource)
    assert bool(server.requests()) is server.way.asks_the_service
    drives = server.does("blkid --match-token LABEL=config-2 --output device || true").split()
    assert bool(drives) is not server.way.asks_the_service


def test_cloud_init_has_nothing_to_complain_of(server: Server) -> None:
    result = json.loads(server.does("cat /run/cloud-init/result.json"))["v1"]
    complaints = server.does(
        "grep -E ' - [[:alnum:]_.]+\\[(WARNING|ERROR|CRITICAL)\\]|Traceback' /var/log/cloud-init.log || true"
    )

    assert result["errors"] == []
    assert complaints == ""


def test_the_server_has_its_name(server: Server) -> None:
    assert server.does("hostname").strip() == server.hostname
    assert server.does("cat /etc/hostname").strip() == server.hostname


def test_the_owners_key_lets_its_owner_in_and_nobody_else(server: Server, key: Path) -> None:
    """That the key works is how all of this is known; here, that there is no other."""
    public = subprocess.run(
        ("ssh-keygen", "-y", "-f", str(key)), capture_output=True, text=True, check=True
    ).stdout.split()

    (line,) = server.does("cat /home/debian/.ssh/authorized_keys").splitlines()
    assert line.split()[:2] == public[:2]
    assert "Please login as the user" in server.does("cat /root/.ssh/authorized_keys")


def test_user_data_was_followed(server: Server) -> None:
    for path, content in server.way.files.items():
        assert server.does(f"cat {path}") == content.format(hostname=server.hostname)
    assert server.does("stat -c %a /etc/nebula.conf").strip() == "640"


def test_cloud_init_knows_what_the_server_is(server: Server) -> None:
    said = server.query("meta_data")

    assert said["uuid"] == server.shown["id"]
    assert said["name"] == server.shown["name"]
    assert said["meta"] == {"role": "web"}
    assert said["availability_zone"] == server.shown["availability_zone"]


def test_the_network_is_as_network_data_says(server: Server) -> None:
    """Read from the kernel and the resolver, not from what was written for them."""
    document = server.query("network_json")
    (link,), networks = document["links"], document["networks"]
    interfaces = [ip_interface(f"{each['ip_address']}/{_length(each['netmask'])}") for each in networks]
    (card,) = [
        each
        for each in json.loads(server.does("ip -json address show"))
        if each["address"] == link["ethernet_mac_address"]
    ]

    assert tuple(each.version for each in interfaces) == server.way.families
    assert {
        (each["local"], each["prefixlen"]) for each in card["addr_info"] if each["scope"] == "global"
    } == {(str(each.ip), each.network.prefixlen) for each in interfaces}
    assert card["mtu"] == link["mtu"] == server.way.mtu
    for interface, network in zip(interfaces, networks, strict=True):
        routes = json.loads(server.does(f"ip -json -{interface.version} route show default"))
        assert [(each["gateway"], each["dev"]) for each in routes] == [
            (network["routes"][0]["gateway"], card["ifname"])
        ]
        assert str(interface.ip) in str(server.shown["addresses"])
    resolver = server.does("cat /run/systemd/resolve/resolv.conf").splitlines()
    assert [line for line in resolver if line.startswith("nameserver ")] == [
        f"nameserver {each}" for each in server.way.name_servers
    ]
    # Not by DHCP, which would have come to the same.
    assert "dhcp4: true" not in server.does("cat /etc/netplan/50-cloud-init.yaml")


def test_metadata_is_there_for_whoever_asks_later(server: Server) -> None:
    """By the routes that cloud-init has set up, which are not DHCP's: a router of a project's knows no way there."""
    url = "http://169.254.169.254/openstack/latest/meta_data.json"
    asked = f"import urllib.request as it; print(it.urlopen('{url}', timeout=20).read().decode())"

    assert json.loads(server.does(f"python3 -c {shlex.quote(asked)}"))["uuid"] == server.shown["id"]


def _length(netmask: str) -> int:
    """The length of the prefix that a netmask of either family stands for."""
    return int(ip_address(netmask)).bit_count()


def test_another_boot_of_the_same_server_changes_nothing(server: Server) -> None:
    """cloud-init compares the instance's id with the machine's: user data that ran twice would be a fault of ours."""
    before = server.does(
        "cat /proc/sys/kernel/random/boot_id; rm /root/proof; ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"
    )
    server.try_to("sudo reboot", timeout_s=30)

    def after() -> str | None:
        said = server.try_to(
            "test -e /run/cloud-init/result.json && cat /proc/sys/kernel/random/boot_id", timeout_s=60
        )
        return said if said and said.strip() not in before else None

    until(after, "the second boot", timeout_s=BOOT_S, every_s=5)
    assert server.does("ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub") in before
    assert server.does("test ! -e /root/proof && hostname").strip() == server.hostname
