"""Whether KVM really works here, from evidence that was seen to tell the truth.

libvirt offering it, a readable /dev/kvm and even a tiny guest in real mode all say yes on machines where a real kernel then
hangs without a word (nested in a hypervisor that shows a paravirtual KVM). The processor's own flags and the loaded module do not.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MODULES: Final = frozenset({"kvm_intel", "kvm_amd"})
_FLAGS: Final = frozenset({"vmx", "svm"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the machine shows."""

    architecture: str
    offered: bool
    device_usable: bool
    cpu_flags: frozenset[str]
    modules: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`kvm` or `qemu`, and why."""

    accelerator: str
    reason: str


def judge(evidence: Evidence, override: str = "auto") -> Verdict:
    """Choose the accelerator. `override` is a setting: `kvm` or `qemu` says it, `auto` leaves it to the evidence."""
    if override in {"kvm", "qemu"}:
        return Verdict(accelerator=override, reason="the setting says so")
    if override != "auto":
        raise ValueError(f"accelerator must be auto, kvm or qemu, not {override!r}")
    if not evidence.offered:
        return Verdict(accelerator="qemu", reason="libvirt offers no KVM")
    if not evidence.device_usable:
        return Verdict(accelerator="qemu", reason="/dev/kvm cannot be opened")
    if evidence.architecture == "x86_64":
        if not evidence.cpu_flags & _FLAGS:
            return Verdict(accelerator="qemu", reason="the CPU shows neither vmx nor svm")
        if "kvm_pvm" in evidence.modules and not evidence.modules & _MODULES:
            return Verdict(accelerator="qemu", reason="only a paravirtual KVM is loaded")
    return Verdict(accelerator="kvm", reason="libvirt, /dev/kvm and the CPU agree")


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """The first processor's flags, from /proc/cpuinfo."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


def gather(
    *,
    architecture: str,
    offered: bool,
    device: Path = Path("/dev/kvm"),
    cpuinfo: Path = Path("/proc/cpuinfo"),
    modules: Path = Path("/sys/module"),
) -> Evidence:
    """Look at the machine."""
    return Evidence(
        architecture=architecture,
        offered=offered,
        device_usable=os.access(device, os.R_OK | os.W_OK),
        cpu_flags=cpu_flags(cpuinfo.read_text(encoding="utf-8", errors="replace")),
        modules=frozenset(each.name for each in modules.iterdir()) if modules.is_dir() else frozenset(),
    )
