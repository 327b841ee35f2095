"""The weighers, in the order their numbers are added up (the order matters to the last bit). Settings say how much each counts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fabric.scheduler.core.picture import HostPicture, HostRow, Rows, Weights
from fabric.scheduler.core.weighers.base import Weigher
from fabric.scheduler.core.weighers.instances import InstancesWeigher
from fabric.scheduler.core.weighers.ram import RamWeigher
from fabric.scheduler.core.weighers.vcpu import VcpuWeigher

WEIGHERS: tuple[Weigher, ...] = (RamWeigher(), VcpuWeigher(), InstancesWeigher())


def weigh_all(hosts: HostPicture, rows: Rows, multipliers: Mapping[str, float]) -> Weights:
    """What these rows weigh in all."""
    total = np.zeros(len(rows), np.float64)
    for weigher in WEIGHERS:
        multiplier = multipliers.get(weigher.name, 0.0)
        if multiplier:
            total += multiplier * weigher.weights(hosts, rows)
    return total


def weigh(host: HostRow, multipliers: Mapping[str, float]) -> float:
    """What this host weighs in all."""
    total = 0.0
    for weigher in WEIGHERS:
        multiplier = multipliers.get(weigher.name, 0.0)
        if multiplier:
            total += multiplier * weigher.weight(host)
    return total
