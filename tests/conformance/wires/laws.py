"""What every data plane must do, as seen from hostd's shell."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from fabric.model.network_plan import NetworkPlan
from hostd.core.faults import FaultCode
from hostd.core.tap_names import tap_name
from hostd.network.base import NetworkError, Wires, Wiring
from tests.conformance.guests import a_guest, a_plan, a_port, a_tenant_port, an_id

Law = Callable[[Wires], Awaitable[None]]

ONE = a_guest("one", ports=(a_port(1),))
TWO = a_guest("two", ports=(a_port(2), a_port(3)))
TENANT = a_guest("tenant", ports=(a_tenant_port(4),))


async def preparing_twice_is_success_and_wires_nobody(wires: Wires) -> None:
    await wires.prepare()
    await wires.prepare()

    assert await wires.plugged() == {}


async def plugging_gives_an_interface_per_port_with_its_mac_and_mtu(wires: Wires) -> None:
    guest = replace(TWO, ports=(a_port(2, mtu=1400), a_port(3)))

    interfaces = await wires.plug(Wiring(guest=guest, placement_epoch=1))

    assert [(each.tap, each.mac, each.mtu) for each in interfaces] == [
        (tap_name(a_port(2).id), a_port(2).mac, 1400),
        (tap_name(a_port(3).id), a_port(3).mac, 1500),
    ]
    assert await wires.plugged() == {TWO.id: 1}


async def plugging_twice_is_success(wires: Wires) -> None:
    first = await wires.plug(Wiring(guest=ONE, placement_epoch=1))

    assert await wires.plug(Wiring(guest=ONE, placement_epoch=1)) == first
    assert await wires.plugged() == {ONE.id: 1}


async def what_a_plug_that_is_given_up_leaves_is_seen_and_goes(wires: Wires) -> None:
    """A server deleted while it was being wired left its record, unseen: its address was in use on that host for ever after."""
    for yields in range(0, 40, 3):
        plugging = asyncio.create_task(wires.plug(Wiring(guest=ONE, placement_epoch=1)))
        for _ in range(yields):
            await asyncio.sleep(0)
        await asyncio.sleep(yields / 2000)
        plugging.cancel()
        await asyncio.gather(plugging, return_exceptions=True)
        for instance_id, epoch in (await wires.plugged()).items():
            await wires.unplug(instance_id, epoch)

        heir = a_guest("heir", ports=ONE.ports)
        await wires.plug(Wiring(guest=heir, placement_epoch=1))
        await wires.unplug(heir.id, 1)


async def telling_wires_nobody_and_changes_no_interface(wires: Wires) -> None:
    one = Wiring(guest=ONE, placement_epoch=1)
    await wires.tell(one)
    assert await wires.plugged() == {}

    before = await wires.plug(one)
    await wires.tell(replace(one, guest=replace(one.guest, metadata={"role": "web"})))
    assert await wires.plugged() == {one.guest.id: one.placement_epoch}
    assert await wires.plug(one) == before


async def unplugging_takes_one_guest_and_twice_is_success(wires: Wires) -> None:
    await wires.plug(Wiring(guest=ONE, placement_epoch=1))
    await wires.plug(Wiring(guest=TWO, placement_epoch=1))
    await wires.unplug(ONE.id, 1)
    await wires.unplug(ONE.id, 1)

    assert await wires.plugged() == {TWO.id: 1}


async def an_old_order_to_unplug_leaves_a_newer_placement(wires: Wires) -> None:
    await wires.plug(Wiring(guest=ONE, placement_epoch=5))
    await wires.unplug(ONE.id, 4)

    assert await wires.plugged() == {ONE.id: 5}


async def a_newer_placement_takes_over_and_an_older_one_is_refused(wires: Wires) -> None:
    await wires.plug(Wiring(guest=ONE, placement_epoch=1))
    await wires.plug(Wiring(guest=ONE, placement_epoch=2))

    with pytest.raises(NetworkError) as refused:
        await wires.plug(Wiring(guest=ONE, placement_epoch=1))
    assert refused.value.code == FaultCode.NETWORK_FAILED
    assert await wires.plugged() == {ONE.id: 2}


async def two_guests_cannot_have_one_address(wires: Wires) -> None:
    await wires.plug(Wiring(guest=ONE, placement_epoch=1))

    with pytest.raises(NetworkError):
        await wires.plug(Wiring(guest=replace(TWO, ports=ONE.ports), placement_epoch=1))
    assert await wires.plugged() == {ONE.id: 1}


async def closing_twice_is_success_and_leaves_wires(wires: Wires) -> None:
    await wires.plug(Wiring(guest=ONE, placement_epoch=1))
    await wires.close()
    await wires.close()

    assert await wires.plugged() == {ONE.id: 1}


async def a_guest_on_a_tenant_network_is_plugged_when_its_port_is_filtered(wires: Wires) -> None:
    plugging = asyncio.ensure_future(wires.plug(Wiring(guest=TENANT, placement_epoch=1)))
    await asyncio.sleep(0)
    assert not plugging.done()

    await wires.follow(a_plan(TENANT))

    assert [each.mac for each in await plugging] == [TENANT.ports[0].mac]
    assert await wires.plugged() == {TENANT.id: 1}


async def following_twice_is_success_and_wires_nobody(wires: Wires) -> None:
    await wires.follow(a_plan(TENANT))
    await wires.follow(a_plan(TENANT))

    assert await wires.plugged() == {}


async def a_plan_that_nothing_can_be_made_of_is_refused_and_the_one_before_holds(wires: Wires) -> None:
    """It was kept, and gone by: no guest of the host could be wired, on whatever network, until another plan came."""
    plan = a_plan(TENANT)
    await wires.follow(plan)
    (port,) = plan.filters.ports
    broken = replace(plan, filters=replace(plan.filters, ports=(replace(port, mac=port.mac.upper()),)))

    with pytest.raises(NetworkError) as refused:
        await wires.follow(broken)

    assert refused.value.code == FaultCode.NETWORK_FAILED
    await wires.plug(Wiring(guest=ONE, placement_epoch=1))
    await wires.plug(Wiring(guest=TENANT, placement_epoch=1))
    await wires.prepare()
    assert await wires.plugged() == {ONE.id: 1, TENANT.id: 1}


async def a_guest_may_be_on_the_hosts_own_network_and_on_a_tenants(wires: Wires) -> None:
    guest = a_guest("both", ports=(a_tenant_port(4), a_port(1), a_tenant_port(5)))
    await wires.follow(a_plan(guest))

    interfaces = await wires.plug(Wiring(guest=guest, placement_epoch=1))
    assert [(each.tap, each.mac, each.mtu) for each in interfaces] == [
        (tap_name(port.id), port.mac, port.mtu) for port in guest.ports
    ]
    assert await wires.wired(guest.id) == {port.mac for port in guest.ports}

    await wires.unplug(guest.id, 1)
    assert await wires.plugged() == {}


async def two_tenants_may_have_one_mac_and_one_address(wires: Wires) -> None:
    ours = TENANT.ports[0]
    theirs = replace(ours, id=an_id("theirs"), network_id=an_id("their network"), vni=ours.vni + 1)
    other = a_guest("other", ports=(theirs,))
    await wires.follow(a_plan(TENANT, other))

    for guest in (TENANT, other):
        await wires.plug(Wiring(guest=guest, placement_epoch=1))

    assert await wires.plugged() == {TENANT.id: 1, other.id: 1}


async def a_plan_without_a_wired_guests_port_leaves_it_its_wires(wires: Wires) -> None:
    await wires.follow(a_plan(TENANT))
    await wires.plug(Wiring(guest=TENANT, placement_epoch=1))

    await wires.follow(NetworkPlan())

    assert await wires.plugged() == {TENANT.id: 1}
    await wires.unplug(TENANT.id, 1)
    assert await wires.plugged() == {}


LAWS: tuple[Law, ...] = (
    preparing_twice_is_success_and_wires_nobody,
    plugging_gives_an_interface_per_port_with_its_mac_and_mtu,
    plugging_twice_is_success,
    what_a_plug_that_is_given_up_leaves_is_seen_and_goes,
    telling_wires_nobody_and_changes_no_interface,
    unplugging_takes_one_guest_and_twice_is_success,
    an_old_order_to_unplug_leaves_a_newer_placement,
    a_newer_placement_takes_over_and_an_older_one_is_refused,
    two_guests_cannot_have_one_address,
    closing_twice_is_success_and_leaves_wires,
    a_guest_on_a_tenant_network_is_plugged_when_its_port_is_filtered,
    following_twice_is_success_and_wires_nobody,
    a_plan_that_nothing_can_be_made_of_is_refused_and_the_one_before_holds,
    a_guest_may_be_on_the_hosts_own_network_and_on_a_tenants,
    a_plan_without_a_wired_guests_port_leaves_it_its_wires,
    two_tenants_may_have_one_mac_and_one_address,
)
