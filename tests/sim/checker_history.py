"""What the tests of the checker tell it: writes and events of a small cell, as its store and its hosts would."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from fabric.model.host import Host, Resources, Use
from fabric.model.image import ImageFormat
from fabric.model.instance import (
    ActionMark,
    Assignment,
    Guest,
    ImageRef,
    Instance,
    Location,
    Request,
)
from fabric.model.quota import Charge, Quota
from fabric.model.states import TaskState, VmState, Want
from fabric.store import codec, keys
from tests.history.events import Event, Wrote
from tests.history.invariants import Checker

SERVER = "00000000-0000-4000-8000-000000000001"
OTHER = "00000000-0000-4000-8000-000000000002"
PROJECT = "nebula"
IMAGE = ImageRef(
    id="image", name="tiny", format=ImageFormat.RAW, sha256="ab" * 32, size_bytes=1, virtual_size_bytes=1
)
COST = Charge(instances=1, vcpus=1, ram_mib=512)


@dataclass(slots=True)
class History:
    """Writes and events in order, as a store and its hosts would tell them."""

    checker: Checker = field(default_factory=Checker)
    _revisions: dict[str, int] = field(default_factory=dict)
    _values: dict[tuple[str, str], bytes] = field(default_factory=dict)

    def write(self, store: str, values: Mapping[str, object | None], *, by: str = "") -> None:
        """One transaction: None deletes."""
        self._revisions[store] = revision = self._revisions.get(store, 1) + 1
        for key, value in values.items():
            before = self._values.pop((store, key), None)
            after = None if value is None else codec.encode(value)
            if after is not None:
                self._values[store, key] = after
            self.checker.take(Wrote(store, revision, key, before, after, by))
        self.checker.end_of_revision()

    def tell(self, *events: Event) -> None:
        for event in events:
            self.checker.take(event)


def guest(instance_id: str = SERVER) -> Guest:
    return Guest(
        id=instance_id,
        name=instance_id,
        hostname="web",
        project_id=PROJECT,
        user_id="user",
        vcpus=1,
        ram_mib=512,
        disk_gib=1,
        image=IMAGE,
    )


def record(instance_id: str = SERVER) -> Instance:
    return Instance(
        id=instance_id,
        request=Request(guest=guest(instance_id)),
        vm_state=VmState.BUILDING,
        task=TaskState.SPAWNING,
        host="h1",
        placement_epoch=1,
    )


def active(instance_id: str = SERVER) -> Instance:
    return replace(
        record(instance_id),
        vm_state=VmState.ACTIVE,
        task=TaskState.NONE,
        observed_generation=1,
        want=Want.RUN,
    )


def located(instance_id: str = SERVER) -> Location:
    return Location(
        instance_id=instance_id,
        project_id=PROJECT,
        user_id="user",
        name=instance_id,
        cell="cell1",
        charge=COST,
    )


def quota(used: int, *, limit: int = 2) -> Quota:
    def of(number: int) -> Charge:
        return Charge(instances=number, vcpus=number, ram_mib=512 * number)

    return Quota(project_id=PROJECT, limit=of(limit), used=of(used))


def claims(host: str, instance_ids: Iterable[str]) -> dict[str, object | None]:
    """The use record and the assignments that belong together."""
    ids = list(instance_ids)
    return {
        keys.USE.at(host): Use(
            host=host,
            claimed=Resources(vcpus=len(ids), ram_mib=512 * len(ids), disk_gib=len(ids)),
            instances=len(ids),
            slots=tuple(range(len(ids))),
        ),
        **{
            keys.ASSIGNMENT.at(host, each): Assignment(
                instance_id=each,
                placement_epoch=1,
                generation=1,
                want=Want.RUN,
                action=ActionMark(),
                guest=guest(each),
            )
            for each in ids
        },
    }


def a_host(*, vcpus: int = 4) -> dict[str, object | None]:
    capacity = Resources(vcpus=vcpus, ram_mib=8192, disk_gib=100)
    return {keys.HOST.at("h1"): Host(name="h1", cell="cell1", zone="z", capacity=capacity)}
