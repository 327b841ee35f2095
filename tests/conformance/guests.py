"""Guests for tests: whole, small, and different in what a test says."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

from fabric.model.image import ImageFormat
from fabric.model.instance import Guest, ImageRef
from fabric.model.network import Port

NAMESPACE = uuid.UUID("00000000-0000-4000-8000-00000000c0de")


def an_id(word: str) -> str:
    """The same UUID for the same word."""
    return str(uuid.uuid5(NAMESPACE, word))


def an_image(content: bytes, **changes: Any) -> ImageRef:
    """A raw image of these bytes."""
    fields: dict[str, Any] = {
        "id": an_id("image"),
        "name": "image",
        "format": ImageFormat.RAW,
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content),
        "virtual_size_bytes": len(content),
    }
    return ImageRef(**fields | changes)


def a_port(number: int = 1, **changes: Any) -> Port:
    """A port with the subnet's address of that number."""
    fields: dict[str, Any] = {
        "id": an_id(f"port {number}"),
        "network_id": an_id("network"),
        "network_name": "default",
        "mac": f"fa:16:3e:00:00:{number:02x}",
        "address": f"10.77.0.{number + 1}",
        "prefix_length": 24,
        "gateway": "10.77.0.1",
        "mtu": 1500,
        "dns_servers": ("192.0.2.53",),
    }
    return Port(**fields | changes)


def a_guest(word: str = "guest", **changes: Any) -> Guest:
    """A guest of 1 vCPU, 64 MiB and 1 GiB."""
    fields: dict[str, Any] = {
        "id": an_id(word),
        "name": word,
        "hostname": word,
        "project_id": an_id("project"),
        "user_id": an_id("user"),
        "vcpus": 1,
        "ram_mib": 64,
        "disk_gib": 1,
        "image": an_image(b"\0" * 4096),
    }
    return Guest(**fields | changes)
