"""The version of what is stored. Bump it with a note in docs/schema-changelog.md and a test that reads the version before it."""

from __future__ import annotations

SCHEMA_VERSION = 1
"""Written into every record, so that a reader knows which rules its writer followed."""
