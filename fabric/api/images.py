"""ImageService: what a guest's disk starts as. Bytes come in a stream, are looked at on their way, and only then is there an image.

An image is its project's, or everybody's to use when a system administrator makes it public. Its bytes never change.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from fabric.api.catalogue import visible
from fabric.api.convert import image_message
from fabric.api.core.image_properties import check_properties
from fabric.api.named import Found, absent, readable
from fabric.api.once import Change, Once, body_sha256
from fabric.api.pages import Pages
from fabric.clock import Clock
from fabric.errors import AlreadyExists, InvalidRequest, PermissionDenied, Reason
from fabric.ids import Ids, is_id
from fabric.images.base import Blobs
from fabric.images.core.inspect import ImageLimits
from fabric.images.service import Received, receive
from fabric.model.identity import Principal
from fabric.model.image import Image, ImageFormat, ImageState, Visibility
from fabric.pb.image.v1 import image_service_pb2 as pb
from fabric.store.base import Store
from fabric.store.codec import decode, encode
from fabric.store.keys import IMAGE, IMAGE_NAME


class ImageHandlers:
    """The RPCs, as functions of a request and who asks."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        *,
        limits: ImageLimits,
        clock: Clock,
        ids: Ids,
        jitter: Callable[[], float],
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._limits = limits
        self._once = Once(store, clock=clock, jitter=jitter)
        self._pages = Pages()
        self._clock = clock
        self._ids = ids

    async def get_image(self, request: pb.GetImageRequest, principal: Principal) -> pb.GetImageResponse:
        found = await self._get(request.image, principal)
        return pb.GetImageResponse(image=image_message(found.value), revision=found.revision)

    async def list_images(self, request: pb.ListImagesRequest, principal: Principal) -> pb.ListImagesResponse:
        found, revision = await self._visible(principal)
        # Names are unique in a project only.
        page, token = self._pages.cut(
            sorted(found, key=lambda each: _position(each.value)),
            request,
            key=lambda each: _position(each.value),
        )
        return pb.ListImagesResponse(
            images=[image_message(each.value) for each in page], next_page_token=token, revision=revision
        )

    async def create_image(
        self, requests: AsyncIterator[pb.CreateImageRequest], principal: Principal
    ) -> pb.CreateImageResponse:
        first = await anext(requests, None)
        if first is None or first.WhichOneof("piece") != "header":
            raise InvalidRequest("the first piece must be the header", field="header")
        header = first.header
        await self._check(header.image, principal)
        name_key = IMAGE_NAME.at(principal.project_id, header.image.name)
        received: Received | None = None

        async def decide() -> Change:
            nonlocal received
            # Looked at before the bytes come: nobody wants to learn it after an hour's upload.
            if name_key in (await self._store.get(name_key)).entries:
                raise AlreadyExists(
                    f"the project has an image {header.image.name!r} already", name=header.image.name
                )
            if received is None:
                received = await receive(
                    self._blobs,
                    _data(requests),
                    declared=ImageFormat(header.image.format),
                    expected_sha256=header.image.sha256,
                    limits=self._limits,
                    owner=principal.project_id,
                )
            image = self._image(header.image, principal, received)
            return Change(
                resource_id=image.id,
                unchanged={name_key: 0},
                put={name_key: encode(image.id), IMAGE.at(image.id): encode(image)},
            )

        done = await self._once.make(
            decide,
            request_id=header.request_id,
            method="CreateImage",
            body=body_sha256(header),
            principal=principal,
        )
        made = await self._get(done.resource_id, principal)
        return pb.CreateImageResponse(image=image_message(made.value), revision=done.revision)

    async def download_image(
        self, request: pb.DownloadImageRequest, principal: Principal
    ) -> AsyncIterator[pb.DownloadImageResponse]:
        image = (await self._get(request.image, principal)).value
        async for piece in self._blobs.read(image.sha256, request.offset_bytes):
            yield pb.DownloadImageResponse(data=piece)

    async def delete_image(
        self, request: pb.DeleteImageRequest, principal: Principal
    ) -> pb.DeleteImageResponse:
        async def decide() -> Change:
            found = await self._get(request.image, principal)
            image = found.value
            if image.project_id != principal.project_id and not principal.system_admin:
                raise PermissionDenied("only its own project may delete a public image")
            if image.state is ImageState.ACTIVE:
                # Servers are perhaps still being built from it: its bytes stay for a while. One that waits has none.
                await self._blobs.touch(image.sha256)
            key = IMAGE.at(image.id)
            return Change(
                resource_id=image.id,
                unchanged={key: found.mod_revision},
                delete=(key, IMAGE_NAME.at(image.project_id, image.name)),
            )

        done = await self._once.answer(decide, request, principal)
        return pb.DeleteImageResponse(revision=done.revision)

    async def used_blobs(self) -> frozenset[str]:
        """The digests that images name: what no sweep may touch. Raises Unavailable."""
        snapshot = await self._store.list(IMAGE.under())
        return frozenset(decode(Image, entry.value).sha256 for entry in snapshot.entries.values())

    # ------------------------------------------------------------------ looking up

    async def _visible(self, principal: Principal) -> tuple[list[Found[Image]], int]:
        snapshot = await self._store.list(IMAGE.under())
        found = readable(Image, snapshot)
        seen = [each for each in found if visible(each.value, principal) and not each.value.hidden]
        return seen, snapshot.revision

    async def _get(self, name_or_id: str, principal: Principal) -> Found[Image]:
        """One by id, else the project's own by name, else the public one of that name.

        Raises:
            NotFound: in the same words for what is absent and what is another project's.
            InvalidRequest: several public images have the name.
        """
        if is_id(name_or_id):
            key = IMAGE.at(name_or_id)
            seen = await self._store.get(key)
            value = seen.value(key)
            if value is not None and visible(image := decode(Image, value), principal):
                return Found(image, seen.seen(key), seen.revision)
        found = [each for each in (await self._visible(principal))[0] if each.value.name == name_or_id]
        own = [each for each in found if each.value.project_id == principal.project_id]
        several = own or found
        if not several:
            raise absent("image", name_or_id)
        if len(several) > 1:
            ids = ", ".join(sorted(each.value.id for each in several))
            raise InvalidRequest(
                f"{len(several)} images are called {name_or_id!r}; say which by its id: {ids}",
                field="image",
                reason=Reason.NAME_AMBIGUOUS,
            )
        return several[0]

    # ------------------------------------------------------------------ making

    async def _check(self, asked: pb.Image, principal: Principal) -> None:
        """What the field rules cannot say. Raises InvalidRequest, PermissionDenied."""
        if asked.visibility == pb.VISIBILITY_PUBLIC and not principal.system_admin:
            raise PermissionDenied("only system administrators make public images", needed="system")
        if not principal.project_id:
            raise PermissionDenied("an image needs a project; your token is for none")
        check_properties(asked.properties, field="image.properties")
        for field, part_id, part in (
            ("image.kernel_id", asked.kernel_id, ImageFormat.KERNEL),
            ("image.ramdisk_id", asked.ramdisk_id, ImageFormat.RAMDISK),
        ):
            if part_id:
                await self._check_part(field, part_id, part, principal)
        if asked.ramdisk_id and not asked.kernel_id:
            raise InvalidRequest("image.ramdisk_id needs a kernel to go with", field="image.kernel_id")

    async def _check_part(self, field: str, part_id: str, part: ImageFormat, principal: Principal) -> None:
        key = IMAGE.at(part_id)
        value = (await self._store.get(key)).value(key)
        image = None if value is None else decode(Image, value)
        if image is None or not visible(image, principal) or image.format is not part:
            raise InvalidRequest(f"{field} is not the id of a {part.name.lower()} image", field=field)

    def _image(self, asked: pb.Image, principal: Principal, received: Received) -> Image:
        now_ms = self._clock.now_ms()
        return Image(
            id=self._ids.new_id(),
            name=asked.name,
            project_id=principal.project_id,
            format=ImageFormat(asked.format),
            state=ImageState.ACTIVE,
            visibility=Visibility(asked.visibility or Visibility.PRIVATE),
            size_bytes=received.size_bytes,
            virtual_size_bytes=received.virtual_size_bytes,
            sha256=received.sha256,
            min_disk_gib=asked.min_disk_gib,
            min_ram_mib=asked.min_ram_mib,
            kernel_id=asked.kernel_id,
            ramdisk_id=asked.ramdisk_id,
            properties=dict(asked.properties),
            create_time_ms=now_ms,
            update_time_ms=now_ms,
        )


def _position(image: Image) -> str:
    return f"{image.name}\0{image.id}"


async def _data(requests: AsyncIterator[pb.CreateImageRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("piece") != "data":
            raise InvalidRequest("after the header come bytes, and nothing else", field="data")
        yield request.data
