"""Which of a host's measurements are worth a write: a report costs the store one, and changes every minute on every host."""

from __future__ import annotations

from typing import Final

from fabric.model.host import HostReport, Resources
from fabric.model.session import Report

LEAST_PAUSE_S: Final = 10.0
"""Between two writes of one host's report, at least."""

NOTABLE: Final = 0.05
"""A change of use by this share of the total is material."""


def report_of(report: Report, host: str, *, now_ms: int) -> HostReport:
    """The report as it is stored."""
    return HostReport(
        host=host,
        total=report.total,
        used=report.used,
        running=report.running,
        hypervisor=report.hypervisor,
        hypervisor_version=report.hypervisor_version,
        agent_version=report.agent_version,
        health=report.health,
        directories=report.directories,
        report_time_ms=now_ms,
    )


def is_material(stored: HostReport | None, new: HostReport) -> bool:
    """Whether people would want to know: another machine, other health, guests come or gone, or use notably changed."""
    if stored is None:
        return True
    return _identity(stored) != _identity(new) or any(
        abs(before - after) > NOTABLE * max(total, 1)
        for before, after, total in zip(
            _amounts(stored.used), _amounts(new.used), _amounts(new.total), strict=True
        )
    )


def _identity(report: HostReport) -> tuple[object, ...]:
    return (
        report.total,
        report.running,
        report.hypervisor,
        report.hypervisor_version,
        report.agent_version,
        report.health,
        report.directories,
    )


def _amounts(resources: Resources) -> tuple[int, int, int]:
    return (resources.vcpus, resources.ram_mib, resources.disk_gib)
