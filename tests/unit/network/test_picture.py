"""What a picture costs: one change must not be dearer where there is much else."""

from __future__ import annotations

import time

from fabric.model.binding import PortBinding
from fabric.model.network import FixedAddress, NetworkPort
from fabric.model.security_group import Direction, EtherType, SecurityGroup, SecurityRule
from fabric.network.core.picture import HostRef, NetworkPicture

PORTS = 3000
HOSTS = 200


def test_a_network_with_thousands_of_ports_is_taken_in_without_a_look_at_all_of_them_for_each() -> None:
    """For each port all others of its network and of its group were gone through: with 4,000 of them a conductor that had just started did
    nothing else for half a minute, and its hosts' permits ran out.
    """
    picture = NetworkPicture()
    rule = SecurityRule(
        id="rule", direction=Direction.INGRESS, ether_type=EtherType.IPV4, remote_group_id="group"
    )
    picture.put(
        SecurityGroup, "group", SecurityGroup(id="group", name="default", project_id="p", rules=(rule,))
    )
    began_s = time.process_time()

    for number in range(PORTS):
        picture.put(PortBinding, f"port-{number}", _binding(number))
    for number in range(PORTS):
        picture.put(NetworkPort, f"port-{number}", _port(number))

    # A fifth of this is enough; before, it was three times as much.
    assert time.process_time() - began_s < 4.0
    assert picture.hosts_with("net") == {HostRef("east", f"h{number}") for number in range(HOSTS)}


def _binding(number: int) -> PortBinding:
    return PortBinding(
        port_id=f"port-{number}",
        network_id="net",
        instance_id=f"server-{number}",
        cell="east",
        host=f"h{number % HOSTS}",
        tunnel_address="192.0.2.1",
        placement_epoch=1,
    )


def _port(number: int) -> NetworkPort:
    address = FixedAddress(subnet_id="subnet", address=f"10.0.{number // 250}.{number % 250 + 1}")
    return NetworkPort(
        id=f"port-{number}",
        name="",
        project_id="p",
        network_id="net",
        mac=f"fa:16:3e:00:{number >> 8:02x}:{number & 255:02x}",
        fixed_addresses=(address,),
        security_group_ids=("group",),
        instance_id=f"server-{number}",
    )
