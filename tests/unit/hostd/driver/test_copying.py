"""What is asked of libvirt around a copy, and in which order."""

from __future__ import annotations

from typing import cast

import libvirt

from hostd.driver.base import DiskFile
from hostd.driver.libvirt import copying

DOMAIN = """\
<domain><devices><disk type='file' device='disk'><target dev='vda' bus='virtio'/><serial>root</serial></disk></devices></domain>
"""


class RunningDomain:
    """A domain whose guest's agent is bounded only once it was said how long it may take, as with libvirt."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def isActive(self) -> bool:  # noqa: N802 - libvirt's name
        return True

    def jobStats(self, _flags: int = 0) -> dict[str, int]:  # noqa: N802 - libvirt's name
        return {"type": libvirt.VIR_DOMAIN_JOB_NONE}

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802 - libvirt's name
        return DOMAIN

    def agentSetResponseTimeout(self, timeout_s: int) -> None:  # noqa: N802 - libvirt's name
        assert timeout_s > 0
        self.asked.append("bound")

    def fsFreeze(self) -> None:  # noqa: N802 - libvirt's name
        self.asked.append("freeze")

    def fsThaw(self) -> None:  # noqa: N802 - libvirt's name
        self.asked.append("thaw")

    def backupBegin(self, _backup: str, _checkpoint: None, _flags: int) -> None:  # noqa: N802 - libvirt's name
        self.asked.append("copy")


def test_an_agent_is_never_asked_without_a_bound() -> None:
    """libvirt waits for an agent's answer for ever unless it was told otherwise. The first thing that a copy does is to thaw what an
    earlier one may have left frozen, and that was asked before the bound was set: a guest whose agent shows itself and then says nothing
    kept the thread that asked, one of the few that all guests of the host share.
    """
    domain = RunningDomain()

    copying.begin(cast("libvirt.virDomain", domain), "root", DiskFile(path="/c", format="qcow2", serial=""))

    assert [what for what in domain.asked if what != "bound"] == ["thaw", "freeze", "copy", "thaw"]
    assert domain.asked[0] == "bound"


def test_what_ends_a_copy_sets_the_bound_itself() -> None:
    """A copy may be ended by a daemon that has not begun it, for a guest that has been started anew since."""
    domain = RunningDomain()

    copying.end(cast("libvirt.virDomain", domain))

    assert domain.asked == ["bound", "thaw"]
