"""How soon a rule of a security group is what hosts filter by: from the API's RPC to each host having followed the plan with it.

Real gRPC, mTLS and etcd, and daemons as they ship; the kernel's part is the bench `firewall`'s. The group has as many rules as one may
have, and a port on each host. All daemons share two processes on the machine's cores, where each would have a host of its own: what one
host needs to read a plan is in the note, and is most of what the last hosts wait for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from fabric.client import Client
from fabric.client.security_groups import SecurityGroups
from fabric.model.firewall import HostFilters
from fabric.model.image import ImageFormat
from fabric.model.instance import Guest, ImageRef, Instance, Request
from fabric.model.network import FixedAddress, Network, NetworkKind, NetworkPort, Port, Subnet
from fabric.model.network_plan import NetworkPlan
from fabric.model.security_group import Direction, EtherType, SecurityGroup, SecurityRule
from fabric.model.states import VmState
from fabric.network.core.filters import rule_group
from fabric.rpc.plan_codec import pack_plan, unpack_plan
from fabric.store.base import Store, Txn
from fabric.store.codec import encode
from fabric.store.keys import INSTANCE, NETWORK, PORT, SECURITY_GROUP, SECURITY_GROUP_MEMBER, SUBNET
from tests.bench.control_plane import CELL, ControlPlane, control_plane
from tests.bench.measure import Row, median, percentile

BENCH: Final = "rules"
HOSTS: Final = 50
RULES: Final = 999
"""One fewer than a group may have: the changes add one, and take it away."""
CHANGES: Final = 40
PAUSE_S: Final = 0.5
PATIENCE_S: Final = 60.0
HOST_PROCESSES: Final = 2

NET: Final = "00000000-0000-4000-8000-00000000000a"
SUB: Final = "00000000-0000-4000-8000-00000000000b"
GROUP: Final = "00000000-0000-4000-8000-00000000000c"


class Followed:
    """What the hosts' daemons write down of the plans that they have followed (`fake_hosts`)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._seen: dict[str, tuple[float, int]] = {}

    async def until(self, rules: int, hosts: int) -> Mapping[str, float]:
        """When each host had that many rules, once so many have."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                self._read()
                found = {host: at_s for host, (at_s, count) in self._seen.items() if count == rules}
                if len(found) >= hosts:
                    return found
                await asyncio.sleep(0.02)

    def _read(self) -> None:
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.decode("ascii").splitlines():
            host, at_s, count = line.split()
            self._seen[host] = float(at_s), int(count)


def run() -> list[Row]:
    """All numbers of this bench."""
    return asyncio.run(_measured())


async def _measured() -> list[Row]:
    with TemporaryDirectory(prefix="cf-rules-") as folder:
        path = Path(folder) / "followed"
        path.touch()
        environment = {"FABRIC_BENCH_FOLLOWED": str(path)}
        async with control_plane(
            hosts=HOSTS + 1, host_processes=HOST_PROCESSES, environment=environment
        ) as plane:
            with Client(plane.endpoint, plane.ca, token=await asyncio.to_thread(plane.log_in)) as client:
                await _model(plane, client)
                return await _changed(client.security_groups, Followed(path))


async def _model(plane: ControlPlane, client: Client) -> None:
    """One network with a port on each host, all in one group."""
    project = (await asyncio.to_thread(client.projects.list))[0].id
    put = {
        NETWORK.at(NET): Network(
            id=NET, name="blue", kind=NetworkKind.TENANT, vni=42, project_id=project, subnet_ids=(SUB,)
        ),
        SUBNET.at(SUB): Subnet(
            id=SUB, name="", project_id=project, network_id=NET, cidr="10.0.0.0/24", gateway="10.0.0.1"
        ),
        SECURITY_GROUP.at(project, GROUP): SecurityGroup(
            id=GROUP, name="bench", project_id=project, rules=tuple(_rules())
        ),
    }
    await _commit(plane.stores["global"], put)
    hosts = plane.topology.hosts[1:]
    for place, host in enumerate(hosts, start=1):
        port = _port(place, project)
        await _commit(
            plane.stores["global"],
            {PORT.at(project, port.id): port, SECURITY_GROUP_MEMBER.at(GROUP, port.id): project},
        )
        await _commit(plane.stores[CELL], {INSTANCE.at(port.instance_id): _server(place, host.name, project)})


async def _changed(groups: SecurityGroups, followed: Followed) -> list[Row]:
    await followed.until(RULES, HOSTS)
    each_ms: list[float] = []
    last_ms: list[float] = []
    rule = ""
    for _ in range(CHANGES):
        await asyncio.sleep(PAUSE_S)
        sent_s = time.monotonic()
        if rule:
            await asyncio.to_thread(groups.delete_rule, rule)
            rule, rules = "", RULES
        else:
            made = await asyncio.to_thread(
                lambda: groups.create_rule(group=GROUP, protocol="tcp", port_min=9, port_max=9)
            )
            rule, rules = made.id, RULES + 1
        found = await followed.until(rules, HOSTS)
        waited = [(at_s - sent_s) * 1000 for at_s in found.values()]
        each_ms += waited
        last_ms.append(max(waited))
    what = f"{RULES} rules, {HOSTS} hosts"
    return [
        median(
            BENCH, f"{what}: RPC to followed p50", each_ms, "ms", note=f"reading one: {_reading_ms():.0f} ms"
        ),
        Row(
            bench=BENCH,
            what=f"{what}: RPC to followed p99",
            value=percentile(each_ms, 0.99),
            unit="ms",
            n=len(each_ms),
            goal="< 1000",
        ),
        median(BENCH, f"{what}: RPC to the last host", last_ms, "ms"),
    ]


def _reading_ms() -> float:
    group = SecurityGroup(id=GROUP, name="", project_id="", rules=tuple(_rules()))
    data = pack_plan(NetworkPlan(filters=HostFilters(groups=(rule_group(group),))))
    began_s = time.perf_counter()
    unpack_plan(data)
    return (time.perf_counter() - began_s) * 1000


async def _commit(store: Store, values: Mapping[str, object]) -> None:
    await store.commit(Txn(put={key: encode(value) for key, value in values.items()}))


def _rules() -> Iterator[SecurityRule]:
    for number in range(RULES):
        yield SecurityRule(
            id=f"00000000-0000-4000-9000-{number:012d}",
            direction=Direction.INGRESS,
            ether_type=EtherType.IPV4,
            protocol=6,
            port_min=1000 + number,
            port_max=1000 + number,
            remote_cidr=f"10.{number % 250}.0.0/16",
        )


def _port(place: int, project: str) -> NetworkPort:
    return NetworkPort(
        id=f"00000000-0000-4000-a000-{place:012d}",
        name="",
        project_id=project,
        network_id=NET,
        mac=f"fa:16:3e:00:00:{place:02x}",
        fixed_addresses=(FixedAddress(subnet_id=SUB, address=f"10.0.0.{10 + place}"),),
        security_group_ids=(GROUP,),
        instance_id=f"00000000-0000-4000-b000-{place:012d}",
    )


def _server(place: int, host: str, project: str) -> Instance:
    """A record that no host was given orders for: its port has a place, and that is all that counts here."""
    port = _port(place, project)
    image = ImageRef(id=NET, name="", format=ImageFormat.RAW, sha256="", size_bytes=1, virtual_size_bytes=1)
    interface = Port(
        id=port.id,
        network_id=NET,
        network_name="blue",
        mac=port.mac,
        address=port.fixed_addresses[0].address,
        prefix_length=24,
        gateway="10.0.0.1",
        vni=42,
    )
    guest = Guest(
        id=port.instance_id,
        name=f"bench-{place}",
        hostname=f"bench-{place}",
        project_id=project,
        user_id="",
        vcpus=1,
        ram_mib=64,
        disk_gib=1,
        image=image,
        ports=(interface,),
    )
    return Instance(
        id=port.instance_id,
        request=Request(guest=guest, network_id="", network_name=""),
        vm_state=VmState.ACTIVE,
        host=host,
        placement_epoch=1,
        ports=(interface,),
    )
