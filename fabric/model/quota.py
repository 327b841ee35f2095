"""Quota: exact, because the counter and what it counts change in one transaction."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What servers and volumes cost: how many, the vCPUs and the memory of those, the size of these."""

    instances: int = 0
    vcpus: int = 0
    ram_mib: int = 0
    volumes: int = 0
    volume_gib: int = 0

    def __add__(self, other: Charge) -> Charge:
        return Charge(
            instances=self.instances + other.instances,
            vcpus=self.vcpus + other.vcpus,
            ram_mib=self.ram_mib + other.ram_mib,
            volumes=self.volumes + other.volumes,
            volume_gib=self.volume_gib + other.volume_gib,
        )

    def __sub__(self, other: Charge) -> Charge:
        return Charge(
            instances=self.instances - other.instances,
            vcpus=self.vcpus - other.vcpus,
            ram_mib=self.ram_mib - other.ram_mib,
            volumes=self.volumes - other.volumes,
            volume_gib=self.volume_gib - other.volume_gib,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkLimits:
    """How many of each a project may have of what its networks are made of; negative: any number. Defaults are the reference's."""

    networks: int = 100
    subnets: int = 100
    ports: int = 500
    routers: int = 10
    floating_ips: int = 50
    security_groups: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """A project's limits and what is charged now. `op_id` names the write that made this value (R12)."""

    project_id: str
    limit: Charge
    used: Charge = field(default_factory=Charge)
    op_id: str = ""
