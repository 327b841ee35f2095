"""The public API in memory: what the client's and the command line's tests talk to, and what is put behind a real port in integration.

It keeps the API's promises as far as a client can see them: names and ids, request_ids that answer once, errors of `fabric.errors`,
servers that take several looks to come to rest. What a test wants to go wrong it says beforehand.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message

from fabric.errors import (
    AlreadyExists,
    Conflict,
    FabricError,
    InvalidRequest,
    NotFound,
    Reason,
    Unauthenticated,
)
from fabric.pb.compute.v1 import (
    flavor_service_pb2,
    host_service_pb2,
    instance_event_service_pb2,
    instance_service_pb2,
    keypair_service_pb2,
)
from fabric.pb.identity.v1 import project_service_pb2, token_service_pb2, user_service_pb2
from fabric.pb.image.v1 import image_service_pb2
from fabric.pb.network.v1 import (
    floating_ip_service_pb2,
    network_service_pb2,
    port_service_pb2,
    router_service_pb2,
    security_group_service_pb2,
    subnet_service_pb2,
    trace_service_pb2,
)
from fabric.pb.volume.v1 import volume_service_pb2
from fabric.rpc.status import DETAILS_KEY, to_status
from tests.unit.client.network_api import NetworkApi

NOW_S = 1_790_000_000
TOKEN = "fabtoken-good"
PASSWORD = "correct horse"

FILES = (
    flavor_service_pb2,
    floating_ip_service_pb2,
    host_service_pb2,
    image_service_pb2,
    instance_event_service_pb2,
    instance_service_pb2,
    keypair_service_pb2,
    network_service_pb2,
    port_service_pb2,
    project_service_pb2,
    router_service_pb2,
    security_group_service_pb2,
    subnet_service_pb2,
    token_service_pb2,
    trace_service_pb2,
    user_service_pb2,
    volume_service_pb2,
)
METHODS = {
    f"/{service.full_name}/{method.name}": re.sub(r"(?<=[a-z])(?=[A-Z])", "_", method.name).lower()
    if method.name != "WhoAmI"
    else "who_am_i"
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


class Step(NamedTuple):
    """How a server looks at one look."""

    state: str
    task: str = ""
    progress: str = ""
    fault: str = ""


class FakeApi:
    """Everything the API knows."""

    def __init__(self) -> None:
        self.flavors: dict[str, flavor_service_pb2.Flavor] = {}
        self.keypairs: dict[str, keypair_service_pb2.Keypair] = {}
        self.images: dict[str, image_service_pb2.Image] = {}
        self.bytes: dict[str, bytes] = {}
        self.network = NetworkApi()
        self.instances: dict[str, instance_service_pb2.Instance] = {}
        self.steps: dict[str, list[Step]] = {}
        self.hosts: dict[str, host_service_pb2.Host] = {}
        self.projects: dict[str, project_service_pb2.Project] = {}
        self.users: dict[str, user_service_pb2.User] = {}
        self.roles: list[tuple[str, str, str]] = []
        self.events: list[instance_event_service_pb2.InstanceEvent] = []
        self.news: list[list[instance_event_service_pb2.WatchInstancesResponse]] = []
        """What one watch after another tells before it ends."""
        self.console = b"booting\r\nlogin: "
        self.unreachable: list[instance_service_pb2.UnreachableCell] = []
        self.page_size = 2
        self.tokens = {TOKEN}
        self.issued = 0
        self.now_s = NOW_S

        self.plan: dict[str, list[Step]] = {}
        """Method -> how the server looks from then on, at one look after another; the last step stays."""
        self.fail: dict[str, list[FabricError]] = defaultdict(list)
        """Method -> errors for its next calls, which do nothing."""
        self.lose: dict[str, list[FabricError]] = defaultdict(list)
        """Method -> errors for its next calls, which are done all the same: the answer is lost."""
        self.break_after: dict[str, list[int]] = defaultdict(list)
        """Method -> after how many pieces its next streams break."""

        self.seen: list[tuple[str, Any]] = []
        """Every call: method and request."""
        self._answers: dict[str, tuple[Message, Message]] = {}
        self._ids = 0

    def requests(self, method: str) -> list[Any]:
        """The requests of one method."""
        return [request for name, request in self.seen if name == method]

    def call(self, method: str, request: Any, token: str) -> Any:
        """Answer, or raise an error of ours."""
        self.seen.append((method, request))
        if method != "issue_token" and token not in self.tokens:
            raise Unauthenticated("the token is not valid")
        if self.fail[method]:
            raise self.fail[method].pop(0)
        request_id = getattr(request, "request_id", "")
        asked, answer = self._answers.get(request_id, (request, None))
        if asked != request:
            raise Conflict("this request_id had another body", reason=Reason.REQUEST_ID_MISMATCH)
        if answer is None:
            is_network = self.network.has(method)
            answer = self.network.call(method, request) if is_network else getattr(self, method)(request)
            if request_id:
                self._answers[request_id] = (request, answer)
        if self.lose[method]:
            raise self.lose[method].pop(0)
        return answer

    def new_id(self) -> str:
        self._ids += 1
        return f"00000000-0000-4000-8000-{self._ids:012d}"

    # ---------------------------------------------------------------------------------- catalogue

    def get_flavor(self, request: Any) -> Any:
        return flavor_service_pb2.GetFlavorResponse(flavor=_found(self.flavors, request.flavor))

    def list_flavors(self, request: Any) -> Any:
        page, token = self._page(self.flavors.values(), request.page_token)
        return flavor_service_pb2.ListFlavorsResponse(flavors=page, next_page_token=token)

    def create_flavor(self, request: Any) -> Any:
        return flavor_service_pb2.CreateFlavorResponse(flavor=self._add(self.flavors, request.flavor))

    def delete_flavor(self, request: Any) -> Any:
        self.flavors.pop(_found(self.flavors, request.flavor).name)
        return flavor_service_pb2.DeleteFlavorResponse()

    def get_keypair(self, request: Any) -> Any:
        return keypair_service_pb2.GetKeypairResponse(keypair=_found(self.keypairs, request.keypair))

    def list_keypairs(self, request: Any) -> Any:
        page, token = self._page(self.keypairs.values(), request.page_token)
        return keypair_service_pb2.ListKeypairsResponse(keypairs=page, next_page_token=token)

    def create_keypair(self, request: Any) -> Any:
        made = self._add(self.keypairs, request.keypair)
        made.fingerprint = "SHA256:fake"
        return keypair_service_pb2.CreateKeypairResponse(keypair=made)

    def delete_keypair(self, request: Any) -> Any:
        self.keypairs.pop(_found(self.keypairs, request.keypair).name)
        return keypair_service_pb2.DeleteKeypairResponse()

    # ---------------------------------------------------------------------------------- images

    def get_image(self, request: Any) -> Any:
        return image_service_pb2.GetImageResponse(image=_found(self.images, request.image))

    def list_images(self, request: Any) -> Any:
        page, token = self._page(self.images.values(), request.page_token)
        return image_service_pb2.ListImagesResponse(images=page, next_page_token=token)

    def create_image(self, pieces: Any) -> Any:
        parts = list(pieces)
        data = b"".join(part.data for part in parts[1:])
        if hashlib.sha256(data).hexdigest() != parts[0].header.image.sha256:
            raise InvalidRequest(
                "the bytes have another SHA-256", field="image.sha256", reason=Reason.IMAGE_REJECTED
            )
        made = self._add(self.images, parts[0].header.image)
        made.state, made.size_bytes = "ACTIVE", len(data)
        self.bytes[made.id] = data
        return image_service_pb2.CreateImageResponse(image=made)

    def download_image(self, request: Any) -> Iterator[Any]:
        data = self.bytes[_found(self.images, request.image).id][request.offset_bytes :]
        for start in range(0, len(data), 1000):
            yield image_service_pb2.DownloadImageResponse(data=data[start : start + 1000])

    def delete_image(self, request: Any) -> Any:
        self.images.pop(_found(self.images, request.image).name)
        return image_service_pb2.DeleteImageResponse()

    # ---------------------------------------------------------------------------------- servers

    def get_instance(self, request: Any) -> Any:
        found = _found(self.instances, request.instance)
        steps = self.steps.get(found.id, [])
        if steps:
            step = steps.pop(0)
            _look(found, step)
            if step.state == "GONE":
                del self.instances[found.name]
                raise NotFound(f"there is no server {request.instance}")
        return instance_service_pb2.GetInstanceResponse(instance=found)

    def list_instance_events(self, request: Any) -> Any:
        found = _found(self.instances, request.instance)
        return instance_event_service_pb2.ListInstanceEventsResponse(
            events=[each for each in self.events if each.instance_id == found.id]
        )

    def get_instance_event(self, request: Any) -> Any:
        for each in self.events:
            if each.request_id == request.request_id:
                return instance_event_service_pb2.GetInstanceEventResponse(event=each)
        raise NotFound(f"there is no action {request.request_id}")

    def watch_instances(self, _request: Any) -> Any:
        return self.news.pop(0)

    def list_instances(self, request: Any) -> Any:
        page, token = self._page(
            (it for it in self.instances.values() if request.name in {"", it.name}), request.page_token
        )
        return instance_service_pb2.ListInstancesResponse(
            instances=page, next_page_token=token, unreachable_cells=self.unreachable
        )

    def create_instance(self, request: Any) -> Any:
        flavor = _found(self.flavors, request.flavor)
        image = image_service_pb2.Image() if request.volume else _found(self.images, request.image)
        root = [instance_service_pb2.AttachedVolume(volume_id=request.volume, is_root=True)]
        made = instance_service_pb2.Instance(
            name=request.name,
            project_id="p-1",
            spec=instance_service_pb2.InstanceSpec(
                flavor_id=flavor.id,
                flavor_name=flavor.name,
                vcpus=flavor.vcpus,
                ram_mib=flavor.ram_mib,
                disk_gib=flavor.disk_gib,
                image_id=image.id,
                image_name=image.name,
                key_name=request.key_name,
                metadata=request.metadata,
            ),
            status=instance_service_pb2.InstanceStatus(
                state="BUILD", task_state="scheduling", volumes=root if request.volume else []
            ),
        )
        made.create_time.seconds = NOW_S
        self._add(self.instances, made)
        return instance_service_pb2.CreateInstanceResponse(
            instance=self._begin("create_instance", made.name, Step("BUILD", "scheduling"))
        )

    def delete_instance(self, request: Any) -> Any:
        self._begin("delete_instance", request.instance, Step("ACTIVE", "deleting"))
        return instance_service_pb2.DeleteInstanceResponse()

    def start_instance(self, request: Any) -> Any:
        seen = self._begin("start_instance", request.instance, Step("SHUTOFF", "powering_on"))
        return instance_service_pb2.StartInstanceResponse(instance=seen)

    def stop_instance(self, request: Any) -> Any:
        seen = self._begin("stop_instance", request.instance, Step("ACTIVE", "powering_off"))
        return instance_service_pb2.StopInstanceResponse(instance=seen)

    def _same(self, request: Any) -> Any:
        """What changes a record alone: the fake keeps no more of it than the request."""
        found = _found(self.instances, request.instance)
        name = type(request).__name__.removesuffix("Request")
        return getattr(instance_service_pb2, f"{name}Response")(instance=found)

    attach_interface = detach_interface = _same

    def add_instance_security_group(self, request: Any) -> Any:
        _found(self.instances, request.instance)
        return instance_service_pb2.AddInstanceSecurityGroupResponse()

    def remove_instance_security_group(self, request: Any) -> Any:
        _found(self.instances, request.instance)
        return instance_service_pb2.RemoveInstanceSecurityGroupResponse()

    rename_instance = set_instance_metadata = lock_instance = unlock_instance = reset_instance_state = _same

    def reboot_instance(self, request: Any) -> Any:
        seen = self._begin("reboot_instance", request.instance, Step("REBOOT", "rebooting"))
        return instance_service_pb2.RebootInstanceResponse(instance=seen)

    def _moves(self, method: str, request: Any, now: Step) -> Any:
        seen = self._begin(method, request.instance, now)
        name = type(request).__name__.removesuffix("Request")
        return getattr(instance_service_pb2, f"{name}Response")(instance=seen)

    def shelve_instance(self, request: Any) -> Any:
        return self._moves("shelve_instance", request, Step("ACTIVE", "shelving"))

    def offload_instance(self, request: Any) -> Any:
        return self._moves("offload_instance", request, Step("SHELVED", "shelving_offloading"))

    def resize_instance(self, request: Any) -> Any:
        return self._moves("resize_instance", request, Step("RESIZE", "resize_prep"))

    def migrate_instance(self, request: Any) -> Any:
        return self._moves("migrate_instance", request, Step("RESIZE", "resize_prep"))

    def confirm_resize(self, request: Any) -> Any:
        return self._moves("confirm_resize", request, Step("ACTIVE"))

    def revert_resize(self, request: Any) -> Any:
        return self._moves("revert_resize", request, Step("REVERT_RESIZE", "resize_reverting"))

    def get_console_log(self, request: Any) -> Any:
        _found(self.instances, request.instance)
        return instance_service_pb2.GetConsoleLogResponse(output=self.console)

    def put_instance(self, name: str, state: str = "ACTIVE") -> Any:
        """A server that is there already."""
        made = instance_service_pb2.Instance(name=name, project_id="p-1")
        made.spec.image_id = "i-1"
        made.status.addresses.add(network_name="nebula_net", address="10.0.0.5")
        _look(made, Step(state))
        return self._add(self.instances, made)

    def _begin(self, method: str, named: str, now: Step) -> Any:
        found = _found(self.instances, named)
        found.status.generation += 1
        _look(found, now)
        self.steps[found.id] = list(self.plan.get(method, []))
        answer = instance_service_pb2.Instance()
        answer.CopyFrom(found)
        return answer

    # ---------------------------------------------------------------------------------- administration

    def get_host(self, request: Any) -> Any:
        return host_service_pb2.GetHostResponse(host=_found(self.hosts, request.host))

    def list_hosts(self, request: Any) -> Any:
        page, token = self._page(self.hosts.values(), request.page_token)
        return host_service_pb2.ListHostsResponse(
            hosts=page, next_page_token=token, unreachable_cells=["cell2"]
        )

    def create_host(self, request: Any) -> Any:
        self.hosts[request.host.name] = request.host
        return host_service_pb2.CreateHostResponse(host=request.host)

    def update_host(self, request: Any) -> Any:
        self.hosts[request.host.name] = request.host
        return host_service_pb2.UpdateHostResponse(host=request.host)

    def create_volume(self, request: Any) -> Any:
        made = volume_service_pb2.Volume()
        made.CopyFrom(request.volume)
        made.image_name = request.volume.image
        return volume_service_pb2.CreateVolumeResponse(volume=made)

    def get_project(self, request: Any) -> Any:
        return project_service_pb2.GetProjectResponse(project=_found(self.projects, request.project))

    def list_projects(self, request: Any) -> Any:
        page, token = self._page(self.projects.values(), request.page_token)
        return project_service_pb2.ListProjectsResponse(projects=page, next_page_token=token)

    def create_project(self, request: Any) -> Any:
        return project_service_pb2.CreateProjectResponse(project=self._add(self.projects, request.project))

    def update_project(self, request: Any) -> Any:
        found = _found(self.projects, request.project)
        for path in request.update_mask.paths:
            of, field = (found.quota_limit, path[len("quota_limit.") :]) if "." in path else (found, path)
            source = request.quota_limit if "." in path else request
            setattr(of, field, getattr(source, field))
        return project_service_pb2.UpdateProjectResponse(project=found)

    def get_user(self, request: Any) -> Any:
        return user_service_pb2.GetUserResponse(user=_found(self.users, request.user))

    def list_users(self, request: Any) -> Any:
        page, token = self._page(self.users.values(), request.page_token)
        return user_service_pb2.ListUsersResponse(users=page, next_page_token=token)

    def create_user(self, request: Any) -> Any:
        return user_service_pb2.CreateUserResponse(user=self._add(self.users, request.user))

    def grant_role(self, request: Any) -> Any:
        self.roles.append((request.user, request.project, request.role))
        return user_service_pb2.GrantRoleResponse()

    def revoke_role(self, request: Any) -> Any:
        self.roles.remove((request.user, request.project, request.role))
        return user_service_pb2.RevokeRoleResponse()

    def update_user(self, request: Any) -> Any:
        found = _found(self.users, request.user)
        for path in set(request.update_mask.paths) & {"disabled", "system_admin"}:
            setattr(found, path, getattr(request, path))
        return user_service_pb2.UpdateUserResponse(user=found)

    def issue_token(self, request: Any) -> Any:
        if request.password != PASSWORD:
            raise Unauthenticated("the user or the password is wrong")
        self.issued += 1
        token = f"fabtoken-{self.issued}"
        self.tokens.add(token)
        answer = token_service_pb2.IssueTokenResponse(
            token=token, user_id="u-1", project_id="p-1", project_name=request.project, role="admin"
        )
        answer.expire_time.seconds = self.now_s + 3600
        return answer

    def who_am_i(self, request: Any) -> Any:
        return token_service_pb2.WhoAmIResponse(user_id="u-1", user_name="nebula_admin", role="admin")

    def revoke_token(self, request: Any) -> Any:
        self.tokens.clear()
        return token_service_pb2.RevokeTokenResponse()

    # ---------------------------------------------------------------------------------- inside

    def _add(self, place: dict[str, Any], asked: Any) -> Any:
        if asked.name in place:
            raise AlreadyExists(f"the name {asked.name} is taken")
        made = type(asked)()
        made.CopyFrom(asked)
        made.id = self.new_id()
        place[made.name] = made
        return made

    def _page(self, them: Iterable[Any], token: str) -> tuple[list[Any], str]:
        start = int(token or 0)
        everything = list(them)
        end = start + self.page_size
        return everything[start:end], str(end) if end < len(everything) else ""


def _found(place: dict[str, Any], named: str) -> Any:
    for name, it in place.items():
        if named in {name, getattr(it, "id", name)}:
            return it
    raise NotFound(f"there is no {named}")


def _look(found: Any, step: Step) -> None:
    found.status.state, found.status.task_state, found.status.progress = step.state, step.task, step.progress
    found.status.ClearField("fault")
    if step.fault:
        found.status.fault.code = step.fault
        found.status.fault.message = f"it was {step.fault}"


# ------------------------------------------------------------------------------------------ a channel without a wire


class Broken(grpc.RpcError, grpc.Call):
    """What a stub raises: both classes in one, as gRPC's own has it."""

    def __init__(self, error: FabricError) -> None:
        super().__init__()
        self._status = to_status(error)

    def code(self) -> grpc.StatusCode:
        return next(code for code in grpc.StatusCode if code.value[0] == self._status.code)

    def details(self) -> str:
        return self._status.message

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:  # type: ignore[override]  # as gRPC has it, not as its stubs
        return ((DETAILS_KEY, self._status.SerializeToString()),)

    def initial_metadata(self) -> tuple[()]:
        return ()

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> float:
        return 0.0

    def cancel(self) -> bool:
        return False

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return False


class Streaming:
    """A call whose answers stream, as gRPC's: to be read, or given up."""

    def __init__(self, answers: Iterator[Any]) -> None:
        self._answers = answers

    def __iter__(self) -> Iterator[Any]:
        return self._answers

    def __next__(self) -> Any:
        return next(self._answers)

    def cancel(self) -> None:
        self._answers.close()  # type: ignore[attr-defined]  # it is a generator


class FakeChannel:
    """A channel whose other end is a FakeApi in this process. Messages are serialized, as on a wire."""

    def __init__(self, api: FakeApi) -> None:
        self.api = api
        self.timeouts: list[float] = []
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True

    def _callable(
        self,
        path: str,
        serialize: Callable[[Any], bytes],
        parse: Callable[[bytes], Any],
        answer: Callable[..., Any],
    ) -> Callable[..., Any]:
        def call(request: Any, *, timeout: float, metadata: tuple[tuple[str, str], ...]) -> Any:
            self.timeouts.append(timeout)
            token = dict(metadata).get("authorization", "").removeprefix("Bearer ")
            return answer(METHODS[path], request, token, serialize, parse)

        return call

    def unary_unary(self, path: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        def answer(method: str, request: Any, token: str, serialize: Any, parse: Any) -> Any:
            copy = type(request).FromString(serialize(request))
            try:
                return parse(self.api.call(method, copy, token).SerializeToString())
            except FabricError as error:
                raise Broken(error) from None

        return self._callable(path, request_serializer, response_deserializer, answer)

    def stream_unary(self, path: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        def answer(method: str, requests: Any, token: str, serialize: Any, parse: Any) -> Any:
            try:
                pieces = [type(piece).FromString(serialize(piece)) for piece in requests]
            except OSError:
                raise Broken(FabricError("exception iterating requests")) from None
            try:
                return parse(self.api.call(method, pieces, token).SerializeToString())
            except FabricError as error:
                raise Broken(error) from None

        return self._callable(path, request_serializer, response_deserializer, answer)

    def unary_stream(self, path: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        def answer(method: str, request: Any, token: str, serialize: Any, parse: Any) -> Iterator[Any]:
            copy = type(request).FromString(serialize(request))
            try:
                for number, piece in enumerate(self.api.call(method, copy, token)):
                    if self.api.break_after[method] and number >= self.api.break_after[method][0]:
                        self.api.break_after[method].pop(0)
                        raise self.api.fail[f"{method}.break"].pop(0)
                    yield parse(piece.SerializeToString())
            except FabricError as error:
                raise Broken(error) from None

        def stream(*call: Any) -> Streaming:
            return Streaming(answer(*call))

        return self._callable(path, request_serializer, response_deserializer, stream)
