"""What every instance's worker shares: the host's ports, its journal, its fence, and where results go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fabric.clock import Clock
from fabric.model.session import Progress, Released, Status
from fabric.observability.failpoints import Failpoints
from hostd.commands.journal import Journal
from hostd.core.fencing import Fence
from hostd.core.reconcile import Patience
from hostd.core.steps import Act, Capture, Define, EnsureFiles, EnsureVolumes, HandIn, Start
from hostd.driver.base import Driver
from hostd.images.base import Disks, Fetch, HandOver
from hostd.network.base import Wires
from hostd.volumes.base import Volumes


@dataclass(frozen=True, slots=True, kw_only=True)
class Mouth:
    """What workers tell. Their messages carry epoch 0; the session that sends them puts its own."""

    say: Callable[[Status], None]
    unsay: Callable[[str], None]
    released: Callable[[Released], None]
    show: Callable[[Progress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The place of work. `volumes` are the host's own, `shared` those of directories that other hosts have too, by name.

    `fence` is asked at the moment of acting, never remembered (R2). `slots` bounds guests that are started at once, `makings` those whose
    disks are made, `copies` disks that are copied or handed in, and `reaches` those whose volumes are looked after in the same shared
    directories.
    """

    driver: Driver
    disks: Disks
    volumes: Volumes
    wires: Wires
    journal: Journal
    clock: Clock
    fetch: Fetch
    hand_over: HandOver
    fence: Callable[[], Fence]
    mouth: Mouth
    slots: asyncio.Semaphore
    makings: asyncio.Semaphore
    copies: asyncio.Semaphore
    reaches: Mapping[frozenset[str], asyncio.Semaphore]
    patience: Patience
    failpoints: Failpoints
    shared: Mapping[str, Volumes] = field(default_factory=dict)

    def slots_for(self, step: Act, directories: frozenset[str]) -> asyncio.Semaphore | None:
        """What bounds how many do such a step at once, for a guest that has volumes in these shared directories. Who has only to be started
        waits for nobody's disk to be made, read or fetched, and for nobody's network plan; nor does anybody for a directory of others,
        which may be out of reach for hours.
        """
        match step:
            case EnsureVolumes() if directories:
                return self.reaches[directories]
            case EnsureFiles(made=False) | EnsureVolumes(makes=True):
                return self.makings
            case EnsureFiles() | EnsureVolumes() | Define() | Start():
                return self.slots
            case Capture() | HandIn():
                return self.copies
            case _:
                return None
