"""Routers and floating IPs: what may be joined, and what leads where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fabric.errors import InvalidRequest, Reason, WrongState
from fabric.model.network import FixedAddress, FloatingIp, NetworkPort, Router, RouterInterface, Subnet
from fabric.network.core import ranges
from fabric.network.core.subnets import cidr_of, version_of

INTERFACES_LIMIT = 64
"""Subnets that one router joins."""


def attached(router: Router, subnet: Subnet, joined: Sequence[Subnet], *, mac: str, now_ms: int) -> Router:
    """The router with an interface at the subnet's gateway address.

    Args:
        router: as it is.
        subnet: what is to be joined to it.
        joined: the subnets of its interfaces, and those of its gateway's network that it has an address in.
        mac: a free one on the subnet's network.
        now_ms: when.

    Raises:
        InvalidRequest: the subnet has no gateway address, or overlaps one that is joined: a packet must have one way to go.
        WrongState: it is joined already, or the router has as many interfaces as it may have.
    """
    if not subnet.gateway:
        raise InvalidRequest(
            f"subnet {subnet.name or subnet.id} has no gateway address for a router", field="subnet"
        )
    if any(each.subnet_id == subnet.id for each in router.interfaces):
        raise WrongState(
            f"router {router.name} is in subnet {subnet.name or subnet.id} already",
            reason=Reason.RESOURCE_IN_USE,
            router=router.id,
            subnet=subnet.id,
        )
    if len(router.interfaces) >= INTERFACES_LIMIT:
        raise WrongState(f"router {router.name} joins {INTERFACES_LIMIT} subnets, the most that one may")
    check_apart(subnet, joined, router, field="subnet")
    interface = RouterInterface(
        network_id=subnet.network_id, subnet_id=subnet.id, address=subnet.gateway, mac=mac
    )
    return replace(router, interfaces=(*router.interfaces, interface), update_time_ms=now_ms)


def detached(router: Router, subnet: Subnet, *, now_ms: int) -> tuple[Router, RouterInterface]:
    """The router without its interface in the subnet, and that interface. Raises InvalidRequest where it has none there."""
    for each in router.interfaces:
        if each.subnet_id == subnet.id:
            rest = tuple(other for other in router.interfaces if other is not each)
            return replace(router, interfaces=rest, update_time_ms=now_ms), each
    raise InvalidRequest(f"router {router.name} is not in subnet {subnet.name or subnet.id}", field="subnet")


def check_apart(subnet: Subnet, joined: Sequence[Subnet], router: Router, *, field: str) -> None:
    """Whether no address of the subnet is in another that the router knows. Raises InvalidRequest."""
    for other in joined:
        if other.id != subnet.id and ranges.overlap(cidr_of(subnet), cidr_of(other)):
            raise InvalidRequest(
                f"{field}: {subnet.cidr} of subnet {subnet.name or subnet.id} overlaps {other.cidr} of"
                f" {other.name or other.id}, where router {router.name} is too",
                field=field,
            )


def check_no_interfaces(router: Router) -> None:
    """Whether the router may go. Raises WrongState."""
    if router.interfaces:
        raise WrongState(
            f"router {router.name} is in {len(router.interfaces)} subnets; remove it from them first",
            reason=Reason.RESOURCE_IN_USE,
            router=router.id,
        )


def target(port: NetworkPort, asked: str, subnets: Sequence[Subnet], *, path: str) -> FixedAddress:
    """Which of a port's addresses a floating IP leads to: an IPv4 one, its only one where nothing is asked.

    Raises:
        InvalidRequest: naming the field, below `path`: the port has no such address, none at all, or several.
    """
    four = {each.id for each in subnets if version_of(each) == 4}
    mine = [each for each in port.fixed_addresses if each.subnet_id in four]
    if asked:
        wanted = str(ranges.address(asked, field=f"{path}fixed_ip"))
        mine = [each for each in mine if each.address == wanted]
        if not mine:
            raise InvalidRequest(
                f"{path}fixed_ip: {wanted} is no IPv4 address of port {port.name or port.id}",
                field=f"{path}fixed_ip",
            )
    if not mine:
        raise InvalidRequest(
            f"{path}port: port {port.name or port.id} has no IPv4 address", field=f"{path}port"
        )
    if len(mine) > 1:
        several = ", ".join(each.address for each in mine)
        raise InvalidRequest(
            f"{path}fixed_ip: port {port.name or port.id} has several addresses, say which: {several}",
            field=f"{path}fixed_ip",
        )
    return mine[0]


def check_reaches(router: Router | None, floating_ip: FloatingIp, subnet: Subnet) -> None:
    """Whether the router is in the subnet and leads to the floating IP's network. Raises WrongState.

    That it was found at the subnet's gateway does not say it: it may have left since.
    """
    is_in = router is not None and any(each.subnet_id == subnet.id for each in router.interfaces)
    if router is None or not is_in or router.external_network_id != floating_ip.network_id:
        raise WrongState(
            f"no router leads from subnet {subnet.name or subnet.id} to the floating IP's network:"
            " add one to the subnet and set its external gateway",
            subnet=subnet.id,
            network=floating_ip.network_id,
        )


def led(
    floating_ip: FloatingIp, port: NetworkPort, fixed: FixedAddress, router: Router, *, now_ms: int
) -> tuple[FloatingIp, NetworkPort]:
    """The floating IP leading to a port's address, and the port that knows it.

    Raises:
        WrongState: another floating IP leads there.
    """
    there = port.floating_ips.get(fixed.address, floating_ip.id)
    if there != floating_ip.id:
        raise WrongState(
            f"floating IP {there} leads to {fixed.address} already; disassociate it first",
            reason=Reason.RESOURCE_IN_USE,
            port=port.id,
            floating_ip=there,
        )
    return (
        replace(
            floating_ip,
            port_id=port.id,
            fixed_address=fixed.address,
            fixed_subnet_id=fixed.subnet_id,
            router_id=router.id,
            update_time_ms=now_ms,
        ),
        replace(
            port, floating_ips={**port.floating_ips, fixed.address: floating_ip.id}, update_time_ms=now_ms
        ),
    )


def loosed(floating_ip: FloatingIp, *, now_ms: int) -> FloatingIp:
    """The floating IP leading to nothing."""
    return replace(
        floating_ip, port_id="", fixed_address="", fixed_subnet_id="", router_id="", update_time_ms=now_ms
    )


def released(port: NetworkPort, floating_ip: FloatingIp, *, now_ms: int) -> NetworkPort:
    """The port that the floating IP no longer leads to."""
    rest = {at: each for at, each in port.floating_ips.items() if each != floating_ip.id}
    return replace(port, floating_ips=rest, update_time_ms=now_ms)
