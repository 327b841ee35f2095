"""What tenant networks must come to when a simulated world is at rest: each host follows the plan that the records make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from fabric.model.host import Session, SessionState
from fabric.model.network import Network, NetworkKind, Router, RouterInterface
from fabric.store import keys
from fabric.store.base import Store, Txn
from fabric.store.codec import decode, encode
from fabric.store.keys import Key
from tests.unit.network.plan_oracle import Model, expected

if TYPE_CHECKING:
    from tests.sim.world import World

V = TypeVar("V")

OUTSIDE: Final = Network(
    id="00000000-0000-4000-8000-0000000000b3",
    name="public",
    kind=NetworkKind.EXTERNAL,
    physical_network="external",
)
ROUTER_ID: Final = "00000000-0000-4000-8000-0000000000b5"


async def lead_out(store: Store) -> None:
    """Put a router that leads out at the gateway of the first subnet there is, so that hosts are chosen for it and lost."""
    subnet = min(await _all(store, keys.SUBNET), key=lambda each: each.id)
    router = Router(
        id=ROUTER_ID,
        name="out",
        project_id=subnet.project_id,
        vni=4712,
        external_network_id=OUTSIDE.id,
        external_mac="fa:16:3e:00:00:02",
        interfaces=(
            RouterInterface(
                network_id=subnet.network_id,
                subnet_id=subnet.id,
                address=subnet.gateway,
                mac="fa:16:3e:00:00:01",
            ),
        ),
    )
    put = {keys.NETWORK.at(OUTSIDE.id): OUTSIDE, keys.ROUTER.at(subnet.project_id, ROUTER_ID): router}
    await store.commit(Txn(put={key: encode(value) for key, value in put.items()}))


async def unfollowed(world: World) -> str | None:
    """Which host in session has not what the records say that it must have, or what is said of where ports are and is not so."""
    shared = world.servers["global"].memory
    model = await _model(shared)
    said: set[tuple[str, str, str, int]] = set()
    up: set[tuple[str, str]] = set()
    for cell in world.cells:
        store = world.servers[cell].memory
        sessions = {each.host: each for each in await _all(store, keys.SESSION)}
        for host in await _all(store, keys.HOST):
            if not _is_up(sessions.get(host.name)):
                continue
            up.add((cell, host.name))
            if world.machines[host.name].followed.plan != expected(host, model):
                return f"host {host.name} does not follow the plan that the records make"
        said |= {
            (port.id, cell, each.host, each.placement_epoch)
            for each in await _all(store, keys.INSTANCE)
            for port in each.ports
            if each.host and not port.is_host_local
        }
    bound = {(each.port_id, each.cell, each.host, each.placement_epoch) for each in model.bindings}
    if bound != said:
        return f"bindings are not what servers' records say: {sorted(bound ^ said)[:2]}"
    for gateway in model.gateways:
        if (gateway.cell, gateway.host) not in up:
            return f"a router leads out from host {gateway.host}, which is lost"
    return None


async def _model(shared: Store) -> Model:
    return Model(
        networks=await _all(shared, keys.NETWORK),
        subnets=await _all(shared, keys.SUBNET),
        ports=await _all(shared, keys.PORT),
        routers=await _all(shared, keys.ROUTER),
        floating_ips=await _all(shared, keys.FLOATING_IP),
        groups=await _all(shared, keys.SECURITY_GROUP),
        bindings=await _all(shared, keys.PORT_BINDING),
        gateways=await _all(shared, keys.ROUTER_GATEWAY),
    )


def _is_up(session: Session | None) -> bool:
    return session is not None and session.state is SessionState.UP


async def _all(store: Store, row: Key[V]) -> tuple[V, ...]:
    found = await store.list(row.under())
    return tuple(decode(row.record, each.value) for each in found.entries.values())
