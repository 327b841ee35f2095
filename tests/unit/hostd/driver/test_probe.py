from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hostd.driver.libvirt.probe import Evidence, cpu_flags, gather, judge

GOOD = Evidence(
    architecture="x86_64",
    offered=True,
    device_usable=True,
    cpu_flags=frozenset({"sse2", "svm"}),
    modules=frozenset({"kvm", "kvm_amd"}),
)


def test_kvm_is_used_where_everything_agrees() -> None:
    assert judge(GOOD).accelerator == "kvm"
    assert judge(replace(GOOD, architecture="aarch64", cpu_flags=frozenset())).accelerator == "kvm"


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (replace(GOOD, offered=False), "offers no KVM"),
        (replace(GOOD, device_usable=False), "cannot be opened"),
        (replace(GOOD, cpu_flags=frozenset({"sse2"})), "neither vmx nor svm"),
        (replace(GOOD, modules=frozenset({"kvm", "kvm_pvm"})), "paravirtual"),
    ],
)
def test_any_doubt_means_emulation_and_says_why(evidence: Evidence, reason: str) -> None:
    verdict = judge(evidence)

    assert verdict.accelerator == "qemu"
    assert reason in verdict.reason


def test_the_setting_wins_over_all_evidence() -> None:
    assert judge(GOOD, "qemu").accelerator == "qemu"
    assert judge(replace(GOOD, offered=False), "kvm").accelerator == "kvm"
    with pytest.raises(ValueError, match="auto, kvm or qemu"):
        judge(GOOD, "xen")


def test_the_machine_is_looked_at_through_its_files(tmp_path: Path) -> None:
    cpuinfo, modules = tmp_path / "cpuinfo", tmp_path / "module"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu svm\nprocessor\t: 1\nflags\t\t: fpu\n")
    (modules / "kvm_amd").mkdir(parents=True)

    seen = gather(
        architecture="x86_64", offered=True, device=tmp_path / "kvm", cpuinfo=cpuinfo, modules=modules
    )

    assert seen.cpu_flags == {"fpu", "svm"}
    assert seen.modules == {"kvm_amd"}
    assert not seen.device_usable
    assert cpu_flags("no flags here") == frozenset()
