"""What the handlers of networks, subnets, ports, routers, floating IPs and security groups share: look-ups, and making a change once.

Networks and subnets are seen by those whose they are, and by everybody where the network is shared or external. All else belongs to one
project and is looked up below it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import TypeVar

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from fabric.api.draft import Draft, drafted
from fabric.api.named import Found, absent, readable
from fabric.api.once import Done, Once
from fabric.api.owned import Owned
from fabric.api.pages import Pages
from fabric.clock import Clock
from fabric.errors import AlreadyExists, InvalidRequest, PermissionDenied, Reason, WrongState
from fabric.ids import Ids, is_id
from fabric.model.identity import Principal
from fabric.model.network import Network, NetworkKind, Subnet
from fabric.model.quota import NetworkLimits
from fabric.network.holdings import Holdings
from fabric.store.base import Snapshot, Store
from fabric.store.codec import decode
from fabric.store.keys import (
    FLOATING_IP,
    NETWORK,
    NETWORK_NAME,
    NETWORK_USE,
    PORT,
    PORT_NAME,
    PROJECT_NETWORK_NAME,
    ROUTER,
    ROUTER_NAME,
    SECURITY_GROUP,
    SECURITY_GROUP_NAME,
    SUBNET,
    SUBNET_NAME,
    Key,
)

V = TypeVar("V")

ATTEMPTS = 12
"""How often a change is decided anew. Of those who race for the last addresses of a subnet one wins each time, and the rest look again."""

READ_TOGETHER = 100


class Desk:
    """One for all of the handlers of an API server."""

    def __init__(
        self,
        store: Store,
        *,
        limits: NetworkLimits,
        clock: Clock,
        ids: Ids,
        jitter: Callable[[], float],
    ) -> None:
        self.store = store
        self.pages = Pages()
        self.clock = clock
        self.ids = ids
        self.holdings = Holdings(store, limits)
        self.ports = Owned(store, PORT, "port", PORT_NAME)
        self.routers = Owned(store, ROUTER, "router", ROUTER_NAME)
        self.floating_ips = Owned(store, FLOATING_IP, "floating IP")
        self.groups = Owned(store, SECURITY_GROUP, "security group", SECURITY_GROUP_NAME)
        self._once = Once(store, clock=clock, jitter=jitter, attempts=ATTEMPTS)

    # ------------------------------------------------------------------ changing

    async def make(
        self,
        decide: Callable[[Draft], Awaitable[str]],
        request: Message,
        principal: Principal,
    ) -> Done:
        """Change something, once for each request_id.

        Args:
            decide: fills a draft and returns the id of what it is about. Called anew, with another draft, when others were faster.
            request: with its request_id; its type says what method it is of.
            principal: who asks.

        Raises:
            PermissionDenied: the token is for no project.
            Conflict, Ambiguous, Unavailable: as `Once.make`. And what `decide` raises.
        """
        project_of(principal)
        return await self._once.answer(drafted(decide), request, principal)

    async def take_name(self, draft: Draft, key: str, resource_id: str, *, what: str, name: str) -> None:
        """Take a name. Raises AlreadyExists where it is somebody's."""
        if key in (await self.store.get(key)).entries:
            raise AlreadyExists(f"there is a {what} {name!r} already", name=name)
        draft.take(key, resource_id)

    async def rename(
        self, draft: Draft, before: str, after: str, resource_id: str, *, what: str, name: str
    ) -> None:
        """Exchange one name's key for another's; empty: no name. Raises AlreadyExists."""
        if before == after:
            return
        if after:
            await self.take_name(draft, after, resource_id, what=what, name=name)
        draft.free(before)

    async def take_slot(
        self, draft: Draft, project_id: str, kind: str, resource_id: str, *, seed: str
    ) -> int:
        """Take a place among what the project may have of a kind. Raises QuotaExceeded."""
        slot = await self.holdings.free_slot(project_id, kind, seed=seed, besides=draft.put)
        if slot:
            draft.take(NETWORK_USE.at(project_id, kind, str(slot)), resource_id)
        return slot

    async def check_nothing_below(self, draft: Draft, prefixes: Iterable[str], words: str) -> None:
        """Whether nothing hangs on what is to be deleted, now and when it is. Raises WrongState."""
        for prefix in prefixes:
            count = len((await self.store.list(prefix)).entries)
            if count:
                raise WrongState(f"{words}: {count} of them", reason=Reason.RESOURCE_IN_USE)
            draft.nothing_below([prefix])

    # ------------------------------------------------------------------ networks and subnets

    async def network(self, word: str, principal: Principal) -> Found[Network]:
        """By id, else by name: the project's own before what everybody sees. Raises NotFound."""
        if is_id(word):
            found = await self.network_at(word)
            if found is not None and sees(found.value, principal):
                return found
        own, public = PROJECT_NETWORK_NAME.at(principal.project_id, word), NETWORK_NAME.at(word)
        names = await self.store.get(own, public)
        for key in (own, public):
            named = names.value(key)
            found = None if named is None else await self.network_at(decode(str, named))
            if found is not None and sees(found.value, principal):
                return found
        raise absent("network", word)

    async def networks(self, principal: Principal) -> tuple[list[Found[Network]], int]:
        """Every one that the caller sees, and the revision. Raises Unavailable."""
        snapshot = await self.store.list(NETWORK.under())
        found = readable(Network, snapshot)
        return [each for each in found if sees(each.value, principal)], snapshot.revision

    async def subnets_of(self, network: Network) -> list[Found[Subnet]]:
        """A network's, in the order they were made. One that is just being deleted is left out."""
        return await self.subnets_at(network.subnet_ids)

    async def subnets_at(self, ids: Sequence[str]) -> list[Found[Subnet]]:
        """Those that are there, each once, in this order."""
        found: list[Found[Subnet]] = []
        names = [SUBNET.at(each) for each in dict.fromkeys(ids)]
        for begin in range(0, len(names), READ_TOGETHER):
            keys = names[begin : begin + READ_TOGETHER]
            seen = await self.store.get(*keys)
            found += [it for key in keys if (it := seen_at(seen, SUBNET, key)) is not None]
        return found

    async def subnet(self, word: str, principal: Principal) -> Found[Subnet]:
        """By id, else by name among the project's own. Raises NotFound."""
        if is_id(word):
            found = await self._subnet_at(word, principal)
            if found is not None:
                return found
        key = SUBNET_NAME.at(principal.project_id, word)
        named = (await self.store.get(key)).value(key)
        found = None if named is None else await self._subnet_at(decode(str, named), principal)
        if found is None:
            raise absent("subnet", word)
        return found

    async def _subnet_at(self, subnet_id: str, principal: Principal) -> Found[Subnet] | None:
        key = SUBNET.at(subnet_id)
        found = seen_at(await self.store.get(key), SUBNET, key)
        if found is None:
            return None
        network = await self.network_at(found.value.network_id)
        return found if network is not None and sees(network.value, principal) else None

    async def network_at(self, network_id: str) -> Found[Network] | None:
        """By id, whoever's it is."""
        key = NETWORK.at(network_id)
        return seen_at(await self.store.get(key), NETWORK, key)


def seen_at(snapshot: Snapshot, kind: Key[V], key: str) -> Found[V] | None:
    """What a read saw at a key; None where it is absent."""
    value = snapshot.value(key)
    if value is None:
        return None
    return Found(decode(kind.record, value), snapshot.seen(key), snapshot.revision)


def sees(network: Network, principal: Principal) -> bool:
    """Whether the caller may know of the network."""
    return (
        network.shared
        or network.kind is not NetworkKind.TENANT
        or network.project_id == principal.project_id
        or principal.system_admin
    )


def check_owns(network: Network, principal: Principal) -> None:
    """Whether the caller may change a network that they see. Raises PermissionDenied."""
    if network.project_id != principal.project_id and not principal.system_admin:
        raise PermissionDenied(f"network {network.name} is not your project's to change")


def project_of(principal: Principal) -> str:
    """The project that is to own something. Raises PermissionDenied for a token that is for none."""
    if not principal.project_id:
        raise PermissionDenied("this needs a project; your token is for none")
    return principal.project_id


def named(mask: FieldMask, allowed: AbstractSet[str]) -> AbstractSet[str]:
    """The fields that an update names. Raises InvalidRequest for none, and for one that cannot be updated."""
    paths = frozenset(mask.paths)
    if not paths:
        raise InvalidRequest("update_mask names no field", field="update_mask")
    for path in sorted(paths - allowed):
        raise InvalidRequest(
            f"update_mask: {path!r} is none of {', '.join(sorted(allowed))}", field="update_mask"
        )
    return paths


def required_name(name: str) -> str:
    """The name of something that must have one. Raises InvalidRequest."""
    if not name:
        raise InvalidRequest("name is required: update_mask names it", field="name")
    return name


def position(name: str, resource_id: str) -> str:
    """Where a thing is in a list: by name, and by id where names are the same or there are none."""
    return f"{name}\0{resource_id}"
