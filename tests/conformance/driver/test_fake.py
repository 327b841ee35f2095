"""The simulated machine under the laws of real ones."""

from __future__ import annotations

import pytest

from fabric.model.volume import serial_of
from hostd.driver.base import DiskFile, DomainSpec, Driver, Interface
from hostd.driver.fake import INSTANT, FakeCopy, FakeDriver, FakeMachine
from hostd.images.base import Held
from tests.conformance.driver.laws import ID, LAWS, Law
from tests.conformance.guests import a_guest, an_id


class FakeRig:
    def __init__(self) -> None:
        self.machine = FakeMachine("fake-1", delays=INSTANT)
        self.driver: Driver = FakeDriver(self.machine)

    async def another_driver(self) -> Driver:
        driver = FakeDriver(self.machine)
        await driver.open()
        return driver

    def spec(self, *, placement_epoch: int = 1, generation: int = 1) -> DomainSpec:
        return DomainSpec(
            guest=a_guest(id=ID),
            placement_epoch=placement_epoch,
            generation=generation,
            disks=(DiskFile(path="/fake/root", format="qcow2", serial="root"),),
            interfaces=(),
        )

    def empty_disk(self) -> DiskFile:
        path = f"/fake/copy-{len(self.machine.copies)}"
        self.machine.copies[Held(ID, 1), len(self.machine.copies)] = FakeCopy(path)
        return DiskFile(path=path, format="qcow2", serial="")

    def holds_a_copy(self, target: DiskFile) -> bool:
        return any(
            made.path == target.path and made.data is not None for made in self.machine.copies.values()
        )

    def crash(self) -> None:
        self.machine.crash_guest(ID)

    def another_disk(self, word: str) -> DiskFile:
        return DiskFile(path=f"/fake/{word}", format="raw", serial=serial_of(an_id(word)))

    def interface(self, number: int) -> Interface | None:
        return Interface(tap=f"cft{number}", mac=f"fa:16:3e:00:00:{number:02x}", mtu=1500)

    async def add_foreign(self) -> str:
        self.machine.strays.append("somebody-elses")
        return "somebody-elses"


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
async def test_the_fake_driver(law: Law) -> None:
    rig = FakeRig()
    await rig.driver.open()

    await law(rig)

    await rig.driver.close()
    await rig.machine.settle()
