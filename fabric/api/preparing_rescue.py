"""Rescuing a server: what it boots from meanwhile, and the password that lets people in."""

from __future__ import annotations

from dataclasses import replace

from fabric.api.core.accept import check_image, ref_of
from fabric.api.core.fit import HostTraits, check_rescues
from fabric.api.core.intent import Change
from fabric.errors import InvalidRequest
from fabric.model.image import Image
from fabric.model.instance import Instance, Rescue

_SCRIPT = """#!/bin/sh
echo 'root:{password_hash}' | chpasswd -e
"""
"""The hash is of letters, digits, dots, slashes and dollars: nothing that a shell reads between these quotes."""


def rescue_of(image: Image, kernel: Image | None, ramdisk: Image | None, password: str) -> Rescue:
    """What the server boots from. Raises InvalidRequest, naming the field, where the image is none to boot from."""
    check_image(image)
    return Rescue(
        image=ref_of(image),
        kernel=None if kernel is None else ref_of(kernel),
        ramdisk=None if ramdisk is None else ref_of(ramdisk),
        kernel_args=image.properties.get("os_command_line", ""),
        user_data=_script(password),
    )


def rescued(rescue: Rescue, image: Image, host_traits: HostTraits) -> Change:
    """The record with what it boots from. Raises InvalidRequest where the server's host cannot boot that."""

    def change(now: Instance) -> Instance:
        check_rescues(image, now, host_traits)
        return replace(now, request=replace(now.request, guest=replace(now.request.guest, rescue=rescue)))

    return change


def rescued_by_its_own(password: str) -> Change:
    """The same by the image that the server was made from: its host has that, even where it was deleted since."""

    def change(now: Instance) -> Instance:
        guest = now.request.guest
        if guest.image is None:
            raise InvalidRequest(
                "the server boots from a volume, and not from an image: name one to rescue it with",
                field="image",
            )
        if guest.standalone or now.disk is not None:
            raise InvalidRequest(
                "what this server's disk was last made from is not kept; name an image to rescue it with",
                field="image",
            )
        rescue = Rescue(
            image=guest.image,
            kernel=guest.kernel,
            ramdisk=guest.ramdisk,
            kernel_args=guest.kernel_args,
            user_data=_script(password),
        )
        return replace(now, request=replace(now.request, guest=replace(guest, rescue=rescue)))

    return change


def _script(password: str) -> bytes:
    return _SCRIPT.format(password_hash=_hash(password)).encode() if password else b""


def _hash(password: str) -> str:
    """SHA-512 in crypt's form, which every Linux guest's chpasswd takes."""
    # Imported here: few servers are ever rescued, and it is large.
    from passlib.hash import sha512_crypt

    hashed: str = sha512_crypt.using(rounds=5000).hash(password)
    return hashed
