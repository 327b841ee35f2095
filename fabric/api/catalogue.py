"""What the global store offers to everybody: flavors, images, networks, keypairs, cells, and the index of servers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from fabric.api.groups import Groups
from fabric.api.shelf import Shelf
from fabric.clock import Clock
from fabric.errors import InvalidRequest, NotFound, Reason, Unavailable
from fabric.ids import is_id
from fabric.model.flavor import Flavor
from fabric.model.host import Cell, CellCapacity
from fabric.model.identity import Principal, Project, User
from fabric.model.image import Image, Visibility
from fabric.model.instance import Build, Location
from fabric.model.keypair import Keypair
from fabric.model.network import FloatingIp, Network, NetworkKind
from fabric.model.quota import Quota
from fabric.store.base import Store
from fabric.store.keys import (
    BUILD,
    CAPACITY,
    CELL,
    FLAVOR,
    FLOATING_IP,
    IMAGE,
    KEYPAIR,
    LOCATION,
    NETWORK,
    PROJECT,
    QUOTA,
    USER,
)
from fabric.store.picture import Change

V = TypeVar("V")


def visible(image: Image, principal: Principal) -> bool:
    """Whether the caller may see and use the image."""
    return (
        image.visibility is Visibility.PUBLIC
        or image.project_id == principal.project_id
        or principal.system_admin
    )


def one(found: Iterable[V], what: str, word: str, *, field: str, id_of: Callable[[V], str]) -> V:
    """The only one. Raises NotFound for none, InvalidRequest with the ids for several: names need not be unique."""
    several = list(found)
    if not several:
        raise NotFound(f"there is no {what} {word}", kind=what, name=word)
    if len(several) > 1:
        ids = ", ".join(sorted(map(id_of, several)))
        raise InvalidRequest(
            f"{len(several)} of your {what}s are called {word}; say which by its id: {ids}",
            field=field,
            reason=Reason.NAME_AMBIGUOUS,
        )
    return several[0]


class Catalogue:
    """The pictures, and look-ups by what people type: an id or a name."""

    def __init__(self, store: Store, *, clock: Clock) -> None:
        self.store = store
        self.flavors = Shelf(store, FLAVOR.under(), Flavor, clock=clock)
        self.images = Shelf(store, IMAGE.under(), Image, clock=clock)
        self.networks = Shelf(store, NETWORK.under(), Network, clock=clock)
        self.keypairs = Shelf(store, KEYPAIR.under(), Keypair, clock=clock)
        self.projects = Shelf(store, PROJECT.under(), Project, clock=clock)
        self.users = Shelf(store, USER.under(), User, clock=clock)
        self.quotas = Shelf(store, QUOTA.under(), Quota, clock=clock)
        self.cells = Shelf(store, CELL.under(), Cell, clock=clock)
        self.capacities = Shelf(store, CAPACITY.under(), CellCapacity, clock=clock)
        self.locations = Shelf(store, LOCATION.under(), Location, clock=clock)
        self.locations_by_project = Groups(self.locations, lambda each: each.project_id)
        self.builds = Shelf(store, BUILD.under(), Build, clock=clock)
        self.builds_by_project = Groups(self.builds, lambda each: each.project_id)
        self.floating_ips = Shelf(store, FLOATING_IP.under(), FloatingIp, clock=clock)
        self._host_local: dict[str, Network] = {}
        self.networks.listeners.append(self._on_networks)

    async def run(self) -> None:
        """Keep the pictures, until cancelled."""
        shelves: tuple[Shelf[object], ...] = tuple(
            each for each in vars(self).values() if isinstance(each, Shelf)
        )
        async with asyncio.TaskGroup() as tasks:
            for shelf in shelves:
                tasks.create_task(shelf.run())

    async def flavor(self, word: str, *, field: str = "flavor") -> Flavor:
        """By id or name. Raises NotFound."""
        found = await self.flavors.matching(lambda each: word in {each.id, each.name})
        return one(found, "flavor", word, field=field, id_of=lambda each: each.id)

    async def image(self, word: str, principal: Principal, *, field: str = "image") -> Image:
        """By id or name, of those the caller may see; the caller's own before public ones. Raises NotFound."""
        found = await self.images.matching(
            lambda each: word in {each.id, each.name} and visible(each, principal) and not each.hidden
        )
        own = [each for each in found if each.project_id == principal.project_id]
        return one(own or found, "image", word, field=field, id_of=lambda each: each.id)

    def host_local(self, word: str) -> list[Network]:
        """The networks that hosts serve themselves, of this id or name or, for no word, all: as far as they are known."""
        return [each for each in self._host_local.values() if not word or word in {each.id, each.name}]

    def _on_networks(self, changes: Sequence[Change[Network]]) -> None:
        # Few among the many that projects make, and asked for at every create.
        for change in changes:
            self._host_local.pop(change.key, None)
            if change.after is not None and change.after.value.kind is NetworkKind.HOST_LOCAL:
                self._host_local[change.key] = change.after.value

    async def network(self, word: str, *, field: str = "network") -> Network:
        """By id or name, of those that hosts serve themselves; the only one there is, for no word. Raises NotFound."""
        found = self.host_local(word)
        if not found:
            await self.networks.catch_up()
            found = self.host_local(word)
        if not word and len(found) > 1:
            names = ", ".join(sorted(each.name for each in found))
            raise InvalidRequest(f"there are several networks; say which: {names}", field=field)
        return one(found, "network", word, field=field, id_of=lambda each: each.id)

    async def keypair(self, name: str, principal: Principal, *, field: str = "keypair") -> Keypair:
        """The caller's own, by name. Raises NotFound."""
        held = await self.keypairs.find(KEYPAIR.at(principal.user_id, name))
        return one([held.value] if held else [], "keypair", name, field=field, id_of=lambda each: each.id)

    async def location(self, word: str, principal: Principal) -> Location:
        """A server by id or name, of the caller's project (an administrator's: any, by id). Raises NotFound."""
        if is_id(word):
            held = await self.locations.find(LOCATION.at(word))
            own = held is not None and (
                principal.system_admin or held.value.project_id == principal.project_id
            )
            found = [held.value] if held is not None and own else []
        else:
            found = await self._called(word, principal.project_id)
        return one(found, "server", word, field="instance", id_of=lambda each: each.instance_id)

    async def _called(self, name: str, project_id: str) -> list[Location]:
        """The project's servers of a name.

        A second one of that name may be newer than the picture, and acting on the wrong one cannot be taken back. While the store is away
        nothing new is accepted, so what is known will do. Raises Unavailable where nothing is.
        """
        away: Unavailable | None = None
        try:
            await self.locations.catch_up()
        except Unavailable as trouble:
            away = trouble
        found = [each for each in self.locations_by_project.of(project_id) if each.name == name]
        if not found and away is not None:
            raise away
        return found
