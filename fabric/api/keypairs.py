"""KeypairService: the caller's public keys. A private key never comes here; one that does by mistake is refused and not kept."""

from __future__ import annotations

from collections.abc import Callable

from fabric.api import ssh_keys
from fabric.api.convert import keypair_message
from fabric.api.named import absent, readable
from fabric.api.once import Change, Once
from fabric.api.pages import Pages
from fabric.clock import Clock
from fabric.errors import AlreadyExists
from fabric.ids import Ids
from fabric.model.identity import Principal
from fabric.model.keypair import Keypair
from fabric.pb.compute.v1 import keypair_service_pb2 as pb
from fabric.store.base import Store
from fabric.store.codec import decode, encode
from fabric.store.keys import KEYPAIR


class KeypairHandlers:
    """The RPCs, as functions of a request and who asks. Everything is under the caller's own id."""

    def __init__(self, store: Store, *, clock: Clock, ids: Ids, jitter: Callable[[], float]) -> None:
        self._store = store
        self._once = Once(store, clock=clock, jitter=jitter)
        self._pages = Pages()
        self._clock = clock
        self._ids = ids

    async def get_keypair(self, request: pb.GetKeypairRequest, principal: Principal) -> pb.GetKeypairResponse:
        key = KEYPAIR.at(principal.user_id, request.keypair)
        seen = await self._store.get(key)
        value = seen.value(key)
        if value is None:
            raise absent("keypair", request.keypair)
        return pb.GetKeypairResponse(keypair=keypair_message(decode(Keypair, value)), revision=seen.revision)

    async def list_keypairs(
        self, request: pb.ListKeypairsRequest, principal: Principal
    ) -> pb.ListKeypairsResponse:
        snapshot = await self._store.list(KEYPAIR.under(principal.user_id))
        found = [each.value for each in readable(Keypair, snapshot)]
        page, token = self._pages.cut(
            sorted(found, key=lambda each: each.name), request, key=lambda each: each.name
        )
        return pb.ListKeypairsResponse(
            keypairs=[keypair_message(each) for each in page],
            next_page_token=token,
            revision=snapshot.revision,
        )

    async def create_keypair(
        self, request: pb.CreateKeypairRequest, principal: Principal
    ) -> pb.CreateKeypairResponse:
        asked = request.keypair
        public = ssh_keys.parse(asked.public_key, field="keypair.public_key")
        key = KEYPAIR.at(principal.user_id, asked.name)
        keypair = Keypair(
            id=self._ids.new_id(),
            name=asked.name,
            user_id=principal.user_id,
            public_key=public.line,
            fingerprint=public.fingerprint,
            create_time_ms=self._clock.now_ms(),
        )

        async def decide() -> Change:
            if key in (await self._store.get(key)).entries:
                raise AlreadyExists(f"you have a keypair {asked.name!r} already", name=asked.name)
            return Change(resource_id=asked.name, unchanged={key: 0}, put={key: encode(keypair)})

        done = await self._once.answer(decide, request, principal)
        made = await self.get_keypair(pb.GetKeypairRequest(keypair=asked.name), principal)
        return pb.CreateKeypairResponse(keypair=made.keypair, revision=done.revision)

    async def delete_keypair(
        self, request: pb.DeleteKeypairRequest, principal: Principal
    ) -> pb.DeleteKeypairResponse:
        key = KEYPAIR.at(principal.user_id, request.keypair)

        async def decide() -> Change:
            seen = await self._store.get(key)
            if key not in seen.entries:
                raise absent("keypair", request.keypair)
            return Change(resource_id=request.keypair, unchanged={key: seen.seen(key)}, delete=(key,))

        done = await self._once.answer(decide, request, principal)
        return pb.DeleteKeypairResponse(revision=done.revision)
