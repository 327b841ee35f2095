"""The network's handlers over a store, and words to use them by."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from fabric.api.cells import Cells
from fabric.api.floating_ips import FloatingIpHandlers
from fabric.api.named import absent
from fabric.api.network_desk import Desk
from fabric.api.networks import NetworkHandlers
from fabric.api.ports import PortHandlers
from fabric.api.routers import RouterHandlers
from fabric.api.security_groups import SecurityGroupHandlers
from fabric.api.subnets import SubnetHandlers
from fabric.api.traces import TraceHandlers
from fabric.clock import SystemClock
from fabric.ids import Ids, RandomIds
from fabric.model.identity import Principal, Role
from fabric.model.instance import Location
from fabric.model.network_plan import PlanState
from fabric.model.quota import NetworkLimits
from fabric.pb.network.v1 import floating_ip_service_pb2 as fip
from fabric.pb.network.v1 import network_service_pb2 as net
from fabric.pb.network.v1 import port_service_pb2 as prt
from fabric.pb.network.v1 import router_service_pb2 as rtr
from fabric.pb.network.v1 import security_group_service_pb2 as grp
from fabric.pb.network.v1 import subnet_service_pb2 as sub
from fabric.store.base import Store
from fabric.store.memory import MemoryStore

OWN = Principal(user_id="ann", project_id="own", project_name="own", role=Role.MEMBER)
OTHER = Principal(user_id="bob", project_id="other", project_name="other", role=Role.MEMBER)
ADMIN = Principal(
    user_id="root", project_id="admin", project_name="admin", role=Role.ADMIN, system_admin=True
)


class AllFollowed:
    """Conductors whose hosts have followed everything; `states` says of whom something else is so."""

    def __init__(self) -> None:
        self.states: dict[str, PlanState | None] = {}

    async def plan_state(self, endpoint: str, host: str) -> PlanState | None:
        return self.states.get(
            host,
            PlanState(
                revision=9,
                followed=9,
                told_age_ms=50,
                followed_age_ms=40,
                fault_code="",
                fault_message="",
                is_current=True,
            ),
        )


class NoServers:
    """Where there is none."""

    async def location(self, word: str, principal: Principal) -> Location:
        raise absent("server", word)


class NetworkWorld:
    """One API server's handlers. Every word takes `who`, and `request_id` if it matters."""

    def __init__(self, store: Store, limits: NetworkLimits | None = None, *, ids: Ids | None = None) -> None:
        self.store = store
        self._ids = ids or RandomIds()
        self.desk = desk = Desk(
            store,
            limits=limits or NetworkLimits(),
            clock=SystemClock(),
            ids=self._ids,
            jitter=lambda: 0.5,
        )
        self.networks = NetworkHandlers(desk)
        self.subnets = SubnetHandlers(desk)
        self.ports = PortHandlers(desk)
        self.routers = RouterHandlers(desk)
        self.floating_ips = FloatingIpHandlers(desk)
        self.groups = SecurityGroupHandlers(desk)
        self.cell = MemoryStore("c1")
        self.conductors = AllFollowed()
        self.traces = TraceHandlers(
            desk,
            servers=NoServers(),
            cells=Cells({"c1": self.cell}, clock=SystemClock()),
            conductors=self.conductors,
        )

    async def network(self, name: str, who: Principal = OWN, **fields: Any) -> net.Network:
        asked = net.Network(name=name, **fields)
        request = net.CreateNetworkRequest(request_id=self._ids.new_id(), network=asked)
        return (await self.networks.create_network(request, who)).network

    async def subnet(
        self, network: str, cidr: str, name: str = "", who: Principal = OWN, **fields: Any
    ) -> sub.Subnet:
        asked = sub.Subnet(
            name=name or f"{network}-{cidr}".replace("/", "-"), network=network, cidr=cidr, **fields
        )
        request = sub.CreateSubnetRequest(request_id=self._ids.new_id(), subnet=asked)
        return (await self.subnets.create_subnet(request, who)).subnet

    async def port(self, network: str, name: str = "", who: Principal = OWN, **fields: Any) -> prt.Port:
        request = prt.CreatePortRequest(
            request_id=self._ids.new_id(), port=prt.Port(name=name, network=network, **fields)
        )
        return (await self.ports.create_port(request, who)).port

    async def router(self, name: str, who: Principal = OWN, **fields: Any) -> rtr.Router:
        request = rtr.CreateRouterRequest(
            request_id=self._ids.new_id(), router=rtr.Router(name=name, **fields)
        )
        return (await self.routers.create_router(request, who)).router

    async def add_interface(self, router: str, subnet: str, who: Principal = OWN) -> rtr.Router:
        request = rtr.AddRouterInterfaceRequest(request_id=self._ids.new_id(), router=router, subnet=subnet)
        return (await self.routers.add_router_interface(request, who)).router

    async def remove_interface(self, router: str, subnet: str, who: Principal = OWN) -> rtr.Router:
        request = rtr.RemoveRouterInterfaceRequest(
            request_id=self._ids.new_id(), router=router, subnet=subnet
        )
        return (await self.routers.remove_router_interface(request, who)).router

    async def floating_ip(self, network: str, who: Principal = OWN, **fields: Any) -> fip.FloatingIp:
        request = fip.CreateFloatingIpRequest(
            request_id=self._ids.new_id(), floating_ip=fip.FloatingIp(network=network, **fields)
        )
        return (await self.floating_ips.create_floating_ip(request, who)).floating_ip

    async def group(self, name: str, who: Principal = OWN, **fields: Any) -> grp.SecurityGroup:
        request = grp.CreateSecurityGroupRequest(
            request_id=self._ids.new_id(), security_group=grp.SecurityGroup(name=name, **fields)
        )
        return (await self.groups.create_security_group(request, who)).security_group

    async def rule(self, group: str, who: Principal = OWN, **fields: Any) -> grp.SecurityGroupRule:
        asked = grp.SecurityGroupRule(security_group=group, **fields)
        request = grp.CreateSecurityGroupRuleRequest(request_id=self._ids.new_id(), rule=asked)
        return (await self.groups.create_security_group_rule(request, who)).rule

    async def update(self, noun: str, word: str, who: Principal = OWN, /, **fields: Any) -> Any:
        """Change the fields that are given; the noun is the message's, such as `Port`."""
        module, handler, snake = self._of(noun)
        request = getattr(module, f"Update{noun}Request")(
            request_id=self._ids.new_id(),
            update_mask=FieldMask(paths=sorted(fields)),
            **{snake: word},
            **fields,
        )
        return getattr(await getattr(handler, f"update_{snake}")(request, who), snake)

    async def delete(self, noun: str, name: str, who: Principal = OWN) -> None:
        module, handler, snake = self._of(noun)
        field = "rule" if noun == "SecurityGroupRule" else snake
        request = getattr(module, f"Delete{noun}Request")(request_id=self._ids.new_id(), **{field: name})
        await getattr(handler, f"delete_{snake}")(request, who)

    async def get(self, noun: str, name: str, who: Principal = OWN) -> Any:
        module, handler, snake = self._of(noun)
        field = "rule" if noun == "SecurityGroupRule" else snake
        call: Callable[[Any, Principal], Awaitable[Any]] = getattr(handler, f"get_{snake}")
        return getattr(await call(getattr(module, f"Get{noun}Request")(**{field: name}), who), field)

    async def list(self, noun: str, who: Principal = OWN, **fields: Any) -> list[Any]:
        module, handler, snake = self._of(noun)
        answer = await getattr(handler, f"list_{snake}s")(
            getattr(module, f"List{noun}sRequest")(**fields), who
        )
        return list(answer.rules if noun == "SecurityGroupRule" else getattr(answer, f"{snake}s"))

    def _of(self, noun: str) -> tuple[Any, Any, str]:
        return {
            "Network": (net, self.networks, "network"),
            "Subnet": (sub, self.subnets, "subnet"),
            "Port": (prt, self.ports, "port"),
            "Router": (rtr, self.routers, "router"),
            "FloatingIp": (fip, self.floating_ips, "floating_ip"),
            "SecurityGroup": (grp, self.groups, "security_group"),
            "SecurityGroupRule": (grp, self.groups, "security_group_rule"),
        }[noun]


async def nebula(world: NetworkWorld) -> None:
    """The course's network, joined to the world."""
    await world.network("nebula_net")
    await world.subnet("nebula_net", "10.0.0.0/24", "nebula_subnet")
    await world.router("nebula_router", external_network="public")
    await world.add_interface("nebula_router", "nebula_subnet")
