"""What a resize asks for: rules on values."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fabric.api.core import moves
from fabric.errors import InvalidRequest
from fabric.model.flavor import Flavor
from fabric.model.image import Image, ImageFormat
from fabric.model.instance import Instance, MoveWanted
from fabric.model.states import VmState
from fabric.store.keys import MOVE
from tests.unit.scheduler.worlds import request

SMALL = Flavor(
    id="small", name="small", vcpus=1, ram_mib=512, disk_gib=1, properties={"trait:SSD": "required"}
)
LARGE = Flavor(
    id="large", name="large", vcpus=2, ram_mib=1024, disk_gib=2, properties={"trait:GPU": "required"}
)
IMAGE = Image(
    id="im-1",
    name="cirros",
    project_id="p-1",
    format=ImageFormat.QCOW2,
    min_ram_mib=256,
    properties={"trait:AVX": "required"},
)
NOW = replace(
    request(), flavor_id="small", flavor_name="small", required_traits=("AVX", "SSD"), forbidden_traits=()
)


def test_a_resize_changes_the_flavor_and_nothing_else() -> None:
    after = moves.resized(NOW, LARGE, SMALL, IMAGE)

    assert (after.flavor_id, after.guest.vcpus, after.guest.ram_mib, after.guest.disk_gib) == (
        "large",
        2,
        1024,
        2,
    )
    assert replace(after.guest, vcpus=1, ram_mib=512, disk_gib=1) == NOW.guest


def test_what_the_old_flavor_asked_of_hosts_is_asked_no_more_and_what_the_image_asks_still_is() -> None:
    assert moves.resized(NOW, LARGE, SMALL, IMAGE).required_traits == ("AVX", "GPU")


def test_what_both_flavor_and_image_asked_is_still_asked() -> None:
    image = replace(IMAGE, properties={"trait:SSD": "required"})

    assert "SSD" in moves.resized(NOW, LARGE, SMALL, image).required_traits


def test_an_image_that_must_be_booted_securely_is_after_any_resize() -> None:
    """Its property is a trait of hosts' by another name, which a resize did not know: leaving a flavor that asked for it too lost it."""
    image = replace(IMAGE, properties={"os_secure_boot": "required"})
    before = replace(SMALL, properties={"trait:SECURE_BOOT": "required"})
    now = replace(NOW, required_traits=("SECURE_BOOT",))

    assert "SECURE_BOOT" in moves.resized(now, LARGE, before, image).required_traits


def test_what_an_image_forbids_no_flavor_asks_for() -> None:
    """A create takes the image's word, a resize took both: no host has a trait and has it not."""
    image = replace(IMAGE, properties={"trait:GPU": "forbidden"})
    now = replace(NOW, required_traits=(), forbidden_traits=("GPU",))

    after = moves.resized(now, LARGE, SMALL, image)

    assert (after.required_traits, after.forbidden_traits) == ((), ("GPU",))


def test_what_a_flavor_asked_that_is_no_more_is_asked_on() -> None:
    assert moves.resized(NOW, LARGE, None, None).required_traits == ("AVX", "GPU", "SSD")


def test_a_flavor_without_a_disk_of_its_own_keeps_the_servers() -> None:
    assert moves.resized(NOW, replace(LARGE, disk_gib=0), SMALL, IMAGE).guest.disk_gib == 1


@pytest.mark.parametrize(
    ("flavor", "why"),
    [
        (SMALL, "has flavor small already"),
        (replace(LARGE, ram_mib=128), "image cirros needs 256"),
    ],
)
def test_what_cannot_be_is_refused_by_its_field(flavor: Flavor, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as refused:
        moves.resized(NOW, flavor, SMALL, IMAGE)

    assert refused.value.field == "flavor"


def test_disks_do_not_shrink() -> None:
    larger = replace(NOW, guest=replace(NOW.guest, disk_gib=4))

    with pytest.raises(InvalidRequest, match="disks do not shrink"):
        moves.resized(larger, LARGE, SMALL, IMAGE)


def _server(host: str) -> Instance:
    return Instance(id="i-1", request=NOW, vm_state=VmState.ACTIVE, host=host)


def test_a_server_is_not_migrated_to_the_host_it_is_on() -> None:
    work = moves.migrate_work("h1", image_id="carrier", now_ms=1)

    with pytest.raises(InvalidRequest, match="on host h1 already"):
        work(_server("h1"))


def test_only_a_server_that_is_nowhere_needs_a_host_to_be_unshelved() -> None:
    work = moves.unshelve_work(now_ms=1)

    assert work(_server("h1")) == {}
    assert work(_server("")) == {MOVE.at("i-1"): MoveWanted(instance_id="i-1", request=NOW, create_time_ms=1)}
