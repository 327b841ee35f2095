"""Volumes: disks that outlive servers."""

from __future__ import annotations

from google.protobuf.field_mask_pb2 import FieldMask

from fabric.client.calls import Calls
from fabric.pb.volume.v1 import volume_service_pb2 as pb
from fabric.pb.volume.v1.volume_service_pb2 import Volume
from fabric.pb.volume.v1.volume_service_pb2_grpc import VolumeServiceStub

__all__ = ["Volume", "Volumes"]


class Volumes:
    """VolumeService."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = VolumeServiceStub(calls.channel)

    def get(self, volume: str) -> Volume:
        """One, by id or name."""
        return self._calls.unary(self._stub.GetVolume, pb.GetVolumeRequest(volume=volume)).volume

    def list(self, *, instance_id: str = "") -> list[Volume]:
        """The project's, or those that a server has, by name."""
        pages = self._calls.pages(self._stub.ListVolumes, pb.ListVolumesRequest(instance_id=instance_id))
        return [volume for page in pages for volume in page.volumes]

    def create(self, *, name: str, size_gib: int, image: str = "", directory: str = "") -> Volume:
        """Make one: of an image, by id or name, or empty; in a directory that hosts share, or where it is first used."""
        request = pb.CreateVolumeRequest(
            request_id=self._calls.request_id(),
            volume=Volume(name=name, size_gib=size_gib, image=image, directory=directory),
        )
        return self._calls.unary(self._stub.CreateVolume, request).volume

    def update(self, volume: str, *, name: str = "", size_gib: int = 0) -> Volume:
        """Give it another name, or make it larger; what is left out stays."""
        paths = [word for word, said in (("name", name), ("size_gib", size_gib)) if said]
        request = pb.UpdateVolumeRequest(
            request_id=self._calls.request_id(),
            volume=volume,
            name=name,
            size_gib=size_gib,
            update_mask=FieldMask(paths=paths),
        )
        return self._calls.unary(self._stub.UpdateVolume, request).volume

    def delete(self, volume: str) -> None:
        """Delete one, with its data."""
        request = pb.DeleteVolumeRequest(request_id=self._calls.request_id(), volume=volume)
        self._calls.delete(self._stub.DeleteVolume, request)
