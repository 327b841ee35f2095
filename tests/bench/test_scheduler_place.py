"""How long placement takes, by the number of hosts. Prints numbers to compare; asserts only that the answers are right."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from random import Random

import pytest

from fabric.model.host import Host, Resources, Session, SessionState, Use
from fabric.scheduler.core.ask import Ask
from fabric.scheduler.core.picture import HostPicture, Seen
from fabric.scheduler.core.place import Wanted, decide
from fabric.scheduler.settings import PlacementSettings

pytestmark = pytest.mark.slow

CAPACITY = Resources(vcpus=128, ram_mib=262_144, disk_gib=3840)
ASK = Ask(
    resources=Resources(vcpus=4, ram_mib=8192, disk_gib=80),
    zone="z1",
    required_traits=frozenset({"HW_ARCH_X86_64", "GPU"}),
)
TOO_MUCH = Ask(resources=Resources(vcpus=4, ram_mib=1 << 40, disk_gib=80))
SETTINGS = PlacementSettings()


def fleet(count: int, *, is_empty: bool) -> HostPicture:
    """Three zones, a third with GPUs; empty alike (every tie there can be), or filled at random."""
    dice = Random(1)
    hosts = HostPicture()
    hosts.set_cell("c", is_enabled=True, is_reachable=True)
    for number in range(count):
        name = f"h{number}"
        traits = ("HW_ARCH_X86_64", "GPU") if dice.random() < 0.33 else ("HW_ARCH_X86_64",)
        made = Host(
            name=name,
            cell="c",
            zone=f"z{number % 3}",
            capacity=CAPACITY,
            traits=traits,
            guest_cidr="10.0.0.0/24",
            slots=200,
        )
        hosts.set_host("c", name, Seen(made, 1, 1))
        hosts.set_session("c", name, Seen(Session(host=name, epoch=1, state=SessionState.UP), 1, 1))
        hosts.set_alive("c", name, is_alive=True)
        if not is_empty:
            claimed = Resources(
                vcpus=dice.randrange(128), ram_mib=dice.randrange(262_144), disk_gib=dice.randrange(3840)
            )
            hosts.set_use(
                "c", name, Seen(Use(host=name, claimed=claimed, instances=dice.randrange(60)), 1, 1)
            )
    return hosts


def times_ms(work: Callable[[int], object], rounds: int) -> list[float]:
    """The wall time of each round, ascending."""
    taken = []
    for number in range(rounds):
        began = time.perf_counter()
        work(number)
        taken.append((time.perf_counter() - began) * 1000)
    return sorted(taken)


@pytest.mark.parametrize("is_empty", [False, True], ids=["filled", "empty"])
@pytest.mark.parametrize("count", [1_000, 10_000, 100_000])
def test_how_long_a_decision_takes(count: int, is_empty: bool, capsys: pytest.CaptureFixture[str]) -> None:
    hosts = fleet(count, is_empty=is_empty)
    batch = [Wanted(instance_id=f"b{number}", ask=ASK) for number in range(100)]

    one = times_ms(
        lambda number: decide(hosts, [Wanted(instance_id=f"i{number}", ask=ASK)], SETTINGS, now_ms=0), 300
    )
    hundred = times_ms(lambda _: decide(hosts, batch, SETTINGS, now_ms=0), 9)
    refusal = times_ms(
        lambda _: decide(hosts, [Wanted(instance_id="i", ask=TOO_MUCH)], SETTINGS, now_ms=0), 9
    )

    with capsys.disabled():
        print(  # noqa: T201 - the numbers are the point
            f"\n{count:7,} hosts {'empty' if is_empty else 'filled'}: decision p50 {one[150]:.3f} ms,"
            f" p99 {one[297]:.3f} ms; 100 at once {statistics.median(hundred):.2f} ms;"
            f" a refusal explained {statistics.median(refusal):.2f} ms"
        )
    placed = decide(hosts, batch, SETTINGS, now_ms=0)
    (refused,) = decide(hosts, [Wanted(instance_id="i", ask=TOO_MUCH)], SETTINGS, now_ms=0)
    assert all(decision.host for decision in placed)
    assert sum(refusal.hosts for refusal in refused.refusals) == count
