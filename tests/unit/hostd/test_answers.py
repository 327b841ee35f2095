"""What is answered about a guest, whatever looking at it comes to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from structlog.testing import capture_logs

from fabric.model.session import Diagnostics, DiagnosticsWanted, PasswordSet, PasswordWanted
from fabric.model.states import PowerState
from fabric.observability.failpoints import NO_FAILPOINTS
from hostd.console.answers import Answers
from hostd.console.tunnels import Tunnels
from hostd.core.faults import FaultCode
from hostd.driver.base import Domain
from hostd.driver.fake import INSTANT, FakeDriver, FakeMachine
from hostd.images.fake import FakeDisks
from tests.unit.hostd.orders import instance_id

ONE = instance_id(1)


class WordlessDriver(FakeDriver):
    """A hypervisor that fails in ways it has no word for."""

    async def observe(self, instance_id: str) -> Domain | None:
        return Domain(
            name="d", instance_id=instance_id, placement_epoch=1, generation=1, power=PowerState.RUNNING
        )

    async def diagnostics(self, instance_id: str) -> Diagnostics:
        raise ValueError("not enough values to unpack")

    async def agent(
        self, instance_id: str, command: str, arguments: Mapping[str, object], *, timeout_s: float
    ) -> object:
        raise ValueError(f"what was asked: {arguments}")


async def test_a_question_that_fails_without_a_word_is_answered_all_the_same() -> None:
    """A guest that goes away between two looks leaves libvirt with no row of counters. That ended the session of its host, and with it the
    consoles of all its guests. Nor may the words of such a failure be logged: they may repeat a password.
    """
    machine = FakeMachine("h1", delays=INSTANT)
    answers = Answers(WordlessDriver(machine), FakeDisks(machine), cast("Tunnels", None), NO_FAILPOINTS)

    with capture_logs() as logs:
        counters = await answers.answer(DiagnosticsWanted(question=1, instance_id=ONE, placement_epoch=1))
        password = await answers.answer(
            PasswordWanted(question=2, instance_id=ONE, placement_epoch=1, user="root", password="hunter2")
        )

    assert counters == Diagnostics(question=1, fault_code=FaultCode.HOST_FAILED)
    assert password == PasswordSet(question=2, fault_code=FaultCode.HOST_FAILED)
    assert len(logs) == 2
    assert "aHVudGVyMg==" not in str(logs)
