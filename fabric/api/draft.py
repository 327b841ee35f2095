"""A write as it comes together: what was read, what is taken and given back, and what must not hang on what is deleted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from fabric.api.once import Change
from fabric.errors import Bug
from fabric.network.core.releases import Release
from fabric.store.codec import encode


class Draft:
    """Collects one transaction. Nothing is put or deleted but what is compared, or held by what is.

    `attempt` counts how often it was begun: whoever lost a race for something looks elsewhere the next time.
    """

    def __init__(self, attempt: int = 1) -> None:
        self.attempt = attempt
        self.unchanged: dict[str, int] = {}
        self.put: dict[str, bytes] = {}
        self.delete: list[str] = []
        self.empty: list[str] = []

    def read(self, key: str, mod_revision: int) -> None:
        """This was decided on a key as it was. Of two reads between which it moved the older counts: the store refuses it."""
        self.unchanged[key] = min(mod_revision, self.unchanged.get(key, mod_revision))

    def take(self, key: str, owner: str) -> None:
        """Take what nobody has: an address, a name, a place. Raises Bug for what is taken in this very write."""
        if key in self.put:
            raise Bug(f"{key} is taken twice")
        self.read(key, 0)
        self.put[key] = encode(owner)

    def write(self, key: str, value: object, *, seen: int) -> None:
        """Put a record over what was read."""
        self.read(key, seen)
        self.put[key] = encode(value)

    def free(self, *keys: str) -> None:
        """Give back what a record that is compared says is its own."""
        self.delete.extend(key for key in keys if key)

    def remove(self, key: str, *, seen: int) -> None:
        """Delete a record that was read."""
        self.read(key, seen)
        self.delete.append(key)

    def release(self, release: Release) -> None:
        """Give back what a port held."""
        for key, revision in release.unchanged.items():
            self.read(key, revision)
        self.put.update({key: encode(value) for key, value in release.put.items()})
        self.delete.extend(release.delete)

    def nothing_below(self, prefixes: Iterable[str]) -> None:
        """Nothing may hang on what is deleted."""
        self.empty.extend(prefixes)


def drafted(decide: Callable[[Draft], Awaitable[str]]) -> Callable[[], Awaitable[Change]]:
    """What fills a draft and returns the id of what it is about, as `Once` calls it: each time anew, with another draft."""
    attempt = 0

    async def decided() -> Change:
        nonlocal attempt
        attempt += 1
        draft = Draft(attempt)
        return Change(
            resource_id=await decide(draft),
            unchanged=draft.unchanged,
            put=draft.put,
            delete=tuple(draft.delete),
            empty=tuple(draft.empty),
        )

    return decided
