"""From any overlay to any other: the commands are carried out on a kernel that refuses what a real one refuses."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.model.network_plan import Neighbour, NetworkPlan, PlannedNetwork
from hostd.core.overlay import Overlay, TapPort, Tunnel, kept_of, wanted
from hostd.core.overlay_change import Change, change
from hostd.core.tap_names import TapMark
from tests.conformance.guests import an_id

NETWORKS = tuple(an_id(f"network {number}") for number in range(3))
MACS = tuple(f"fa:16:3e:00:00:0{number}" for number in range(4))
HOSTS = ("192.0.2.1", "192.0.2.2", "192.0.2.3")


@dataclass
class Kernel:
    """Links with their VNI and tunnel's end, what is forwarded where, and who is answered for."""

    links: dict[str, tuple[str, ...]] = field(default_factory=dict)
    up: set[str] = field(default_factory=set)
    masters: dict[str, str] = field(default_factory=dict)
    pins: dict[tuple[str, str], str] = field(default_factory=dict)
    remotes: dict[tuple[str, str], str] = field(default_factory=dict)
    answers: dict[tuple[str, str], str] = field(default_factory=dict)

    def carry_out(self, made: Change) -> None:
        for line in (*made.ip_made, *made.ip):
            self._ip(line.split())
        for line in made.bridge:
            self._bridge(line.split())

    def remove(self, name: str) -> None:
        """A link goes, and with it what was said of it."""
        del self.links[name]
        self.up.discard(name)
        self.masters = {port: master for port, master in self.masters.items() if name not in {port, master}}
        self.pins = {key: port for key, port in self.pins.items() if name not in {key[0], port}}
        self.remotes = {key: where for key, where in self.remotes.items() if key[0] != name}
        self.answers = {key: mac for key, mac in self.answers.items() if key[0] != name}

    def _ip(self, words: list[str]) -> None:
        match words:
            case ["link", "del", "dev", name]:
                self.remove(name)
            case ["link", "add", "name", name, *kind]:
                assert name not in self.links, "File exists"
                where = ("id", "local")
                self.links[name] = tuple(kind[kind.index(it) + 1] for it in where if it in kind)
            case ["tuntap", "add", "dev", name, *_]:
                assert name not in self.links, "Device or resource busy"
                self.links[name] = ()
            case ["link", "set", "dev", name, *settings_]:
                assert name in self.links, "Cannot find device"
                if "master" in settings_:
                    self.masters[name] = settings_[settings_.index("master") + 1]
                if settings_[-1] == "up":
                    self.up.add(name)
            case ["neighbour", "replace", address, "lladdr", mac, "dev", bridge, "nud", "permanent"]:
                assert bridge in self.links, "Cannot find device"
                self.answers[bridge, address] = mac
            case ["neighbour", "del", address, "dev", bridge]:
                del self.answers[bridge, address]
            case _:
                raise AssertionError(words)

    def _bridge(self, words: list[str]) -> None:
        match words:
            case ["fdb", "replace", mac, "dev", port, "master", "static"]:
                self.pins[self.masters[port], mac] = port
            case ["fdb", "del", mac, "dev", port, "master"]:
                assert self.pins.pop((self.masters[port], mac)) == port, "No such file or directory"
            case ["fdb", "replace", mac, "dev", tunnel, "dst", address, "self", "static"]:
                self.remotes[tunnel, mac] = address
            case ["fdb", "del", mac, "dev", tunnel, "dst", address, "self"]:
                assert self.remotes.pop((tunnel, mac)) == address, "No such file or directory"
            case _:
                raise AssertionError(words)


@st.composite
def neighbours(draw: st.DrawFn) -> tuple[Neighbour, ...]:
    macs = draw(st.sets(st.sampled_from(MACS)))
    return tuple(
        Neighbour(
            port_id=mac,
            mac=mac,
            addresses=(f"10.0.0.{draw(st.integers(1, 3)) * 10 + number}",),
            tunnel_address=draw(st.sampled_from(HOSTS)),
        )
        for number, mac in enumerate(sorted(macs))
    )


@st.composite
def plans(draw: st.DrawFn) -> NetworkPlan:
    return NetworkPlan(
        tunnel_address=draw(st.sampled_from(("", *HOSTS[:2]))),
        networks=tuple(
            PlannedNetwork(
                id=network,
                vni=number + 1,
                mtu=draw(st.sampled_from((1400, 1450))),
                neighbours=draw(neighbours()),
            )
            for number, network in enumerate(NETWORKS)
            if draw(st.booleans())
        ),
    )


def taps_of(numbers: frozenset[int]) -> list[TapPort]:
    """Guests' taps by number: two on each network."""
    return [
        TapPort(
            mark=TapMark(
                instance_id=an_id(f"guest {number}"),
                placement_epoch=1,
                port_id=an_id(f"port {number}"),
                mac=MACS[number // 3],
                network_id=NETWORKS[number % 3],
            ),
            mtu=1450,
        )
        for number in sorted(numbers)
    ]


STEPS = st.lists(st.tuples(plans(), st.frozensets(st.integers(0, 5))), min_size=1, max_size=4)


@settings(max_examples=200)
@given(STEPS)
def test_every_change_is_one_that_the_kernel_takes_and_leads_to_what_is_wanted(
    steps: list[tuple[NetworkPlan, frozenset[int]]],
) -> None:
    kernel, have = Kernel(), Overlay()
    for plan, guests in steps:
        taps = taps_of(guests)
        names = {tap.mark.tap for tap in taps if tap.mark is not None}
        # Whose guest goes takes its tap along before the rest follows.
        for name in have.taps - names:
            kernel.remove(name)
        have = have.seeing_taps(frozenset(have.taps & names))
        used = {tap.network_id for tap in taps}
        kept = kept_of(have, used - {network.id for network in plan.networks})
        namespaces = {network.id: "cfn" for network in plan.networks}

        want = wanted(plan, taps, namespaces, kept)
        first = want.with_taps_of(have)
        before = {port: kernel.masters.get(port) for port in names}
        kernel.carry_out(change(have, first))
        assert {port: kernel.masters.get(port) for port in names} == before
        kernel.carry_out(change(first, want))
        have = want

        assert kernel.links.keys() == want.links.keys() == kernel.up
        assert (kernel.pins, kernel.remotes, kernel.answers) == (want.pins, want.remotes, want.answers)
        assert {name: ends for name, ends in kernel.links.items() if ends} == {
            name: (str(link.vni), link.local) for name, link in want.links.items() if isinstance(link, Tunnel)
        }
