"""The allow-list: what is refused, field by field, and what an honest host may send."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.conductor.core import guard
from fabric.model.faults import FaultCode
from fabric.model.host import Resources
from fabric.model.session import (
    Beat,
    ConsoleLog,
    Diagnostics,
    DiskCounters,
    FromHost,
    Held,
    Hello,
    HostState,
    InterfaceCounters,
    Inventory,
    PasswordSet,
    PlanFollowed,
    Progress,
    Released,
    Report,
    Status,
    StepDone,
    TunnelRefused,
)
from fabric.model.states import PowerState

ID = "00000000-0000-4000-8000-000000000001"
OTHER = "00000000-0000-4000-8000-000000000002"

HELLO = Hello(boot_id="b1", agent_version="1.0", highest_epoch=0)
STATUS = Status(
    epoch=1,
    instance_id=ID,
    placement_epoch=1,
    generation=1,
    action_seq=0,
    state=HostState.ACTIVE,
    power=PowerState.RUNNING,
)
STEP = StepDone(name=6, began_ago_ms=5000, took_ms=1200)
FAILED = replace(STATUS, state=HostState.ERROR, power=PowerState.NOSTATE, fault_code="DISK_FULL")
RELEASED = Released(epoch=1, instance_id=ID, placement_epoch=1)
REPORT = Report(
    epoch=1,
    total=Resources(vcpus=4, ram_mib=4096, disk_gib=10),
    used=Resources(vcpus=1, ram_mib=512, disk_gib=1),
    running=1,
    hypervisor="qemu/kvm",
    hypervisor_version="7.2",
    agent_version="1.0",
)
LOG = ConsoleLog(question=1, data=b"\x1b[31mlogin:\0")
PROGRESS = Progress(epoch=1, instance_id=ID, placement_epoch=1, step="image", percent=40)
HELD = Held(instance_id=ID, placement_epoch=1, power=PowerState.RUNNING)
INVENTORY = Inventory(epoch=1, held=(HELD,), strays=("somebody's vm",))

DISK = DiskCounters(device="vda", read_bytes=1, read_requests=1, write_bytes=1, write_requests=1)
NIC = InterfaceCounters(mac="fa:16:3e:00:00:01", rx_bytes=1, tx_drops=1)
COUNTERS = Diagnostics(
    question=1,
    power=PowerState.RUNNING,
    uptime_s=5,
    vcpu_time_ms=(7, 8),
    memory_kib=131072,
    disks=(DISK,),
    interfaces=(NIC,),
)

HONEST: tuple[FromHost, ...] = (
    COUNTERS,
    Diagnostics(question=1, fault_code="GUEST_OFF"),
    PasswordSet(question=1),
    PasswordSet(question=1, fault_code="AGENT_MISSING"),
    TunnelRefused(question=1, fault_code="CONSOLE_IN_USE"),
    PlanFollowed(epoch=1, revision=7),
    PlanFollowed(epoch=1, revision=7, fault_code="NETWORK_FAILED", fault_message="no room for a tap"),
    HELLO,
    Beat(seq=1, epoch=1),
    STATUS,
    FAILED,
    replace(FAILED, fault_message="needs 3 GiB, has 1 GiB"),
    replace(STATUS, fault_code="DOMAIN_PAUSE_FAILED", fault_message="it goes on"),
    replace(STATUS, steps=(STEP,) * 16),
    # Of a daemon that is newer than the conductor.
    replace(STATUS, steps=(replace(STEP, name=999),)),
    replace(FAILED, steps=(replace(STEP, fault_code="DISK_FULL"),)),
    RELEASED,
    REPORT,
    replace(REPORT, health="HYPERVISOR_UNAVAILABLE"),
    LOG,
    ConsoleLog(question=1, fault_code="CONSOLE_UNAVAILABLE"),
    PROGRESS,
    INVENTORY,
    Inventory(epoch=1),
    Inventory(epoch=1, held=(HELD, replace(HELD, placement_epoch=2))),
)

BAD: tuple[tuple[str, FromHost], ...] = (
    ("question", replace(COUNTERS, question=-1)),
    ("fault_code", replace(COUNTERS, fault_code="MADE_UP")),
    ("uptime_s", replace(COUNTERS, uptime_s=-1)),
    ("memory_kib", replace(COUNTERS, memory_kib=2**60)),
    ("vcpu_time_ms", replace(COUNTERS, vcpu_time_ms=(1,) * 513)),
    ("vcpu_time_ms[1]", replace(COUNTERS, vcpu_time_ms=(1, -1))),
    ("disks", replace(COUNTERS, disks=(DISK,) * 65)),
    ("disks[0].device", replace(COUNTERS, disks=(replace(DISK, device="\x1b[2J"),))),
    ("disks[0].device", replace(COUNTERS, disks=(replace(DISK, device="v" * 33),))),
    ("disks[0].write_bytes", replace(COUNTERS, disks=(replace(DISK, write_bytes=-1),))),
    ("interfaces", replace(COUNTERS, interfaces=(NIC,) * 65)),
    ("interfaces[0].mac", replace(COUNTERS, interfaces=(replace(NIC, mac="<script>"),))),
    ("interfaces[0].rx_packets", replace(COUNTERS, interfaces=(replace(NIC, rx_packets=2**53),))),
    ("question", PasswordSet(question=-1)),
    ("fault_code", PasswordSet(question=1, fault_code="no")),
    ("fault_code", TunnelRefused(question=1, fault_code="")),
    ("fault_code", TunnelRefused(question=1, fault_code="no")),
    ("revision", PlanFollowed(epoch=1, revision=0)),
    ("fault_code", PlanFollowed(epoch=1, revision=1, fault_code="no")),
    ("fault_message", PlanFollowed(epoch=1, revision=1, fault_message="but why")),
    (
        "fault_message",
        PlanFollowed(epoch=1, revision=1, fault_code="NETWORK_FAILED", fault_message="x" * 513),
    ),
    ("boot_id", replace(HELLO, boot_id="")),
    ("boot_id", replace(HELLO, boot_id="x" * 65)),
    ("boot_id", replace(HELLO, boot_id="a\nb")),
    ("agent_version", replace(HELLO, agent_version="1\x00")),
    ("highest_epoch", replace(HELLO, highest_epoch=-1)),
    ("highest_epoch", replace(HELLO, highest_epoch=2**62)),
    ("seq", Beat(seq=-1, epoch=1)),
    ("instance_id", replace(STATUS, instance_id="../../etc/passwd")),
    ("instance_id", replace(STATUS, instance_id=ID.upper().replace("8", "A"))),
    ("instance_id", replace(STATUS, instance_id="")),
    ("placement_epoch", replace(STATUS, placement_epoch=0)),
    ("placement_epoch", replace(STATUS, placement_epoch=2**63 - 1)),
    ("generation", replace(STATUS, generation=0)),
    ("generation", replace(STATUS, generation=-5)),
    ("action_seq", replace(STATUS, action_seq=-1)),
    ("state", replace(STATUS, state=HostState.UNSPECIFIED)),
    ("fault_code", replace(FAILED, fault_code="")),
    ("fault_code", replace(FAILED, fault_code="YOUR_FAULT")),
    ("fault_code", replace(STATUS, state=HostState.ABSENT, fault_code="DISK_FULL")),
    ("fault_message", replace(STATUS, fault_message="well")),
    ("fault_message", replace(FAILED, fault_message="x" * 513)),
    ("fault_message", replace(FAILED, fault_message="\x1b[2J")),
    ("steps", replace(STATUS, steps=(STEP,) * 17)),
    ("steps[0].name", replace(STATUS, steps=(replace(STEP, name=-1),))),
    ("steps[0].name", replace(STATUS, steps=(replace(STEP, name=2**31 - 1),))),
    ("steps[1].took_ms", replace(STATUS, steps=(STEP, replace(STEP, took_ms=5001)))),
    ("steps[0].took_ms", replace(STATUS, steps=(replace(STEP, took_ms=-1),))),
    ("steps[0].took_ms", replace(STATUS, steps=(replace(STEP, began_ago_ms=2**40),))),
    ("steps[0].fault_code", replace(STATUS, steps=(replace(STEP, fault_code="<b>look here</b>"),))),
    ("instance_id", replace(RELEASED, instance_id="x")),
    ("placement_epoch", replace(RELEASED, placement_epoch=-1)),
    ("total.ram_mib", replace(REPORT, total=Resources(vcpus=1, ram_mib=-1, disk_gib=1))),
    ("used.vcpus", replace(REPORT, used=Resources(vcpus=-1))),
    ("used.disk_gib", replace(REPORT, used=Resources(disk_gib=2**60))),
    ("running", replace(REPORT, running=-1)),
    ("running", replace(REPORT, running=10**6)),
    ("hypervisor", replace(REPORT, hypervisor="q" * 65)),
    ("health", replace(REPORT, health="")),
    ("health", replace(REPORT, health="ok; rm -rf")),
    ("question", replace(LOG, question=-1)),
    ("data", replace(LOG, data=bytes(102_401))),
    ("fault_code", replace(LOG, fault_code="NOPE")),
    ("step", replace(PROGRESS, step="")),
    ("step", replace(PROGRESS, step="<b>image</b>")),
    ("percent", replace(PROGRESS, percent=101)),
    ("percent", replace(PROGRESS, percent=-1)),
    ("held", Inventory(epoch=1, held=(HELD,) * 10_000)),
    ("held", Inventory(epoch=1, held=(HELD, HELD))),
    ("held[1].instance_id", Inventory(epoch=1, held=(HELD, replace(HELD, instance_id="x")))),
    ("held[1].placement_epoch", Inventory(epoch=1, held=(HELD, replace(HELD, placement_epoch=0)))),
    ("strays", Inventory(epoch=1, strays=("x",) * 2000)),
    ("strays[1]", Inventory(epoch=1, strays=("x", "y" * 129))),
    ("strays[0]", Inventory(epoch=1, strays=("a\tb",))),
)


@pytest.mark.parametrize("message", HONEST, ids=lambda message: type(message).__name__)
def test_what_an_honest_host_says_is_let_in(message: FromHost) -> None:
    assert guard.breach(message) is None


@pytest.mark.parametrize(("field", "message"), BAD)
def test_one_bad_element_refuses_the_message_and_is_named(field: str, message: FromHost) -> None:
    found = guard.breach(message)

    assert found is not None
    assert found.field == field


@pytest.mark.parametrize("code", FaultCode)
def test_every_known_fault_may_be_reported(code: FaultCode) -> None:
    assert guard.breach(replace(FAILED, fault_code=code.value)) is None


@given(st.text(), st.integers(), st.integers())
def test_a_refusal_never_repeats_what_the_host_chose(text: str, number: int, percent: int) -> None:
    forged = replace(PROGRESS, instance_id=f"<{text}>", placement_epoch=number, percent=percent)

    found = guard.breach(forged)

    assert found is not None
    assert str(found) == "instance_id must be a UUID"


def test_a_report_never_shows_more_than_was_approved() -> None:
    lure = replace(
        REPORT,
        total=Resources(vcpus=10**6, ram_mib=10**9, disk_gib=10**9),
        used=Resources(vcpus=10**6, ram_mib=0, disk_gib=10**9),
    )
    capacity = Resources(vcpus=8, ram_mib=8192, disk_gib=100)

    shown = guard.clamped(lure, capacity)

    assert shown.total == capacity
    assert capacity.covers(shown.used)


def test_three_bad_messages_within_a_minute_are_one_too_many_and_over_an_hour_are_not() -> None:
    quick = guard.Strikes().struck(0).struck(30).struck(59)
    slow = guard.Strikes().struck(0).struck(61).struck(122)

    assert quick.is_out
    assert not slow.is_out
    assert not guard.Strikes().struck(0).struck(1).is_out


@given(st.lists(st.floats(min_value=0, max_value=10), max_size=300))
def test_a_host_gets_no_more_than_its_allowance(pauses_s: list[float]) -> None:
    allowance, now_s, spent = guard.Allowance(rate_per_s=2, burst=5, tokens=5), 0.0, 0
    for pause_s in pauses_s:
        now_s += pause_s
        allowance, is_within = allowance.spend(now_s)
        spent += is_within

    assert spent <= 5 + 2 * now_s


def test_a_message_carries_its_epoch_unless_it_opens_or_answers() -> None:
    assert guard.epoch_of(HELLO) is None
    assert guard.epoch_of(LOG) is None
    assert guard.epoch_of(replace(STATUS, epoch=7)) == 7


def test_other_instances_are_not_a_matter_of_form() -> None:
    assert guard.breach(replace(STATUS, instance_id=OTHER)) is None


def test_a_host_cannot_fill_the_log_and_nothing_of_it_goes_uncounted() -> None:
    lines, counts = guard.Lines(), []
    for tenth in range(1000):
        lines, count = lines.one_more(tenth / 10)
        counts.append(count)

    assert counts[:20] == [1] * 20
    assert sum(1 for each in counts if each) <= 20 + 10
    assert sum(counts) + lines.untold == 1000
