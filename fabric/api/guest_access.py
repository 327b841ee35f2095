"""What is asked of a running guest through its host and answered at once: its counters, and a password set inside it."""

from __future__ import annotations

from typing import Protocol

from fabric.api.catalogue import Catalogue
from fabric.api.cells import Cells
from fabric.api.placed import Placed, Whereabouts, find_placed
from fabric.errors import WrongState
from fabric.model.event import Outcome
from fabric.model.identity import Principal
from fabric.model.instance import Instance
from fabric.model.session import Diagnostics
from fabric.model.states import PowerState, TaskState
from fabric.pb.compute.v1 import instance_service_pb2 as pb

DEFAULT_USER = "root"


class GuestConductors(Protocol):
    """The conductors, as far as guests are asked through them."""

    async def diagnostics(self, where: Whereabouts) -> Diagnostics:
        """A guest's counters. Raises WrongState where it is off, Unavailable."""
        ...

    async def set_password(self, where: Whereabouts, *, request_id: str, user: str, password: str) -> None:
        """Set a password inside a guest. Raises WrongState where it has no agent, or its agent refuses; Unavailable."""
        ...


class GuestAccess:
    """See the module. It keeps nothing, least of all passwords."""

    def __init__(self, catalogue: Catalogue, cells: Cells, conductors: GuestConductors) -> None:
        self._catalogue = catalogue
        self._cells = cells
        self._conductors = conductors

    async def diagnostics(self, word: str, principal: Principal) -> pb.InstanceDiagnostics:
        """A running server's counters. Raises NotFound, WrongState, Unavailable."""
        placed = await self._find(word, principal, what="counters")
        return _message(await self._conductors.diagnostics(placed.where))

    async def set_password(
        self, instance_id: str, principal: Principal, *, request_id: str, user: str, password: str
    ) -> None:
        """Do what the task of this request is for. Done before, under the same request, it is not done again.

        Raises WrongState where it cannot be done, or could not when it was asked for first; Unavailable.
        """
        placed = await self._find(instance_id, principal, what="agent")
        record = placed.record
        if record.task is TaskState.UPDATING_PASSWORD and record.task_request_id == request_id:
            await self._conductors.set_password(
                placed.where, request_id=request_id, user=user or DEFAULT_USER, password=password
            )
            return
        failed = _failed(record, request_id)
        if failed:
            raise WrongState(f"the password was not set: {failed}", instance=record.id)

    async def _find(self, word: str, principal: Principal, *, what: str) -> Placed:
        return await find_placed(self._catalogue, self._cells, word, principal, what=what)


def _failed(record: Instance, request_id: str) -> str:
    """Why the request has failed, where that is what became of it."""
    event = record.event
    if event is None or event.request_id != request_id or event.outcome is not Outcome.FAILED:
        return ""
    return event.message


def _message(found: Diagnostics) -> pb.InstanceDiagnostics:
    return pb.InstanceDiagnostics(
        power_state=PowerState(found.power).name.lower(),
        uptime_s=found.uptime_s,
        vcpu_time_ms=found.vcpu_time_ms,
        memory_kib=found.memory_kib,
        memory_resident_kib=found.memory_resident_kib,
        memory_unused_kib=found.memory_unused_kib,
        disks=[
            pb.DiskDiagnostics(
                device=each.device,
                read_bytes=each.read_bytes,
                read_requests=each.read_requests,
                write_bytes=each.write_bytes,
                write_requests=each.write_requests,
            )
            for each in found.disks
        ],
        interfaces=[
            pb.InterfaceDiagnostics(
                mac=each.mac,
                rx_bytes=each.rx_bytes,
                rx_packets=each.rx_packets,
                rx_errors=each.rx_errors,
                rx_drops=each.rx_drops,
                tx_bytes=each.tx_bytes,
                tx_packets=each.tx_packets,
                tx_errors=each.tx_errors,
                tx_drops=each.tx_drops,
            )
            for each in found.interfaces
        ],
    )
