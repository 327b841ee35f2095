"""FloatingIpService: external addresses that lead to ports, by the router that is at the gateway of the port's subnet."""

from __future__ import annotations

from dataclasses import replace

from fabric.api.draft import Draft
from fabric.api.named import Found, absent, named_by
from fabric.api.network_desk import Desk, named, project_of, seen_at
from fabric.api.network_messages import floating_ip_message
from fabric.errors import InvalidRequest, Reason, WrongState
from fabric.ids import is_id
from fabric.model.identity import Principal
from fabric.model.network import FixedAddress, FloatingIp, Network, NetworkKind, NetworkPort, Router, Subnet
from fabric.network.core import ranges
from fabric.network.core.routers import check_reaches, led, loosed, released, target
from fabric.network.core.subnets import asked_address, cidr_of, version_of
from fabric.pb.network.v1 import floating_ip_service_pb2 as pb
from fabric.store.codec import decode
from fabric.store.keys import (
    ADDRESS,
    FLOATING_IP,
    NETWORK,
    NETWORK_USE,
    PORT,
    ROUTER,
    ROUTER_FLOATING_IP,
    SUBNET,
)

UPDATABLE = frozenset({"description", "port", "fixed_ip"})


class FloatingIpHandlers:
    """The RPCs, as functions of a request and who asks."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def get_floating_ip(
        self, request: pb.GetFloatingIpRequest, principal: Principal
    ) -> pb.GetFloatingIpResponse:
        found = await self._get(request.floating_ip, principal.project_id)
        return pb.GetFloatingIpResponse(
            floating_ip=floating_ip_message(found.value, found.mod_revision), revision=found.revision
        )

    async def list_floating_ips(
        self, request: pb.ListFloatingIpsRequest, principal: Principal
    ) -> pb.ListFloatingIpsResponse:
        found, revision = await self._desk.floating_ips.all(principal.project_id)
        page, token = self._desk.pages.cut(sorted(found, key=_position), request, key=_position)
        return pb.ListFloatingIpsResponse(
            floating_ips=[floating_ip_message(each.value, each.mod_revision) for each in page],
            next_page_token=token,
            revision=revision,
        )

    async def create_floating_ip(
        self, request: pb.CreateFloatingIpRequest, principal: Principal
    ) -> pb.CreateFloatingIpResponse:
        asked, desk = request.floating_ip, self._desk
        project_id, floating_ip_id = project_of(principal), desk.ids.new_id()
        if asked.fixed_ip and not asked.port:
            raise InvalidRequest("floating_ip.fixed_ip is of a port: say which", field="floating_ip.port")

        async def decide(draft: Draft) -> str:
            seed, now_ms = f"{floating_ip_id}/{draft.attempt}", desk.clock.now_ms()
            key = FLOATING_IP.at(project_id, floating_ip_id)
            network = await named_by("floating_ip.network", desk.network(asked.network, principal))
            outside = await self._address(draft, network, asked.ip_address, seed=seed)
            draft.take(ADDRESS.at(outside.subnet_id, outside.address), key)
            floating_ip = FloatingIp(
                id=floating_ip_id,
                project_id=project_id,
                network_id=network.value.id,
                subnet_id=outside.subnet_id,
                address=outside.address,
                description=asked.description,
                quota_slot=await desk.take_slot(draft, project_id, "floating_ips", floating_ip_id, seed=seed),
                create_time_ms=now_ms,
                update_time_ms=now_ms,
            )
            if asked.port:
                floating_ip = await self._lead(
                    draft, floating_ip, asked.port, asked.fixed_ip, principal, path="floating_ip."
                )
            draft.write(key, floating_ip, seen=0)
            return floating_ip_id

        done = await desk.make(decide, request, principal)
        made = await self._get(done.resource_id, project_id)
        return pb.CreateFloatingIpResponse(
            floating_ip=floating_ip_message(made.value, made.mod_revision), revision=done.revision
        )

    async def update_floating_ip(
        self, request: pb.UpdateFloatingIpRequest, principal: Principal
    ) -> pb.UpdateFloatingIpResponse:
        desk, paths = self._desk, named(request.update_mask, UPDATABLE)
        if "fixed_ip" in paths and "port" not in paths:
            raise InvalidRequest("fixed_ip is of a port: name both in update_mask", field="update_mask")

        async def decide(draft: Draft) -> str:
            found = await self._get(request.floating_ip, principal.project_id)
            floating_ip = replace(
                found.value,
                description=request.description if "description" in paths else found.value.description,
                update_time_ms=desk.clock.now_ms(),
            )
            if "port" in paths:
                await self._let_go(draft, floating_ip)
                floating_ip = loosed(floating_ip, now_ms=desk.clock.now_ms())
                if request.port:
                    floating_ip = await self._lead(
                        draft, floating_ip, request.port, request.fixed_ip, principal, path=""
                    )
            draft.write(
                FLOATING_IP.at(floating_ip.project_id, floating_ip.id), floating_ip, seen=found.mod_revision
            )
            return floating_ip.id

        done = await desk.make(decide, request, principal)
        made = await self._get(done.resource_id, principal.project_id)
        return pb.UpdateFloatingIpResponse(
            floating_ip=floating_ip_message(made.value, made.mod_revision), revision=done.revision
        )

    async def delete_floating_ip(
        self, request: pb.DeleteFloatingIpRequest, principal: Principal
    ) -> pb.DeleteFloatingIpResponse:
        desk = self._desk

        async def decide(draft: Draft) -> str:
            found = await self._get(request.floating_ip, principal.project_id)
            floating_ip = found.value
            await self._let_go(draft, floating_ip)
            draft.remove(FLOATING_IP.at(floating_ip.project_id, floating_ip.id), seen=found.mod_revision)
            draft.free(ADDRESS.at(floating_ip.subnet_id, floating_ip.address))
            if floating_ip.quota_slot:
                draft.free(
                    NETWORK_USE.at(floating_ip.project_id, "floating_ips", str(floating_ip.quota_slot))
                )
            return floating_ip.id

        done = await desk.make(decide, request, principal)
        return pb.DeleteFloatingIpResponse(revision=done.revision)

    # ------------------------------------------------------------------ looking up

    async def _get(self, word: str, project_id: str) -> Found[FloatingIp]:
        """By id, else by address. Raises NotFound, InvalidRequest where external networks share the address."""
        if is_id(word):
            return await self._desk.floating_ips.get(project_id, word)
        mine = [
            each for each in (await self._desk.floating_ips.all(project_id))[0] if each.value.address == word
        ]
        if not mine:
            raise absent("floating IP", word)
        if len(mine) > 1:
            ids = ", ".join(sorted(each.value.id for each in mine))
            raise InvalidRequest(
                f"{len(mine)} floating IPs are {word}, of different networks; say which by its id: {ids}",
                field="floating_ip",
                reason=Reason.NAME_AMBIGUOUS,
            )
        return mine[0]

    async def _address(self, draft: Draft, network: Found[Network], asked: str, *, seed: str) -> FixedAddress:
        """An IPv4 address of an external network, that is to be taken. NAT is between IPv4 addresses."""
        where, which = "floating_ip.network", "floating_ip.ip_address"
        if network.value.kind is not NetworkKind.EXTERNAL:
            raise InvalidRequest(f"{where}: network {network.value.name} is not external", field=where)
        draft.read(NETWORK.at(network.value.id), network.mod_revision)
        subnets = [each for each in await self._desk.subnets_of(network.value) if version_of(each.value) == 4]
        if not subnets:
            raise InvalidRequest(f"{where}: network {network.value.name} has no IPv4 subnet", field=where)
        if asked:
            fixed = await self._asked_address([each.value for each in subnets], asked, field=which)
        else:
            fixed = await self._desk.holdings.free_address([each.value for each in subnets], seed=seed)
        (subnet,) = (each for each in subnets if each.value.id == fixed.subnet_id)
        draft.read(SUBNET.at(fixed.subnet_id), subnet.mod_revision)
        return fixed

    async def _asked_address(self, subnets: list[Subnet], asked: str, *, field: str) -> FixedAddress:
        number = ranges.address(asked, field=field)
        for subnet in subnets:
            if number in cidr_of(subnet):
                address = asked_address(subnet, asked, field=field)
                key = ADDRESS.at(subnet.id, address)
                if key in (await self._desk.store.get(key)).entries:
                    raise WrongState(f"{address} is in use", reason=Reason.RESOURCE_IN_USE)
                return FixedAddress(subnet_id=subnet.id, address=address)
        raise InvalidRequest(f"{field}: {asked} is in no IPv4 subnet of the network", field=field)

    # ------------------------------------------------------------------ leading

    async def _lead(
        self,
        draft: Draft,
        floating_ip: FloatingIp,
        port_word: str,
        fixed_ip: str,
        principal: Principal,
        *,
        path: str,
    ) -> FloatingIp:
        """The floating IP leading to a port. The port is written too: so it cannot end, or be led to twice, meanwhile."""
        found = await named_by(f"{path}port", self._desk.ports.get(floating_ip.project_id, port_word))
        port, key = found.value, PORT.at(found.value.project_id, found.value.id)
        if key in draft.put:
            # It leads to another address of the same port now: that it no longer leads to this one is part of the same write.
            port = decode(NetworkPort, draft.put[key])
        subnets = [
            each.value
            for each in await self._desk.subnets_at([each.subnet_id for each in port.fixed_addresses])
        ]
        fixed = target(port, fixed_ip, subnets, path=path)
        (subnet,) = (each for each in subnets if each.id == fixed.subnet_id)
        router = await self._router(subnet)
        check_reaches(None if router is None else router.value, floating_ip, subnet)
        assert router is not None
        draft.read(ROUTER.at(router.value.project_id, router.value.id), router.mod_revision)
        after, port = led(floating_ip, port, fixed, router.value, now_ms=self._desk.clock.now_ms())
        draft.write(key, port, seen=found.mod_revision)
        reference = ROUTER_FLOATING_IP.at(router.value.id, subnet.id, floating_ip.id)
        if reference in draft.delete:
            draft.delete.remove(reference)
        else:
            draft.take(reference, floating_ip.id)
        return after

    async def _let_go(self, draft: Draft, floating_ip: FloatingIp) -> None:
        """Tell the port that the floating IP leads to it no longer."""
        if not floating_ip.port_id:
            return
        key = PORT.at(floating_ip.project_id, floating_ip.port_id)
        found = seen_at(await self._desk.store.get(key), PORT, key)
        if found is not None:
            after = released(found.value, floating_ip, now_ms=self._desk.clock.now_ms())
            draft.write(key, after, seen=found.mod_revision)
        draft.free(ROUTER_FLOATING_IP.at(floating_ip.router_id, floating_ip.fixed_subnet_id, floating_ip.id))

    async def _router(self, subnet: Subnet) -> Found[Router] | None:
        """The router at a subnet's gateway address: the address says who holds it."""
        if not subnet.gateway:
            return None
        address = ADDRESS.at(subnet.id, subnet.gateway)
        held = (await self._desk.store.get(address)).value(address)
        if held is None:
            return None
        key = decode(str, held)
        return seen_at(await self._desk.store.get(key), ROUTER, key)


def _position(found: Found[FloatingIp]) -> str:
    """By address: as many digits each, so that they are in the order of numbers."""
    number = int(ranges.address(found.value.address, field="address"))
    return f"{number:039}\0{found.value.id}"
