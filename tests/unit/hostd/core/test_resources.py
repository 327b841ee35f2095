"""What a host holds, counted."""

from __future__ import annotations

from fabric.model.host import Resources
from fabric.model.session import Held
from fabric.model.states import PowerState
from hostd.core import resources
from hostd.driver.base import Domain, Hypervisor
from hostd.images.base import Held as HeldFiles
from tests.unit.hostd.orders import guest, instance_id

HYPERVISOR = Hypervisor(
    kind="qemu",
    version="9.1",
    accelerator="kvm",
    architecture="x86_64",
    total=Resources(vcpus=8, ram_mib=1000, disk_gib=10),
)


def domain(number: int, power: PowerState, *, ours: bool = True) -> Domain:
    return Domain(
        name=f"domain-{number}",
        instance_id=instance_id(number) if ours else "",
        placement_epoch=1 if ours else 0,
        generation=1,
        power=power,
        ours=ours,
    )


def test_in_use_is_what_guests_with_a_domain_were_promised_running_or_not() -> None:
    report = resources.report(
        HYPERVISOR,
        [
            domain(1, PowerState.RUNNING),
            domain(2, PowerState.SHUTDOWN),
            domain(9, PowerState.RUNNING, ours=False),
        ],
        {instance_id(number): guest(number) for number in (1, 2, 3)},
        agent_version="1",
        health="ok",
    )

    assert report.used == Resources(vcpus=2, ram_mib=512, disk_gib=4)
    assert report.running == 1
    assert (report.total, report.hypervisor) == (HYPERVISOR.total, "qemu/kvm")


def test_without_a_hypervisor_there_is_still_a_report() -> None:
    report = resources.report(None, [], {}, agent_version="1", health="HYPERVISOR_UNAVAILABLE")

    assert report.health == "HYPERVISOR_UNAVAILABLE"
    assert report.total == Resources()


def test_an_inventory_names_every_placement_once_and_strays_apart() -> None:
    held = resources.inventory(
        [domain(1, PowerState.RUNNING), domain(9, PowerState.RUNNING, ours=False)],
        [HeldFiles(instance_id(1), 1), HeldFiles(instance_id(2), 4)],
        {instance_id(1): 1, instance_id(3): 2},
    )

    assert held.held == (
        Held(instance_id=instance_id(1), placement_epoch=1, power=PowerState.RUNNING),
        Held(instance_id=instance_id(2), placement_epoch=4, power=PowerState.NOSTATE),
        Held(instance_id=instance_id(3), placement_epoch=2, power=PowerState.NOSTATE),
    )
    assert held.strays == ("domain-9",)


def test_what_no_order_explains_is_named() -> None:
    held = resources.inventory([domain(1, PowerState.RUNNING), domain(2, PowerState.RUNNING)], [], {})

    assert resources.unexplained(held, [instance_id(1)]) == (instance_id(2),)


def test_a_stray_may_be_called_anything_and_the_inventory_is_still_believed() -> None:
    strays = [
        Domain(
            name=name, instance_id="", placement_epoch=0, generation=0, power=PowerState.RUNNING, ours=False
        )
        for name in ("", "bell\x07", "x" * 999)
    ]

    held = resources.inventory(strays, [HeldFiles("not-an-id", 1), HeldFiles(instance_id(1), 0)], {})

    assert held.strays == ("?", "bell?", "x" * 128)
    assert held.held == ()
