"""The noun `server` with all of its verbs: each module adds its own when it is imported."""

from __future__ import annotations

from fabric.cli import (
    instance_devices,
    instance_events,
    instance_images,
    instance_moves,
    instance_networks,
    instance_records,
    instance_rescue,
    instance_ssh,
)
from fabric.cli.instances import server

__all__ = ["server"]

VERBS = (
    instance_devices,
    instance_events,
    instance_images,
    instance_moves,
    instance_networks,
    instance_records,
    instance_rescue,
    instance_ssh,
)
"""The modules that add verbs to what `fabric.cli.instances` has."""
