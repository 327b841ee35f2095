"""One seed, one history: faults for a while, then everything healed, then it must come to rest.

python -m tests.sim.run 0 100          seeds 0 to 99
python -m tests.sim.run 17 18 -v       one seed, with its trace
python -m tests.sim.run 17 18 --digests   the digest of its trace, to compare
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

import structlog

from tests.history.invariants import Violation
from tests.sim.clients import Client
from tests.sim.loop import SimLoop, graveyard
from tests.sim.nemesis import Nemesis
from tests.sim.port_clients import PortClient
from tests.sim.tenant_networks import unfollowed
from tests.sim.volume_clients import VolumeClient
from tests.sim.world import Topology, World

HORIZON_S = 60.0
"""How long things go wrong."""

PLUGS = 3
"""Of each four schedules the one in which volumes and interfaces come and go."""

WIRES = 2
"""Of each four schedules the one in which servers are on networks of their projects, and ports come and go."""

BOOTS = 7
"""Of each eight the one of these in which servers boot from one volume after another."""

MOVER = 2
"""Which of the three clients sends its servers from host to host."""

HEALING_S = 240.0
"""How long the healed world may take to come to rest: the slowest deadline of any action, and a little more."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a seed ended. `violation` is empty when all is well."""

    seed: int
    digest: str
    violation: str
    accepted: int
    deleted: int
    events: int
    settled_s: float
    story: str = ""


def topology_for(seed: int) -> Topology:
    """One cell mostly, two now and then; and what begins by itself begins at once, after a while, or never."""
    random, timers = Random(f"topology {seed}"), Random(f"timers {seed}")
    chosen = Topology() if random.random() < 0.75 else Topology(cells=2, hosts_per_cell=2)
    return replace(
        chosen,
        shelve_offload_s=timers.choice((0.0, 0.0, 3.0, -1.0)),
        resize_confirm_s=timers.choice((0.0, 0.0, 4.0)),
        reclaim_s=Random(f"keeping {seed}").choice((0.0, 0.0, 0.0, 8.0)),
    )


def run(seed: int, *, verbose: bool = False, faults: bool = True, horizon_s: float = HORIZON_S) -> Outcome:
    """Run a seed to its end."""
    with unlogged(), graveyard():
        return _run(seed, verbose=verbose, faults=faults, horizon_s=horizon_s)


@contextlib.contextmanager
def unlogged() -> Iterator[None]:
    """A world in trouble has much to say, at no cost to whoever logs after it in this process."""
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL), cache_logger_on_first_use=False
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def _run(seed: int, *, verbose: bool, faults: bool, horizon_s: float) -> Outcome:
    loop = SimLoop(Random(f"loop {seed}"))
    world = World(loop, seed, topology_for(seed), verbose=verbose)
    world.checker.keeps = world.topology.reclaim_s > 0
    settled_s = loop.run_world(_history(world, seed, faults=faults, horizon_s=horizon_s))
    return Outcome(
        seed=seed,
        digest=world.digest.hexdigest(),
        violation=str(world.violation or ""),
        accepted=len(world.checker.accepted),
        deleted=len(world.checker.deleted),
        events=world.events,
        settled_s=settled_s,
        story="".join(traceback.format_exception(world.violation)) if world.violation is not None else "",
    )


async def _history(world: World, seed: int, *, faults: bool, horizon_s: float) -> float:
    await world.furnish()
    world.populate()
    loop = asyncio.get_running_loop()
    nemesis = Nemesis(world, Random(f"nemesis {seed}"), horizon_s)
    calls = iter(range(1, 1_000_000_000))
    apis = [name for name in world.names() if name.startswith("api")]
    clients = [
        Client(
            name=f"client{number}",
            random=Random(f"client {number} {seed}"),
            principals=world.principals(),
            apis=apis,
            call=world.call,
            record=world.record,
            number=lambda: next(calls),
            moves=number == MOVER,
        )
        for number in range(3)
    ]
    if seed % 4 == PLUGS:
        clients.append(
            VolumeClient(
                name="client-of-volumes",
                random=Random(f"volumes {seed}"),
                principals=world.principals(),
                apis=apis,
                call=world.call,
                record=world.record,
                number=lambda: next(calls),
                boots=seed % 8 == BOOTS,
            )
        )
    if seed % 4 == WIRES:
        # Instead of one of the others: what all of them may have is little.
        clients[0] = PortClient(
            name="client-of-ports",
            random=Random(f"ports {seed}"),
            principals=world.principals(),
            apis=apis,
            call=world.call,
            record=world.record,
            number=lambda: next(calls),
            moves=seed % 8 == WIRES,
        )
    working = [loop.create_task(client.run(lambda: loop.time() > horizon_s)) for client in clients]
    breaking = loop.create_task(nemesis.run() if faults else asyncio.sleep(horizon_s))
    while not all(task.done() for task in (*working, breaking)):
        await asyncio.sleep(0.5)
        world.check_alive()
        if world.violation is not None:
            return 0.0
    for task in (*working, breaking):
        task.result()
    nemesis.heal()
    world.network.mend_all()
    world.note("healed")
    healed_s = loop.time()
    left: str | None = "not looked yet"
    while left is not None:
        await world.approve_quarantined()
        await asyncio.sleep(1.0)
        world.check_alive()
        left = world.unsettled() or await unfollowed(world)
        if world.violation is None and left is not None and loop.time() - healed_s > HEALING_S:
            world.violate(Violation(f"not at rest {HEALING_S:.0f} s after healing: {left}"))
        if world.violation is not None:
            return 0.0
    return loop.time() - healed_s


def main(arguments: list[str]) -> int:
    """Run seeds and say how it went; the exit code is 1 when anything was violated, or so little was done that nothing could be."""
    first, last = (int(each) for each in arguments[:2])
    began_cpu_s = time.process_time()
    slowest, accepted, failed = 0.0, 0, 0
    for seed in range(first, last):
        outcome = run(seed, verbose="-v" in arguments)
        slowest, accepted = max(slowest, outcome.settled_s), accepted + outcome.accepted
        if "--digests" in arguments:
            print(f"seed {seed}: digest {outcome.digest}")
        if outcome.violation:
            failed += 1
            print(f"seed {seed}: {outcome.violation} ({outcome.events} events)")
            if "-v" in arguments:
                print(outcome.story)
    spent_s = time.process_time() - began_cpu_s
    print(
        f"{last - first} schedules, {accepted} servers, {failed} violations, "
        f"{(last - first) / spent_s:.2f} schedules per CPU-second, slowest to settle {slowest:.0f} s"
    )
    if not failed and accepted <= last - first:
        print("hardly a server was made: this proves nothing")
        return 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
