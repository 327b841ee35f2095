"""Rebuilding a server: the same server, on its host, with its addresses, from another image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fabric.api.core.accept import GIB, boots_securely, firmware_of, ref_of
from fabric.api.core.edits import renamed
from fabric.api.core.fit import HostTraits, check_fits_server
from fabric.errors import InvalidRequest
from fabric.model.image import Image
from fabric.model.instance import Instance
from fabric.model.keypair import Keypair
from fabric.model.states import VmState, Want


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuild:
    """What a rebuild names, looked up. What is None or empty stays as it is."""

    image: Image
    host_traits: HostTraits
    kernel: Image | None = None
    ramdisk: Image | None = None
    keypair: Keypair | None = None
    user_data: bytes | None = None
    metadata: Mapping[str, str] | None = None
    name: str = ""

    def __call__(self, now: Instance) -> Instance:
        """The record with the new guest. One in ERROR is to run again, whatever it failed at.

        Raises InvalidRequest, naming the field, where the image does not fit the server or its host.
        """
        check_fits_server(self.image, now, self.host_traits)
        _check_disk(self.image, now)
        guest = now.request.guest
        image = self.image
        rebuilt = replace(
            guest,
            image=ref_of(image),
            kernel=None if self.kernel is None else ref_of(self.kernel),
            ramdisk=None if self.ramdisk is None else ref_of(self.ramdisk),
            kernel_args=image.properties.get("os_command_line", ""),
            firmware=firmware_of(image),
            secure_boot=boots_securely(image),
            public_keys=guest.public_keys
            if self.keypair is None
            else {self.keypair.name: self.keypair.public_key},
            user_data=guest.user_data if self.user_data is None else self.user_data,
            metadata=guest.metadata if self.metadata is None else dict(self.metadata),
            standalone=False,
        )
        request = replace(
            now.request,
            guest=rebuilt,
            architecture=image.properties.get("hw_architecture", "") or now.request.architecture,
            key_name=now.request.key_name if self.keypair is None else self.keypair.name,
        )
        after = replace(now, request=request, want=Want.RUN if now.vm_state is VmState.ERROR else now.want)
        return renamed(self.name)(after) if self.name else after


def _check_disk(image: Image, now: Instance) -> None:
    disk_gib = now.request.guest.disk_gib
    needs_gib = max(image.min_disk_gib, -(-image.virtual_size_bytes // GIB))
    if disk_gib and disk_gib < needs_gib:
        raise InvalidRequest(
            f"the server has a disk of {disk_gib} GiB; image {image.name} needs {needs_gib}",
            field="image",
        )
