"""What a guest's agent, and its balloon's driver, may say: anything."""

from __future__ import annotations

from typing import cast

import libvirt
import libvirt_qemu
import pytest

from fabric.conductor.core.guard import breach
from fabric.model.states import PowerState
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

    def name(self) -> str:
        return "cellfabric-of-no-such-process"


class Counting:
    """A connection to a hypervisor that has these counters of whatever domain."""

    def __init__(self, **stats: int) -> None:
        self._stats = {name.replace("_", "."): number for name, number in stats.items()}

    def domainListGetStats(self, domains: list[object], _stats: int) -> object:  # noqa: N802 - libvirt's name
        return [(domain, self._stats) for domain in domains]

    def getURI(self) -> str:  # noqa: N802 - libvirt's name
        return "qemu:///system"


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


def test_a_guest_has_no_more_unused_memory_than_memory_whatever_it_says() -> None:
    """A conductor believes no host that says such numbers, and three of them would have cost the host its session."""
    connect = Counting(balloon_current=1 << 20, balloon_unused=((1 << 64) - 2) // 1024)

    found = guests.diagnostics(
        cast("libvirt.virConnect", connect),
        cast("libvirt.virDomain", DomainWithAgent()),
        PowerState.RUNNING,
    )

    assert breach(found) is None
    assert found.memory_unused_kib == 1 << 20
