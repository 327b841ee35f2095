"""Instances: the servers people run, and waiting for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fabric.client.calls import Calls
from fabric.client.waiting import (
    Pace,
    Verdict,
    generation_of_delete,
    verdict,
    verdict_of_delete,
    verdict_of_devices,
)
from fabric.errors import NotFound, Reason, Unavailable
from fabric.pb.compute.v1 import instance_service_pb2 as pb
from fabric.pb.compute.v1.instance_service_pb2 import (
    Instance,
    InstanceDiagnostics,
    RequestedAddress,
    RequestedNetwork,
    UnreachableCell,
)
from fabric.pb.compute.v1.instance_service_pb2_grpc import InstanceServiceStub
from fabric.rpc.method import methods

__all__ = [
    "Instance",
    "InstanceDiagnostics",
    "InstanceList",
    "Instances",
    "OnChange",
    "RequestedAddress",
    "RequestedNetwork",
    "UnreachableCell",
]

_METHODS = {
    method.action: method
    for method in methods(pb.DESCRIPTOR.services_by_name["InstanceService"])
    if method.action
}

OnChange = Callable[[Instance], None]
"""Told of a server whenever it looks different from before."""

VISIBLE_AFTER_S = 5.0
"""A server just made may not be found by another API server whose picture is older; after this long it is really not there."""

PASSWORD_ATTEMPT_S = 30.0
"""For one attempt to set a password, which a guest's agent is given 20 s for: an answer that takes so long is not lost."""


@dataclass(frozen=True, slots=True)
class InstanceList:
    """Servers, newest first, and the cells whose servers are shown as UNKNOWN."""

    instances: Sequence[Instance]
    unreachable_cells: Sequence[UnreachableCell]


class Instances:
    """InstanceService."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = InstanceServiceStub(calls.channel)

    def get(self, instance: str) -> Instance:
        """One, by id or name."""
        return self._calls.unary(self._stub.GetInstance, pb.GetInstanceRequest(instance=instance)).instance

    def list(self, *, all_projects: bool = False, name: str = "", state: str = "") -> InstanceList:
        """The project's, or with `all_projects` everybody's."""
        request = pb.ListInstancesRequest(all_projects=all_projects, name=name, state=state)
        pages = list(self._calls.pages(self._stub.ListInstances, request))
        cells = {cell.cell: cell for page in pages for cell in page.unreachable_cells}
        return InstanceList(
            [instance for page in pages for instance in page.instances],
            [cells[name] for name in sorted(cells)],
        )

    def create(
        self,
        *,
        name: str,
        flavor: str,
        image: str = "",
        volume: str = "",
        boot_volume_gib: int = 0,
        delete_volume_on_termination: bool = False,
        network: str = "",
        networks: Sequence[RequestedNetwork] = (),
        security_groups: Sequence[str] = (),
        key_name: str = "",
        availability_zone: str = "",
        user_data: bytes = b"",
        metadata: Mapping[str, str] | None = None,
        config_drive: bool = True,
        validate_only: bool = False,
    ) -> Instance:
        """Ask for a server; it is durable, and in BUILD, when this returns. With `validate_only` nothing is made: the request is checked,
        as far as that can be done without choosing a host.

        It boots from an `image`, from a `volume`, or, with `boot_volume_gib`, from a new volume of so many GiB that is made of the image.
        It is attached to `network`, or to `networks`, or else to the hosts' own network; `security_groups` are for the ports that are made
        for it.
        """
        request = pb.CreateInstanceRequest(
            request_id=self._calls.request_id(),
            name=name,
            flavor=flavor,
            image=image,
            volume=volume,
            boot_volume_gib=boot_volume_gib,
            delete_volume_on_termination=delete_volume_on_termination,
            network=network,
            networks=networks,
            security_groups=security_groups,
            key_name=key_name,
            availability_zone=availability_zone,
            user_data=user_data,
            metadata=metadata or {},
            no_config_drive=not config_drive,
            validate_only=validate_only,
        )
        return self._calls.unary(self._stub.CreateInstance, request).instance

    def delete(self, instance: str, *, force: bool = False) -> None:
        """Ask for its end, by id or name; `wait_until_gone` waits for it.

        A fabric may keep it for a while, to be restored; with `force` it is gone at once.
        """
        request = pb.DeleteInstanceRequest(
            request_id=self._calls.request_id(), instance=instance, force=force
        )
        self._calls.delete(self._stub.DeleteInstance, request)

    def act(self, action: str, instance: str, **fields: object) -> Instance:
        """Ask for an action by the word that the lifecycle table has for it: `start`, `pause`, …; `fields` are its request's own."""
        method = _METHODS[action]
        request = method.request(request_id=self._calls.request_id(), instance=instance, **fields)
        answer: Instance = self._calls.unary(getattr(self._stub, method.name), request).instance
        return answer

    def attach_interface(
        self, instance: str, *, network: str = "", port: str = "", addresses: Sequence[str] = ()
    ) -> Instance:
        """Plug an interface in: on a network, with these addresses or any, or at a port that is nobody's."""
        asked = [RequestedAddress(ip_address=each) for each in addresses]
        return self.act("attach-interface", instance, network=network, port=port, fixed_ips=asked)

    def add_security_group(self, instance: str, group: str) -> None:
        """Put all of its ports on tenant networks into a group."""
        request = pb.AddInstanceSecurityGroupRequest(
            request_id=self._calls.request_id(), instance=instance, security_group=group
        )
        self._calls.unary(self._stub.AddInstanceSecurityGroup, request)

    def remove_security_group(self, instance: str, group: str) -> None:
        """Take all of its ports out of a group."""
        request = pb.RemoveInstanceSecurityGroupRequest(
            request_id=self._calls.request_id(), instance=instance, security_group=group
        )
        self._calls.unary(self._stub.RemoveInstanceSecurityGroup, request)

    def create_image(
        self, instance: str, *, name: str, properties: Mapping[str, str] | None = None
    ) -> tuple[Instance, str]:
        """Make an image of its disk; the server, and the id of the image that waits for its bytes."""
        request = pb.CreateInstanceImageRequest(
            request_id=self._calls.request_id(), instance=instance, name=name, properties=properties or {}
        )
        answer = self._calls.unary(self._stub.CreateInstanceImage, request)
        return answer.instance, answer.image_id

    def create_backup(
        self, instance: str, *, name: str, backup_type: str, rotation: int
    ) -> tuple[Instance, str]:
        """The same as one of `rotation` backups of this kind: once it is there, the oldest beyond that go."""
        request = pb.CreateInstanceBackupRequest(
            request_id=self._calls.request_id(),
            instance=instance,
            name=name,
            backup_type=backup_type,
            rotation=rotation,
        )
        answer = self._calls.unary(self._stub.CreateInstanceBackup, request)
        return answer.instance, answer.image_id

    def start(self, instance: str) -> Instance:
        """Power it on."""
        return self.act("start", instance)

    def stop(self, instance: str, *, timeout_s: int = 0) -> Instance:
        """Shut it down; after `timeout_s` (0: the server's default) its power is cut."""
        return self.act("stop", instance, timeout_s=timeout_s)

    def reboot(self, instance: str, *, hard: bool = False) -> Instance:
        """Reboot it."""
        request = pb.RebootInstanceRequest(
            request_id=self._calls.request_id(),
            instance=instance,
            kind=pb.REBOOT_KIND_HARD if hard else pb.REBOOT_KIND_SOFT,
        )
        return self._calls.unary(self._stub.RebootInstance, request).instance

    def reset_state(self, instance: str, state: str) -> Instance:
        """Say that it is `active` or in `error`, and that nothing is in flight. For system administrators."""
        onto = {"active": pb.RESET_TO_ACTIVE, "error": pb.RESET_TO_ERROR}[state]
        return self.act("reset-state", instance, state=onto)

    def diagnostics(self, instance: str) -> InstanceDiagnostics:
        """What it has used of its CPUs, memory, disks and interfaces."""
        request = pb.GetInstanceDiagnosticsRequest(instance=instance)
        return self._calls.unary(self._stub.GetInstanceDiagnostics, request).diagnostics

    def change_password(self, instance: str, password: str, *, user: str = "") -> Instance:
        """Set a password inside it, of `root` where no user is named. Returns when it is set."""
        request = pb.ChangePasswordRequest(
            request_id=self._calls.request_id(), instance=instance, user=user, password=password
        )
        return self._calls.unary(
            self._stub.ChangePassword, request, attempt_timeout_s=PASSWORD_ATTEMPT_S
        ).instance

    def console_log(self, instance: str, *, lines: int = 0) -> bytes:
        """The end of what it wrote to its serial console, as the guest wrote it: do not show it to a terminal unfiltered."""
        request = pb.GetConsoleLogRequest(instance=instance, lines=lines)
        return self._calls.unary(self._stub.GetConsoleLog, request).output

    def wait_for(
        self,
        instance: Instance,
        state: str,
        *,
        timeout_s: float,
        on_change: OnChange | None = None,
        pace: Pace | None = None,
    ) -> Instance:
        """Wait until what is under way has ended.

        Args:
            instance: as the action's answer has it; its generation tells older reads from newer ones.
            state: where it should end: ACTIVE, SHUTOFF.
            timeout_s: how long to wait.
            on_change: told of every change of status, task, progress and fault.
            pace: how often to look.

        Returns:
            The server where it came to rest: in `state`, or elsewhere with its `status.fault` saying why.

        Raises:
            Unavailable: it is still under way after `timeout_s`, or the API was away for all that time.
            NotFound: somebody has deleted it meanwhile.
        """
        found = self._watch(
            instance,
            lambda seen: verdict(seen, state=state, generation=instance.status.generation),
            timeout_s=timeout_s,
            on_change=on_change,
            pace=pace or Pace(),
            visible_after_s=VISIBLE_AFTER_S,
        )
        if found is None:
            raise NotFound(f"server {instance.name} ({instance.id}) has been deleted")
        return found

    def wait_until_told(
        self, begun: Instance, *, timeout_s: float, on_change: OnChange | None = None
    ) -> Instance:
        """Wait until the server's host has said of the answer's generation, or a later one, that it is so, or why it is not.

        Raises Unavailable: it has not after `timeout_s`; NotFound: somebody has deleted it meanwhile.
        """
        found = self._watch(
            begun,
            lambda seen: verdict_of_devices(seen, generation=begun.status.generation),
            timeout_s=timeout_s,
            on_change=on_change,
            pace=Pace(),
            visible_after_s=VISIBLE_AFTER_S,
        )
        if found is None:
            raise NotFound(f"server {begun.name} ({begun.id}) has been deleted")
        return found

    def wait_until_gone(
        self,
        before: Instance,
        *,
        timeout_s: float,
        force: bool = False,
        on_change: OnChange | None = None,
        pace: Pace | None = None,
    ) -> Instance | None:
        """Wait until a delete has ended.

        Args:
            before: the server as it was read before it was to be deleted.
            timeout_s: how long to wait.
            force: as the delete was asked for.
            on_change: told of every change.
            pace: how often to look.

        Returns:
            None when it is gone, or kept to be restored; the server, with its fault, when it could not be deleted.

        Raises:
            Unavailable: it is still there after `timeout_s`.
        """
        generation = generation_of_delete(before, force=force)
        found = self._watch(
            before,
            lambda seen: verdict_of_delete(seen, generation=generation),
            timeout_s=timeout_s,
            on_change=on_change,
            pace=pace or Pace(),
            visible_after_s=0.0,
        )
        return None if found is None or found.status.state in {"DELETED", "SOFT_DELETED"} else found

    def _watch(
        self,
        instance: Instance,
        judge: Callable[[Instance], Verdict],
        *,
        timeout_s: float,
        on_change: OnChange | None,
        pace: Pace,
        visible_after_s: float,
    ) -> Instance | None:
        """Look until the verdict is there; None when the server is not. An API that is away is waited for too."""
        world = self._calls.world
        begun_s = world.clock.boot_s()
        interval_s = pace.first_s
        shown: tuple[str, ...] = ()
        away: Unavailable | None = None
        while True:
            try:
                seen = self.get(instance.id)
            except NotFound:
                if world.clock.boot_s() - begun_s >= visible_after_s:
                    return None
            except Unavailable as error:
                away = error
            else:
                away = None
                look = _look(seen)
                if on_change is not None and look != shown:
                    on_change(seen)
                shown = look
                if judge(seen) is not Verdict.GOING:
                    return seen
            left_s = begun_s + timeout_s - world.clock.boot_s()
            if left_s <= 0:
                raise away or Unavailable(
                    f"server {instance.name} ({instance.id}) is still {' '.join(filter(None, shown)) or 'not visible'}"
                    f" after {timeout_s:.0f} s; it goes on without us",
                    reason=Reason.DEADLINE_EXCEEDED,
                )
            world.sleep(min(interval_s, left_s))
            interval_s = pace.after(interval_s)


def _look(seen: Instance) -> tuple[str, ...]:
    """What people see of a server while they wait."""
    status = seen.status
    return status.state, status.task_state, status.progress, status.fault.message
