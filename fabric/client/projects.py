"""Projects: what owns servers and quota."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.field_mask_pb2 import FieldMask

from fabric.client.calls import Calls
from fabric.pb.identity.v1 import project_service_pb2 as pb
from fabric.pb.identity.v1.project_service_pb2 import Project, QuotaAmounts
from fabric.pb.identity.v1.project_service_pb2_grpc import ProjectServiceStub

__all__ = ["Project", "Projects", "Quota"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """A project's limits. Those of volumes are the system's where they are left out, or 0."""

    instances: int
    vcpus: int
    ram_mib: int
    volumes: int = 0
    volume_gib: int = 0


class Projects:
    """ProjectService."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = ProjectServiceStub(calls.channel)

    def get(self, project: str) -> Project:
        """One, by id or name."""
        return self._calls.unary(self._stub.GetProject, pb.GetProjectRequest(project=project)).project

    def list(self) -> list[Project]:
        """All, by name."""
        pages = self._calls.pages(self._stub.ListProjects, pb.ListProjectsRequest())
        return [project for page in pages for project in page.projects]

    def create(self, *, name: str, description: str = "", quota: Quota | None = None) -> Project:
        """Make one; without `quota` it gets the system's default."""
        limit = (
            None
            if quota is None
            else QuotaAmounts(
                instances=quota.instances,
                vcpus=quota.vcpus,
                ram_mib=quota.ram_mib,
                volumes=quota.volumes,
                volume_gib=quota.volume_gib,
            )
        )
        request = pb.CreateProjectRequest(
            request_id=self._calls.request_id(),
            project=Project(name=name, description=description, quota_limit=limit),
        )
        return self._calls.unary(self._stub.CreateProject, request).project

    def update(
        self, project: str, *, description: str | None = None, limits: Mapping[str, int] | None = None
    ) -> Project:
        """Change what is given. `limits` are those of `Quota`, by name: of volumes too, 0 is none at all."""
        limits = limits or {}
        paths = [f"quota_limit.{name}" for name in limits] + ["description"] * (description is not None)
        request = pb.UpdateProjectRequest(
            request_id=self._calls.request_id(),
            project=project,
            update_mask=FieldMask(paths=paths),
            description=description or "",
            quota_limit=QuotaAmounts(**limits),
        )
        return self._calls.unary(self._stub.UpdateProject, request).project
