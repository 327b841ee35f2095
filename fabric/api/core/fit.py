"""Whether what is to boot on a server's host, chosen for something else, can: a rebuild's image, and a rescue's."""

from __future__ import annotations

from collections.abc import Callable, Collection

from fabric.api.core.accept import (
    boots_securely,
    check_boots_as_it_asks,
    check_image,
    firmware_of,
    image_traits,
)
from fabric.errors import InvalidRequest
from fabric.model.image import Image
from fabric.model.instance import Instance
from fabric.model.traits import boot_traits

HostTraits = Callable[[str], Collection[str]]
"""What an administrator has approved of a host, by its name: its traits. None of a host that is not known."""


def check_fits_server(image: Image, now: Instance, host_traits: HostTraits) -> None:
    """Whether the server can boot the image where it is, by the firmware that the image asks for.

    Its host has the architecture and the firmware that the server was made with; more only where that is approved of it. Other traits it
    was chosen for, or not: what the record does not ask, the next host need not have. Raises InvalidRequest.
    """
    check_image(image)
    check_boots_as_it_asks(image)
    request = now.request
    if request.guest.ram_mib < image.min_ram_mib:
        raise InvalidRequest(
            f"the server has {request.guest.ram_mib} MiB of memory; image {image.name} needs {image.min_ram_mib}",
            field="image",
        )
    if boots_securely(image) and not request.guest.secure_boot:
        # The keys are in the variables of its firmware, which it has from its first boot on.
        raise InvalidRequest(
            f"image {image.name} insists on Secure Boot, and the server was not made with it: make a new server of this image",
            field="image",
        )
    architecture = image.properties.get("hw_architecture", "")
    if architecture and request.architecture and architecture != request.architecture:
        raise InvalidRequest(
            f"image {image.name} is for {architecture}; the server's host was chosen for {request.architecture}",
            field="image",
        )
    chosen = {
        **dict.fromkeys(request.required_traits, "required"),
        **dict.fromkeys(request.forbidden_traits, "forbidden"),
    }
    had = {
        *boot_traits(request.architecture, request.guest.firmware),
        *request.required_traits,
        *host_traits(now.host),
    }
    traits = image_traits(image)
    unsure = {name for name, how in traits.items() if chosen.get(name) != how}
    unsure |= boot_traits(architecture, firmware_of(image)) - had
    if unsure:
        wants = ", ".join(
            f"{'without' if traits.get(name) == 'forbidden' else 'with'} {name}" for name in sorted(unsure)
        )
        raise InvalidRequest(
            f"image {image.name} needs a host {wants}; the server's was not chosen for that: make a new server of this image,"
            " or take one that needs no more than the server's own",
            field="image",
        )


def check_rescues(image: Image, now: Instance, host_traits: HostTraits) -> None:
    """The same for an image to rescue the server with, which boots by the server's own firmware. Raises InvalidRequest."""
    firmware = now.request.guest.firmware
    asked = image.properties.get("hw_firmware_type", firmware)
    if asked != firmware:
        raise InvalidRequest(
            f"image {image.name} boots by {asked}; the server by {firmware}, while it is rescued too:"
            f" take an image with hw_firmware_type={firmware}",
            field="image",
        )
    check_fits_server(image, now, host_traits)
