"""Rules that change while guests talk, with guests that have real IP stacks: what opens, what is cut, what goes on undisturbed."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from fabric.model.firewall import (
    AddressSet,
    Direction,
    EtherType,
    FilterRule,
    HostFilters,
    PortFilter,
    PortRange,
    RuleGroup,
)
from hostd.network.firewall import Firewall
from hostd.network.netns import Namespace
from tests.conformance.namespaces import a_namespace, inside, ip

MISSING = [name for name in ("ip", "nft", "nsenter") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.owns_machine,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}"),
]

SILENCE_S = 0.4
"""How long nothing is something: retransmissions come after 0.2 s."""
PATIENCE_S = 10.0
EGRESS = frozenset(FilterRule(direction=Direction.EGRESS, ether_type=it) for it in EtherType)


def ingress(
    port: int, *, remote_set: str | None = None, family: EtherType = EtherType.IPV4, protocol: int = 6
) -> FilterRule:
    return FilterRule(
        direction=Direction.INGRESS,
        ether_type=family,
        protocol=protocol,
        ports=PortRange(first=port, last=port),
        remote_set=remote_set,
    )


@dataclass
class Guest:
    netns: str
    tap: str
    mac: str
    address: str
    address6: str
    sockets: contextlib.ExitStack

    @property
    def port(self) -> PortFilter:
        return PortFilter(
            port_id=self.tap,
            instance_id=self.tap,
            network_id="net",
            tap=self.tap,
            mac=self.mac,
            addresses=(self.address, self.address6),
            groups=("web",),
        )

    def listen(self, port: int) -> socket.socket:
        """On both families."""

        def make() -> socket.socket:
            return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)

        return self._kept(inside(self.netns, make))

    def connect(
        self, to: Guest, port: int, *, within_s: float = PATIENCE_S, six: bool = False
    ) -> socket.socket:
        """Raises OSError."""
        where = (to.address6 if six else to.address, port)
        return self._kept(inside(self.netns, lambda: socket.create_connection(where, timeout=within_s)))

    def udp(self, port: int) -> socket.socket:
        def make() -> socket.socket:
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.bind((self.address, port))
            made.settimeout(SILENCE_S)
            return made

        return self._kept(inside(self.netns, make))

    def _kept(self, made: socket.socket) -> socket.socket:
        return self.sockets.enter_context(contextlib.closing(made))


@dataclass
class Site:
    host: str
    server: Guest
    client: Guest
    other: Guest
    firewall: Firewall = field(init=False)
    rules: frozenset[FilterRule] = EGRESS
    members: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.firewall = Firewall(Namespace(self.host))

    @property
    def filters(self) -> HostFilters:
        ports = tuple(guest.port for guest in (self.server, self.client, self.other))
        groups = (
            RuleGroup(id="web", rules=self.rules),
            RuleGroup(id="egress", rules=EGRESS),
        )
        server, client, other = ports
        return HostFilters(
            ports=(server, replace(client, groups=("egress",)), replace(other, groups=("egress",))),
            groups=groups,
            sets=(AddressSet(name="friends", members=self.members),),
        )

    async def allow(self, *rules: FilterRule) -> None:
        """These and all egress, from now on."""
        self.rules = EGRESS | set(rules)
        await self.firewall.apply(self.filters, {"net": "br0"})


@contextlib.contextmanager
def _guest(host: str, number: int) -> Iterator[Guest]:
    mac, tap = f"52:54:00:00:00:0{number}", f"tap{number}"
    with a_namespace(f"fw-g{number}") as netns, contextlib.ExitStack() as sockets:
        ip("link", "add", tap, "type", "veth", "peer", "name", "eth0", "netns", netns, netns=host)
        ip("link", "set", tap, "master", "br0", "up", netns=host)
        ip("link", "set", "eth0", "address", mac, "up", netns=netns)
        ip("addr", "add", f"10.0.0.1{number}/24", "dev", "eth0", netns=netns)
        ip("addr", "add", f"2001:db8::1{number}/64", "dev", "eth0", "nodad", netns=netns)
        yield Guest(netns, tap, mac, f"10.0.0.1{number}", f"2001:db8::1{number}", sockets)


@pytest.fixture
def site() -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(a_namespace("fw-host"))
        ip("link", "add", "br0", "type", "bridge", "forward_delay", "0", "mcast_snooping", "0", netns=host)
        ip("link", "set", "br0", "up", netns=host)
        server, client, other = (stack.enter_context(_guest(host, number)) for number in (1, 2, 3))
        yield Site(host, server, client, other)


def says(one: socket.socket, other: socket.socket, words: bytes = b"words") -> bool:
    """Whether the other hears it."""
    one.send(words)
    other.settimeout(SILENCE_S)
    try:
        return other.recv(100) == words
    except TimeoutError:
        return False


def retransmissions(connection: socket.socket) -> int:
    """tcpi_total_retrans (struct tcp_info in linux/tcp.h)."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int.from_bytes(info[100:104], sys.byteorder)


def accepted(server: socket.socket) -> socket.socket:
    server.settimeout(PATIENCE_S)
    return server.accept()[0]


@pytest.mark.parametrize("six", [False, True])
async def test_a_port_is_open_as_soon_as_the_rule_is_applied(site: Site, six: bool) -> None:
    await site.allow()
    listening = site.server.listen(22)
    with pytest.raises(TimeoutError):
        site.client.connect(site.server, 22, within_s=SILENCE_S, six=six)

    await site.allow(ingress(22, family=EtherType.IPV6 if six else EtherType.IPV4))

    client = site.client.connect(site.server, 22, six=six)
    assert retransmissions(client) == 0, "the first SYN must pass; the second would come a second later"
    with accepted(listening) as server:
        assert says(client, server)
        assert says(server, client)


@pytest.mark.parametrize("six", [False, True])
async def test_closing_a_port_cuts_its_sessions_for_good(site: Site, six: bool) -> None:
    rule = ingress(22, family=EtherType.IPV6 if six else EtherType.IPV4)
    await site.allow(rule)
    listening = site.server.listen(22)
    client = site.client.connect(site.server, 22, six=six)
    with accepted(listening) as server:
        assert says(client, server)

        await site.allow()

        # The server may begin connections of its own. What it goes on saying in this one must not be taken for one.
        assert not says(server, client)
        assert not says(client, server)
        assert not says(server, client)
    with pytest.raises(TimeoutError):
        site.client.connect(site.server, 22, within_s=SILENCE_S, six=six)


async def test_what_is_allowed_goes_on_through_every_change(site: Site) -> None:
    await site.allow(ingress(22), ingress(80))
    listening = site.server.listen(22)
    client = site.client.connect(site.server, 22)
    with accepted(listening) as server:
        for rules in (
            (ingress(22),),
            (ingress(22), ingress(443), ingress(8080)),
            (
                FilterRule(
                    direction=Direction.INGRESS,
                    ether_type=EtherType.IPV4,
                    protocol=6,
                    ports=PortRange(first=20, last=30),
                ),
            ),
            (FilterRule(direction=Direction.INGRESS, ether_type=EtherType.IPV4),),
            (ingress(22, remote_set="friends"),),
        ):
            site.members = frozenset({site.client.address})
            await site.allow(*rules)

            assert says(client, server), rules
            assert says(server, client), rules


async def test_a_member_who_leaves_is_cut_and_one_who_stays_is_not(site: Site) -> None:
    site.members = frozenset({site.client.address, site.other.address})
    await site.allow(ingress(22, remote_set="friends"))
    listening = site.server.listen(22)
    client = site.client.connect(site.server, 22)
    with accepted(listening) as for_client:
        other = site.other.connect(site.server, 22)
        with accepted(listening) as for_other:
            site.members = frozenset({site.other.address})
            await site.firewall.apply(site.filters, {"net": "br0"})

            assert not says(client, for_client)
            assert says(other, for_other)
            assert says(for_other, other)


async def test_taking_a_guests_egress_away_cuts_what_it_began(site: Site) -> None:
    await site.allow(ingress(22))
    listening = site.client.listen(7000)
    site.rules = EGRESS | {ingress(22)}
    everything = site.filters
    opened = replace(
        everything,
        groups=(*everything.groups, RuleGroup(id="open", rules=frozenset({ingress(7000)}))),
        ports=tuple(
            replace(port, groups=("egress", "open")) if port.tap == site.client.tap else port
            for port in everything.ports
        ),
    )
    await site.firewall.apply(opened, {"net": "br0"})
    server = site.server.connect(site.client, 7000)
    with accepted(listening) as client:
        assert says(server, client)

        without = tuple(
            replace(it, rules=frozenset({ingress(22)})) if it.id == "web" else it for it in opened.groups
        )
        await site.firewall.apply(replace(opened, groups=without), {"net": "br0"})

        assert not says(server, client)


async def test_udp_that_is_allowed_no_longer_is_cut(site: Site) -> None:
    await site.allow(ingress(5000, protocol=17))
    server, client = site.server.udp(5000), site.client.udp(6000)
    client.connect((site.server.address, 5000))
    server.connect((site.client.address, 6000))
    assert says(client, server)
    assert says(server, client)

    await site.allow()

    assert not says(client, server)


async def test_rules_changed_while_nobody_watched_cut_what_they_no_longer_allow(site: Site) -> None:
    """hostd was dead when the rule went. The new one judges connections by the rules of now, and leaves others' zones alone."""
    await site.allow(ingress(22), ingress(80))
    listening, staying = site.server.listen(22), site.server.listen(80)
    client, kept = site.client.connect(site.server, 22), site.client.connect(site.server, 80)
    with accepted(listening) as server, accepted(staying) as for_kept:
        site.firewall = Firewall(Namespace(site.host))
        await site.allow(ingress(80))

        assert not says(client, server)
        assert says(kept, for_kept)
        assert says(for_kept, kept)


async def test_a_path_that_gets_narrower_is_told_through_the_filter(site: Site) -> None:
    """Errors about a connection belong to it: without "packet too big" large transfers would hang."""
    await site.allow(ingress(22))
    listening = site.server.listen(22)
    client = site.client.connect(site.server, 22, six=False)
    with accepted(listening) as server:
        ip("link", "set", "eth0", "mtu", "1300", netns=site.client.netns)
        server.settimeout(PATIENCE_S)
        client.sendall(bytes(100_000))
        received = 0
        while received < 100_000:
            received += len(server.recv(65536))

        assert received == 100_000
