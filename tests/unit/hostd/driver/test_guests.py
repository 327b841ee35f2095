"""What a guest's agent may answer: anything."""

from __future__ import annotations

from typing import cast

import libvirt
import libvirt_qemu
import pytest

from hostd.core.faults import FaultCode
from hostd.driver.base import DriverError
from hostd.driver.libvirt import guests

DOMAIN = """\
<domain><devices><channel type='unix'>
  <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>
</channel></devices></domain>
"""


class DomainWithAgent:
    """A running domain whose guest has an agent."""

    def isActive(self) -> bool:  # noqa: N802 - libvirt's name
        return True

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802 - libvirt's name
        return DOMAIN


def ask() -> object:
    domain = cast("libvirt.virDomain", DomainWithAgent())
    return guests.ask_agent(domain, "guest-set-user-password", {"password": "c2VjcmV0"}, 10)


@pytest.mark.parametrize(
    "answer",
    [
        '{"return": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"return": ' + "1" * 10_000 + "}",
        "[]",
        "1",
        "",
        '{"return": ',
    ],
    ids=["too deep", "too long a number", "a list", "a number", "nothing", "half"],
)
def test_an_answer_that_cannot_be_read_is_the_agents_failure(
    answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent is its guest's. One that answered with brackets enough ended the session of its host, and with it everybody's consoles."""
    # The library's function takes a domain of a real connection; what it returns is what matters here.
    monkeypatch.setattr(libvirt_qemu, "qemuAgentCommand", lambda *_: answer)

    with pytest.raises(DriverError) as failed:
        ask()
    assert failed.value.code == FaultCode.AGENT_FAILED
    assert failed.value.__cause__ is None


def test_what_an_agent_returns_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    # As above.
    monkeypatch.setattr(libvirt_qemu, "qemuAgentCommand", lambda *_: '{"return": {"count": 3}}')

    assert ask() == {"count": 3}
