"""Flavors: the menu of sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavor:
    """A virtual hardware template. `properties` may carry `trait:NAME` = `required` | `forbidden` (as Nova's extra specs)."""

    id: str
    name: str
    vcpus: int
    ram_mib: int
    disk_gib: int
    description: str = ""
    properties: Mapping[str, str] = field(default_factory=dict)
    create_time_ms: int = 0
    update_time_ms: int = 0
