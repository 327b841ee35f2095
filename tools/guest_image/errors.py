"""What a person can do something about while building the image."""

from __future__ import annotations


class BuildError(Exception):
    """The image cannot be built; the message says what is missing and what would put it right."""
