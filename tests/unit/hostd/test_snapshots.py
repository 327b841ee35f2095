"""Snapshots and rebuilds by the daemon as it ships, on a simulated machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fabric.errors import FabricError, InvalidRequest, NotFound
from fabric.images.core.inspect import ImageLimits, Inspection
from fabric.model.image import ImageFormat
from fabric.model.instance import OneShot
from fabric.model.session import HostState, Progress
from fabric.model.states import Want
from hostd.core.faults import FaultCode
from hostd.images.fake_qcow2 import unwrap
from tests.unit.hostd.bench import Bench, on_a_bench, raised
from tests.unit.hostd.orders import IMAGE, SNAPSHOT_ID, instance_id, order, snapshot

ONE = instance_id(1)


async def told(bench: Bench, action_seq: int = 1) -> None:
    """Until the action has been told of."""
    await bench.until(
        lambda: any(said.action_seq == action_seq for said in bench.conductor.statuses(ONE)), within_s=2000
    )


def test_a_snapshot_holds_what_the_guest_has_written_until_then() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        bench.machine.write_to_disk(ONE, b"before")
        await bench.conductor.give(snapshot())
        await told(bench)
        bench.machine.write_to_disk(ONE, b"after")

        image = bench.conductor.images[SNAPSHOT_ID]
        assert unwrap(image) == b"before"
        inspection = Inspection(ImageFormat.QCOW2, ImageLimits())
        inspection.feed(image)
        (offer,) = bench.conductor.offers
        accepted = inspection.finish()
        assert (offer.size_bytes, offer.virtual_size_bytes) == (
            accepted.size_bytes,
            accepted.virtual_size_bytes,
        )
        assert (bench.machine.running(), bench.machine.copies) == ({ONE: 1}, {})

    on_a_bench(scenario)


def test_a_snapshot_shows_how_far_it_is() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        await bench.conductor.give(snapshot())
        await told(bench)

        steps = [shown.step for shown in bench.conductor.of(Progress)]
        assert list(dict.fromkeys(steps))[-2:] == ["image_snapshot", "image_uploading"]

    on_a_bench(scenario)


def test_an_upload_that_breaks_is_begun_again() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        bench.conductor.cut_upload_after = 8000
        await bench.conductor.give(snapshot())
        await told(bench)

        assert len(bench.conductor.offers) == 2
        assert SNAPSHOT_ID in bench.conductor.images
        assert bench.conductor.statuses(ONE)[-1].fault_code == ""

    on_a_bench(scenario)


@pytest.mark.parametrize(
    ("refusal", "fault"),
    [
        (NotFound("nobody wants it"), ""),
        (InvalidRequest("it is no image", field="image"), FaultCode.IMAGE_REJECTED),
    ],
)
def test_an_image_that_is_not_taken_leaves_the_guest_alone_and_nothing_behind(
    refusal: FabricError, fault: str
) -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        bench.conductor.refuses_images = refusal
        await bench.conductor.give(snapshot())
        await told(bench)

        said = bench.conductor.statuses(ONE)[-1]
        assert (said.state, said.fault_code) == (HostState.ACTIVE, fault)
        assert (bench.machine.running(), bench.machine.copies) == ({ONE: 1}, {})

    on_a_bench(scenario)


@pytest.mark.parametrize("step", ["begin_copy", "copy_disk", "seal_copy"])
def test_a_disk_that_is_full_is_told_and_nothing_is_left(step: str) -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        bench.machine.fail_next[step].append(FaultCode.DISK_FULL)
        await bench.conductor.give(snapshot())
        await told(bench)

        said = bench.conductor.statuses(ONE)[-1]
        assert (said.state, said.fault_code) == (HostState.ACTIVE, FaultCode.DISK_FULL)
        assert (bench.conductor.images, bench.machine.copies) == ({}, {})

    on_a_bench(scenario)


def test_a_delete_does_not_wait_for_an_upload() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        bench.conductor.takes_images = False
        await bench.conductor.give(snapshot())
        await bench.until(lambda: bool(bench.conductor.offers))
        began_s = bench.loop.time()
        await bench.conductor.give(order(Want.ABSENT, generation=3, action_seq=1, action=OneShot.SNAPSHOT))
        await bench.until(lambda: HostState.ABSENT in bench.conductor.states(ONE))

        assert bench.loop.time() - began_s < 5
        assert (bench.machine.folders, bench.machine.copies) == ({}, {})

    on_a_bench(scenario)


def test_a_rebuilt_guest_has_a_new_disk_and_what_it_wrote_is_gone() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        bench.machine.write_to_disk(ONE, b"precious")
        await bench.conductor.give(order(generation=2, action_seq=1, action=OneShot.REBUILD))
        await told(bench)

        assert list(bench.machine.written.values()) == [b""]
        assert bench.kinds(ONE) == ["defined", "started", "stopped", "defined", "started"]

    on_a_bench(scenario)


def test_a_rebuild_whose_image_cannot_be_had_leaves_the_disk() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        bench.machine.write_to_disk(ONE, b"precious")
        other = replace(IMAGE, id=SNAPSHOT_ID, sha256="1" * 64)
        rebuild = order(generation=2, action_seq=1, action=OneShot.REBUILD)
        await bench.conductor.give(replace(rebuild, guest=replace(rebuild.guest, image=other)))
        await told(bench)

        assert bench.conductor.statuses(ONE)[-1].fault_code == FaultCode.IMAGE_UNAVAILABLE
        assert list(bench.machine.written.values()) == [b"precious"]

    on_a_bench(scenario)
