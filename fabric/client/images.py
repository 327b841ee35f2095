"""Images, and their bytes up and down."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import grpc

from fabric.client.calls import Calls
from fabric.client.transfer import Passing, Progress, part_path, read_into, sha256_of
from fabric.errors import InvalidRequest, Reason, Unavailable
from fabric.pb.image.v1 import image_service_pb2 as pb
from fabric.pb.image.v1.image_service_pb2 import Image
from fabric.pb.image.v1.image_service_pb2_grpc import ImageServiceStub

__all__ = ["FORMATS", "Image", "Images", "format_name", "visibility_name"]

TRANSFER_TIMEOUT_S = 6 * 3600.0
"""For the bytes of one image, all attempts together."""

FORMATS: Mapping[str, pb.ImageFormat.ValueType] = {
    "raw": pb.IMAGE_FORMAT_RAW,
    "qcow2": pb.IMAGE_FORMAT_QCOW2,
    "kernel": pb.IMAGE_FORMAT_KERNEL,
    "ramdisk": pb.IMAGE_FORMAT_RAMDISK,
}
"""What people call the formats."""


def format_name(image: Image) -> str:
    """What people call an image's format."""
    return pb.ImageFormat.Name(image.format).removeprefix("IMAGE_FORMAT_").lower()


def visibility_name(image: Image) -> str:
    """`public` or `private`."""
    return "public" if image.visibility == pb.VISIBILITY_PUBLIC else "private"


class Images:
    """ImageService."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = ImageServiceStub(calls.channel)

    def get(self, image: str) -> Image:
        """One, by id or name."""
        return self._calls.unary(self._stub.GetImage, pb.GetImageRequest(image=image)).image

    def list(self) -> list[Image]:
        """The project's and the public ones, by name."""
        pages = self._calls.pages(self._stub.ListImages, pb.ListImagesRequest())
        return [image for page in pages for image in page.images]

    def create(
        self,
        *,
        name: str,
        file: Path,
        disk_format: str,
        public: bool = False,
        min_disk_gib: int = 0,
        min_ram_mib: int = 0,
        kernel_id: str = "",
        ramdisk_id: str = "",
        properties: Mapping[str, str] | None = None,
        sha256: str = "",
        progress: Progress | None = None,
    ) -> Image:
        """Upload a file.

        It is read twice: its SHA-256 goes ahead of its bytes. A server cannot always tell an upload that was broken off from one that has
        ended, and half an image must not become one.

        Args:
            name: the image's name.
            file: what to upload. A broken upload starts anew, under the same request_id.
            disk_format: a key of FORMATS.
            public: for everybody; system administrators only.
            min_disk_gib: the least root disk that fits.
            min_ram_mib: the least memory that it boots in.
            kernel_id: the image it boots by, if not by itself.
            ramdisk_id: and that one's initial ramdisk.
            properties: hw_firmware_type, trait:NAME, …
            sha256: what the bytes must have, if that is known from elsewhere.
            progress: told of every piece.

        Raises:
            InvalidRequest: the file cannot be read, is not what it must be, or is refused.
        """
        found = sha256_of(file)
        if sha256 not in {"", found}:
            raise InvalidRequest(f"{file} has SHA-256 {found}, not {sha256}", field="sha256")
        header = pb.ImageHeader(
            request_id=self._calls.request_id(),
            image=Image(
                name=name,
                format=FORMATS[disk_format],
                visibility=pb.VISIBILITY_PUBLIC if public else pb.VISIBILITY_PRIVATE,
                min_disk_gib=min_disk_gib,
                min_ram_mib=min_ram_mib,
                kernel_id=kernel_id,
                ramdisk_id=ramdisk_id,
                properties=properties or {},
                sha256=found,
            ),
        )

        def once(left_s: float) -> Image:
            passing = Passing(file, progress)
            try:
                return self._stub.CreateImage(
                    _upload(header, passing), timeout=left_s, metadata=self._calls.metadata()
                ).image
            except grpc.RpcError:
                if passing.failure is not None:
                    reason = passing.failure.strerror
                    raise InvalidRequest(f"{file} cannot be read: {reason}", field="file") from None
                raise

        return self._calls.attempt(once, timeout_s=TRANSFER_TIMEOUT_S, attempt_timeout_s=TRANSFER_TIMEOUT_S)

    def save(self, image: str, target: Path, *, progress: Progress | None = None) -> Image:
        """Download an image to a file, which is there only when all of it is, and right.

        What an earlier, broken download of the same image has left beside `target` is gone on from.

        Raises:
            InvalidRequest: the bytes are not the image's: they are thrown away.
        """
        found = self.get(image)
        part = part_path(target, found.id)
        digest = hashlib.sha256()
        if part.exists() and read_into(part, digest.update) > found.size_bytes:
            part.unlink()
            digest = hashlib.sha256()

        with part.open("ab") as file:

            def once(left_s: float) -> None:
                request = pb.DownloadImageRequest(image=found.id, offset_bytes=file.tell())
                for piece in self._stub.DownloadImage(
                    request, timeout=left_s, metadata=self._calls.metadata()
                ):
                    file.write(piece.data)
                    digest.update(piece.data)
                    if progress is not None:
                        progress(file.tell(), found.size_bytes)

            while file.tell() < found.size_bytes:
                before = file.tell()
                try:
                    self._calls.attempt(
                        once, timeout_s=TRANSFER_TIMEOUT_S, attempt_timeout_s=TRANSFER_TIMEOUT_S
                    )
                except Unavailable:
                    # As long as there is progress between the failures, they are not counted.
                    if file.tell() == before:
                        raise
                else:
                    break
        if digest.hexdigest() != found.sha256:
            part.unlink()
            raise InvalidRequest(
                f"image {found.name} did not arrive as it is stored: its SHA-256 should be {found.sha256}",
                field="image",
                reason=Reason.IMAGE_REJECTED,
            )
        part.replace(target)
        return found

    def delete(self, image: str) -> None:
        """Delete one, by id or name; servers made from it keep their disks."""
        request = pb.DeleteImageRequest(request_id=self._calls.request_id(), image=image)
        self._calls.delete(self._stub.DeleteImage, request)


def _upload(header: pb.ImageHeader, passing: Passing) -> Iterator[pb.CreateImageRequest]:
    yield pb.CreateImageRequest(header=header)
    for piece in passing.pieces():
        yield pb.CreateImageRequest(data=piece)
