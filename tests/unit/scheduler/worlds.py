"""Hosts, requests and pictures for the scheduler's tests: as values, and as Hypothesis strategies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from hypothesis import strategies as st

from fabric.model.host import Host, Resources, Session, SessionState, Use
from fabric.model.image import ImageFormat
from fabric.model.instance import Build, Guest, ImageRef, Request
from fabric.scheduler.core.ask import Ask
from fabric.scheduler.core.picture import HostPicture, Seen

CELLS = ("east", "west")
ZONES = ("z1", "z2")
TRAITS = ("HW_ARCH_X86_64", "GPU", "SECURE_BOOT")

BIG = Resources(vcpus=64, ram_mib=65536, disk_gib=1000)
SMALL = Resources(vcpus=1, ram_mib=512, disk_gib=1)


def host(name: str, *, cell: str = "east", capacity: Resources = BIG, **facts: Any) -> Host:
    made = Host(
        name=name,
        cell=cell,
        zone="z1",
        capacity=capacity,
        traits=("HW_ARCH_X86_64",),
        guest_cidr="10.1.0.0/24",
        slots=200,
    )
    return replace(made, **facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that is known of one host."""

    host: Host
    state: SessionState = SessionState.UP
    is_alive: bool = True
    use: Use | None = None


def picture(
    facts: Iterable[Facts | Host], *, enabled: Iterable[str] = CELLS, reachable: Iterable[str] = CELLS
) -> HostPicture:
    """A picture of these hosts, in this order; every record at revision 1, `use` absent where there is none."""
    hosts = HostPicture()
    for cell in CELLS:
        hosts.set_cell(cell, is_enabled=cell in set(enabled), is_reachable=cell in set(reachable))
    for each in facts:
        known = each if isinstance(each, Facts) else Facts(host=each)
        cell, name = known.host.cell, known.host.name
        hosts.set_host(cell, name, Seen(known.host, 1, 1))
        hosts.set_session(cell, name, Seen(Session(host=name, epoch=1, state=known.state), 1, 1))
        hosts.set_alive(cell, name, is_alive=known.is_alive)
        if known.use is not None:
            hosts.set_use(cell, name, Seen(known.use, 1, 1))
    return hosts


def request(resources: Resources = SMALL, *, instance_id: str = "i-1", zone: str = "") -> Request:
    image = ImageRef(
        id="im-1",
        name="cirros",
        format=ImageFormat.QCOW2,
        sha256="0" * 64,
        size_bytes=1,
        virtual_size_bytes=1,
    )
    return Request(
        guest=Guest(
            id=instance_id,
            name=instance_id,
            hostname=instance_id,
            project_id="p-1",
            user_id="u-1",
            vcpus=resources.vcpus,
            ram_mib=resources.ram_mib,
            disk_gib=resources.disk_gib,
            image=image,
        ),
        zone=zone,
        network_id="n-1",
        network_name="default",
    )


def build(
    instance_id: str,
    resources: Resources = SMALL,
    *,
    cell: str = "east",
    create_time_ms: int = 0,
    zone: str = "",
) -> Build:
    return Build(
        instance_id=instance_id,
        cell=cell,
        request=request(resources, instance_id=instance_id, zone=zone),
        project_id="p-1",
        create_time_ms=create_time_ms,
    )


# ---------------------------------------------------------------------- strategies
#
# Drawn as a size and a seed: a fleet has a hundred choices in it, which one by one would take a hundred times as long to draw.


def _amounts(dice: Random, most: int) -> Resources:
    return Resources(
        vcpus=dice.randint(1, most), ram_mib=dice.randint(1, most) * 512, disk_gib=dice.randint(0, most)
    )


def _facts(dice: Random, number: int) -> Facts:
    name = f"h{number}"
    taken = dice.sample(range(6), dice.randint(0, 3))
    use = Use(
        host=name,
        claimed=_amounts(dice, 8),
        instances=len(taken),
        slots=tuple(sorted(taken)),
        volumes_gib=dice.randint(0, 4),
    )
    return Facts(
        host=host(
            name,
            cell=dice.choice(CELLS),
            capacity=_amounts(dice, 16),
            zone=dice.choice(ZONES),
            traits=tuple(trait for trait in TRAITS if dice.random() < 0.5),
            enabled=dice.random() < 0.8,
            slots=dice.randint(0, 6),
            tunnel_address="192.0.2.1" if number % 3 else "",
        ),
        state=SessionState.UP if dice.random() < 0.8 else SessionState.JOIN,
        is_alive=dice.random() < 0.8,
        use=use if dice.random() < 0.5 else None,
    )


def _fleet(size: int, seed: int) -> list[Facts]:
    dice = Random(seed)
    return [_facts(dice, number) for number in range(size)]


def fleets(most: int = 12) -> st.SearchStrategy[list[Facts]]:
    """Hosts of two cells and zones, some full, some down, some without a trait."""
    return st.builds(_fleet, st.integers(0, most), st.integers(0, 1 << 32))


@st.composite
def resources(draw: st.DrawFn, most: int = 8) -> Resources:
    return Resources(
        vcpus=draw(st.integers(1, most)),
        ram_mib=draw(st.integers(1, most)) * 512,
        disk_gib=draw(st.integers(0, most)),
    )


@st.composite
def asks(draw: st.DrawFn) -> Ask:
    required = draw(st.sampled_from([(), (), (), ("GPU",), ("SECURE_BOOT", "HW_ARCH_X86_64")]))
    forbidden = draw(st.sampled_from([(), (), ("GPU",), ("NEVER_HEARD_OF",)]))
    return Ask(
        resources=draw(resources(6)),
        zone=draw(st.sampled_from(["", "", "z1", "z9"])),
        required_traits=frozenset(required),
        forbidden_traits=frozenset(forbidden),
        cell=draw(st.sampled_from(["", "", "east"])),
        tried_cells=frozenset(draw(st.sampled_from([(), ("west",)]))),
        host=draw(st.sampled_from(["", "", "", "h0", "h99"])),
        other_than=frozenset(draw(st.sampled_from([(), (), ("h0",), ("h1", "h99")]))),
        needs_slot=draw(st.sampled_from([True, True, False])),
        needs_tunnel=draw(st.sampled_from([False, False, True])),
    )
