"""What goes wrong, and when: a seeded schedule of faults, each mended after a while, then everything healed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, Protocol


class Target(Protocol):
    """What the nemesis may do to the world."""

    def names(self) -> list[str]: ...
    def kill(self, process: str) -> None: ...
    def start(self, process: str) -> None: ...
    def pause(self, process: str) -> None: ...
    def resume(self, process: str) -> None: ...
    def links(self) -> list[tuple[str, str]]: ...
    def cut(self, one: str, other: str) -> None: ...
    def mend(self, one: str, other: str) -> None: ...
    def stores(self) -> list[str]: ...
    def lose_quorum(self, store: str) -> None: ...
    def regain_quorum(self, store: str) -> None: ...
    def compact(self, store: str) -> None: ...
    def hosts(self) -> list[str]: ...
    def lose_power(self, host: str) -> None: ...
    def restore_power(self, host: str) -> None: ...
    def crash_hypervisor(self, host: str) -> None: ...
    def doom(self, process: str) -> None: ...
    def ambush(self, kind: str, delay_s: float, strike: Callable[[str], None]) -> None: ...
    def stop_hypervisor(self, host: str) -> None: ...
    def start_hypervisor(self, host: str) -> None: ...
    def lose_events(self, host: str) -> None: ...
    def deafen(self, host: str) -> None: ...
    def lose_journal(self, host: str) -> None: ...
    def lose_disks(self, host: str) -> None: ...
    def set_enabled(self, host: str, *, is_enabled: bool) -> Coroutine[Any, Any, None]: ...
    def fail_next_step(self, host: str, step: str) -> None: ...
    def crash_a_guest(self, host: str) -> None: ...
    def note(self, *what: object) -> None: ...


LENGTHS_S = (0.3, 1.0, 3.0, 8.0, 20.0, 20.0)
LONG_SILENCES = 0.08
"""In how many schedules one host is gone for LONG_SILENCE_S, which goes on when everything else is over."""

LONG_SILENCE_S = 150.0

STEPS = ("define", "start", "ensure_guest", "plug", "ensure_image", "cut_power", "remove", "unplug")


class Nemesis:
    """Draws faults until `horizon_s`; every fault ends by itself, at the latest when `heal` is called."""

    def __init__(self, target: Target, random: Random, horizon_s: float) -> None:
        self._target = target
        self._random = random
        self._horizon_s = horizon_s
        self._is_healed = False
        self._tasks: list[asyncio.Task[None]] = []
        self._pending: dict[asyncio.TimerHandle, Callable[[], None]] = {}

    async def run(self) -> None:
        """Break things until the horizon."""
        loop = asyncio.get_running_loop()
        draws: tuple[tuple[float, Callable[[float], None]], ...] = (
            (0.12, self._kill),
            (0.12, self._doom),
            (0.14, self._pause),
            (0.05, self._pause_all_alike),
            (0.10, self._ambush),
            (0.22, self._cut),
            (0.05, self._isolate_host),
            (0.05, self._lose_quorum),
            (0.12, self._compact),
            (0.05, self._power),
            (0.03, self._hypervisor),
            (0.03, self._hypervisor_away),
            (0.10, self._step),
            (0.03, self._guest),
            (0.02, self._journal),
            (0.01, self._disks),
            (0.02, self._events),
            (0.02, self._deaf),
            (0.03, self._disabled),
        )
        silent = loop.create_task(self._long_silence()) if self._random.random() < LONG_SILENCES else None
        while True:
            pause_s = self._random.expovariate(1 / 1.5)
            if loop.time() + pause_s > self._horizon_s:
                if silent is not None:
                    await silent
                return
            await asyncio.sleep(pause_s)
            (fault,) = self._random.choices([each for _, each in draws], [weight for weight, _ in draws])
            fault(self._random.choice(LENGTHS_S))

    def heal(self) -> None:
        """End every fault now."""
        self._is_healed = True
        for timer, mend in list(self._pending.items()):
            timer.cancel()
            mend()
        self._pending.clear()

    def _later(self, length_s: float, mend: Callable[[], None]) -> None:
        def due() -> None:
            del self._pending[timer]
            mend()

        timer = asyncio.get_running_loop().call_later(length_s, due)
        self._pending[timer] = mend

    def _kill(self, length_s: float) -> None:
        name = self._random.choice(self._target.names())
        self._target.note("kill", name, length_s)
        self._target.kill(name)
        self._later(length_s, lambda: self._target.start(name))

    def _doom(self, length_s: float) -> None:
        name = self._random.choice(self._target.names())
        self._target.note("doom", name, length_s)
        self._target.doom(name)
        self._later(length_s, lambda: self._target.start(name))

    async def _long_silence(self) -> None:
        """One host is gone for longer than any deadline: its deletions end without it, and it comes back to what has gone on."""
        await asyncio.sleep(self._random.uniform(0.1, 0.6) * self._horizon_s)
        host = self._random.choice(self._target.hosts())
        links = [link for link in self._target.links() if host in link]
        is_off = self._random.random() < 0.5
        self._target.note("long silence", host, "off" if is_off else "isolated")
        if is_off:
            self._target.lose_power(host)
        for one, other in links:
            self._target.cut(one, other)
        await asyncio.sleep(LONG_SILENCE_S)
        for one, other in links:
            self._target.mend(one, other)
        if is_off:
            self._target.restore_power(host)

    def _pause(self, length_s: float) -> None:
        name = self._random.choice(self._target.names())
        self._target.note("pause", name, length_s)
        self._target.pause(name)
        self._later(length_s, lambda: self._target.resume(name))

    def _pause_all_alike(self, _: float) -> None:
        """Every process of one kind stops, and they go on one after the other: each with what the others did meanwhile still unread."""
        kind = self._random.choice(("api", "scheduler", "conductor"))
        names = [name for name in self._target.names() if kind in name]
        self._random.shuffle(names)
        self._target.note("pause all", kind)
        length_s = 0.0
        for name in names:
            length_s += self._random.choice((0.5, 2.0, 6.0))
            self._target.pause(name)
            self._later(length_s, lambda name=name: self._target.resume(name))  # type: ignore[misc]  # bound at once

    def _ambush(self, length_s: float) -> None:
        """A fault in the middle of something: of a create, of an action, of what a host says of either."""
        kind = self._random.choice(("build/", "assignment/", "acted/"))
        strike = self._random.choice(
            (self._pause, self._disabled, self._isolate_host, self._pause_all_alike, self._pause_a_conductor)
        )
        delay_s = self._random.choice((0.002, 0.01, 0.1, 1.0, 3.0))
        self._target.note("ambush", kind, strike.__name__, delay_s, length_s)

        def sprung(key: str) -> None:
            if self._is_healed:
                return
            if kind == "assignment/" and strike == self._isolate_host:
                self._isolate(key.split("/")[1], 20.0)
            else:
                strike(length_s)

        self._target.ambush(kind, delay_s, sprung)

    def _pause_a_conductor(self, _: float) -> None:
        """For so long that its hosts go elsewhere: it comes back with what they had told it, and writes for nobody."""
        name = self._random.choice([name for name in self._target.names() if "conductor" in name])
        self._target.note("pause", name, 20.0)
        self._target.pause(name)
        self._later(20.0, lambda: self._target.resume(name))

    def _cut(self, length_s: float) -> None:
        one, other = self._random.choice(self._target.links())
        self._target.note("cut", one, other, length_s)
        self._target.cut(one, other)
        self._later(length_s, lambda: self._target.mend(one, other))

    def _isolate_host(self, length_s: float) -> None:
        self._isolate(self._random.choice(self._target.hosts()), length_s)

    def _isolate(self, host: str, length_s: float) -> None:
        links = [link for link in self._target.links() if host in link]
        self._target.note("isolate", host, length_s)
        for one, other in links:
            self._target.cut(one, other)

        def mend() -> None:
            for one, other in links:
                self._target.mend(one, other)

        self._later(length_s, mend)

    def _lose_quorum(self, length_s: float) -> None:
        store = self._random.choice(self._target.stores())
        self._target.note("quorum lost", store, length_s)
        self._target.lose_quorum(store)
        self._later(min(length_s, 8.0), lambda: self._target.regain_quorum(store))

    def _compact(self, length_s: float) -> None:
        """History goes, at times while somebody is away who will want to read it."""
        store = self._random.choice(self._target.stores())
        readers = [link for link in self._target.links() if store in link]
        conductors = [link for link in readers if "conductor" in link[0]]
        away = self._random.choice(conductors if conductors and self._random.random() < 0.6 else readers)
        self._target.note("compact", store, *away, length_s)
        if self._random.random() < 0.2:
            self._target.compact(store)
            return
        self._target.cut(*away)

        def back() -> None:
            self._target.compact(store)
            self._target.mend(*away)

        # Not for so long that its sessions end: a new one would be told everything anyway.
        self._later(min(length_s, 6.0), back)

    def _power(self, length_s: float) -> None:
        host = self._random.choice(self._target.hosts())
        self._target.note("power lost", host, length_s)
        self._target.lose_power(host)
        self._later(length_s, lambda: self._target.restore_power(host))

    def _hypervisor(self, _: float) -> None:
        host = self._random.choice(self._target.hosts())
        self._target.note("hypervisor restarts", host)
        self._target.crash_hypervisor(host)

    def _step(self, _: float) -> None:
        host, step = self._random.choice(self._target.hosts()), self._random.choice(STEPS)
        self._target.note("step will fail", host, step)
        self._target.fail_next_step(host, step)

    def _guest(self, _: float) -> None:
        host = self._random.choice(self._target.hosts())
        self._target.note("a guest crashes", host)
        self._target.crash_a_guest(host)

    def _hypervisor_away(self, length_s: float) -> None:
        host = self._random.choice(self._target.hosts())
        self._target.note("hypervisor stops", host, length_s)
        self._target.stop_hypervisor(host)
        self._later(length_s, lambda: self._target.start_hypervisor(host))

    def _journal(self, length_s: float) -> None:
        host = self._random.choice(self._target.hosts())
        self._target.note("journal lost", host, length_s)
        self._target.lose_journal(host)
        self._later(length_s, lambda: self._target.start(host))

    def _disks(self, length_s: float) -> None:
        host = self._random.choice(self._target.hosts())
        self._target.note("disks lost", host, length_s)
        self._target.lose_disks(host)
        self._later(length_s, lambda: self._target.restore_power(host))

    def _events(self, _: float) -> None:
        host = self._random.choice(self._target.hosts())
        self._target.note("events lost", host)
        self._target.lose_events(host)

    def _deaf(self, _: float) -> None:
        host = self._random.choice(self._target.hosts())
        self._target.note("guests are deaf", host)
        self._target.deafen(host)

    def _disabled(self, length_s: float) -> None:
        host = self._random.choice(self._target.hosts())
        self._target.note("disabled", host, length_s)
        loop = asyncio.get_running_loop()

        def later(*, is_enabled: bool) -> None:
            self._tasks.append(loop.create_task(self._target.set_enabled(host, is_enabled=is_enabled)))

        later(is_enabled=False)
        self._later(length_s, lambda: later(is_enabled=True))
