"""The filters, in the order they run, which is the order in which a host's refusal is counted.

First what no smaller request would change, so that "short of memory" is only said of hosts that could have taken the server.
To add one: docs/howto/add-a-filter.md.
"""

from __future__ import annotations

from fabric.scheduler.core.filters.address import AddressFilter
from fabric.scheduler.core.filters.asked_host import AskedHostFilter
from fabric.scheduler.core.filters.base import Filter
from fabric.scheduler.core.filters.cell_choice import CellChoiceFilter
from fabric.scheduler.core.filters.cell_enabled import EnabledCellFilter
from fabric.scheduler.core.filters.cell_reachable import ReachableCellFilter
from fabric.scheduler.core.filters.compute import ComputeFilter
from fabric.scheduler.core.filters.disk import DiskFilter
from fabric.scheduler.core.filters.image_properties import ImagePropertiesFilter
from fabric.scheduler.core.filters.other_host import OtherHostFilter
from fabric.scheduler.core.filters.ram import RamFilter
from fabric.scheduler.core.filters.tunnel import TunnelFilter
from fabric.scheduler.core.filters.vcpu import VcpuFilter
from fabric.scheduler.core.filters.zone import AvailabilityZoneFilter

FILTERS: tuple[Filter, ...] = (
    ReachableCellFilter(),
    EnabledCellFilter(),
    AskedHostFilter(),
    OtherHostFilter(),
    ComputeFilter(),
    AvailabilityZoneFilter(),
    ImagePropertiesFilter(),
    TunnelFilter(),
    RamFilter(),
    VcpuFilter(),
    DiskFilter(),
    AddressFilter(),
    # Last: of another cell's hosts it is then known whether they would have taken the server.
    CellChoiceFilter(),
)
