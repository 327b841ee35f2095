"""What a rescue is made of: an image to boot from, and a password that is not kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from passlib.hash import sha512_crypt

from fabric.api.preparing_rescue import rescue_of, rescued, rescued_by_its_own
from fabric.errors import InvalidRequest
from fabric.model.image import Image, ImageFormat, ImageState
from tests.unit.lifecycle.records import GUEST, instance

PASSWORD = "'; reboot #"
IMAGE = Image(
    id="00000000-0000-4000-8000-00000000000a",
    name="rescue-os",
    project_id="nebula",
    format=ImageFormat.QCOW2,
    state=ImageState.ACTIVE,
    sha256="cd" * 32,
    size_bytes=1,
    virtual_size_bytes=1,
    properties={"os_command_line": "console=ttyS0"},
)


def no_traits(_: str) -> tuple[str, ...]:
    return ()


def test_a_password_is_kept_as_a_hash_and_cannot_leave_its_quotes() -> None:
    script = rescue_of(IMAGE, None, None, PASSWORD).user_data.decode()

    assert PASSWORD not in script
    shebang, line, rest = script.split("\n")
    assert (shebang, rest) == ("#!/bin/sh", "")
    hashed = line.removeprefix("echo 'root:").removesuffix("' | chpasswd -e")
    assert sha512_crypt.verify(PASSWORD, hashed)
    assert "'" not in hashed


def test_without_a_password_the_guest_is_given_nothing_to_run() -> None:
    assert rescue_of(IMAGE, None, None, "").user_data == b""


def test_the_image_must_be_one_to_boot_from() -> None:
    for bad in (replace(IMAGE, state=ImageState.SAVING), replace(IMAGE, format=ImageFormat.KERNEL)):
        with pytest.raises(InvalidRequest) as refused:
            rescue_of(bad, None, None, "")
        assert refused.value.field == "image"


def test_the_named_image_and_its_command_line_become_the_guests() -> None:
    rescue = rescue_of(IMAGE, None, None, "")
    guest = rescued(rescue, IMAGE, no_traits)(instance()).request.guest

    assert guest.rescue == rescue
    assert guest.image == GUEST.image
    assert guest.booted().kernel_args == "console=ttyS0"


def test_with_no_image_named_it_is_the_one_the_server_was_made_from() -> None:
    own = rescued_by_its_own("")(instance()).request.guest.rescue

    assert own is not None
    assert own.image == GUEST.image


def test_a_server_whose_image_is_not_kept_must_be_told_one() -> None:
    now = instance()
    moved = replace(now, request=replace(now.request, guest=replace(GUEST, standalone=True)))

    with pytest.raises(InvalidRequest) as refused:
        rescued_by_its_own("")(moved)
    assert refused.value.field == "image"


@pytest.mark.parametrize(
    ("unfit", "word"),
    [
        ({"properties": {"hw_firmware_type": "uefi"}}, "hw_firmware_type=bios"),
        ({"properties": {"hw_architecture": "aarch64"}}, "HW_ARCH_AARCH64"),
        ({"properties": {"trait:GPU": "required"}}, "GPU"),
        ({"min_ram_mib": 4096}, "4096"),
    ],
)
def test_an_image_that_the_server_cannot_boot_is_refused(unfit: dict[str, Any], word: str) -> None:
    """Only that it is a disk was looked at: a rescue with a UEFI image of a server that boots by BIOS read RESCUED over a dead screen."""
    image = replace(IMAGE, **unfit)

    with pytest.raises(InvalidRequest, match=word) as refused:
        rescued(rescue_of(image, None, None, ""), image, no_traits)(instance())
    assert refused.value.field == "image"


@pytest.mark.parametrize("firmware", [{}, {"hw_firmware_type": "uefi"}])
def test_a_server_with_uefi_is_rescued_by_an_image_that_boots_by_it(firmware: dict[str, str]) -> None:
    image = replace(IMAGE, properties={**firmware, "hw_architecture": "x86_64"})
    now = instance()
    uefi = replace(now, request=replace(now.request, guest=replace(GUEST, firmware="uefi")))

    guest = rescued(rescue_of(image, None, None, ""), image, lambda _: ("HW_ARCH_X86_64",))(
        uefi
    ).request.guest

    assert guest.rescue is not None


def test_a_server_with_uefi_is_not_rescued_by_an_image_for_bios() -> None:
    """It boots by its own firmware all the while."""
    image = replace(IMAGE, properties={"hw_firmware_type": "bios"})
    now = instance()
    uefi = replace(now, request=replace(now.request, guest=replace(GUEST, firmware="uefi")))

    with pytest.raises(InvalidRequest, match="hw_firmware_type=uefi"):
        rescued(rescue_of(image, None, None, ""), image, lambda _: ("FIRMWARE_UEFI",))(uefi)
