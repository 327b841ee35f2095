"""What no kernel could be brought to is refused before it is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fabric.model.firewall import HostFilters
from fabric.model.network_plan import NetworkPlan
from hostd.core.plan_checks import require_sayable
from tests.conformance.guests import a_guest, a_plan, a_tenant_port, an_id

PLAN = a_plan(a_guest("one", ports=(a_tenant_port(1),)), tunnel_address="192.0.2.1")
(NETWORK,) = PLAN.networks
(PORT,) = PLAN.filters.ports


@pytest.mark.parametrize("plan", [NetworkPlan(), PLAN])
def test_a_plan_that_can_be_had_is_none_to_refuse(plan: NetworkPlan) -> None:
    require_sayable(plan)


@pytest.mark.parametrize(
    "plan",
    [
        replace(PLAN, tunnel_address="here"),
        replace(PLAN, networks=()),
        replace(PLAN, networks=(NETWORK, NETWORK)),
        replace(PLAN, networks=(NETWORK, replace(NETWORK, id=an_id("another")))),
        replace(PLAN, networks=(replace(NETWORK, vni=0),)),
        replace(PLAN, networks=(replace(NETWORK, vni=1 << 24),)),
        replace(PLAN, networks=(replace(NETWORK, mtu=0),)),
        replace(PLAN, filters=HostFilters(ports=(replace(PORT, mac="FA:16:3E:00:00:01", groups=()),))),
        replace(PLAN, filters=HostFilters(ports=(replace(PORT, tap="x; reboot", groups=()),))),
    ],
)
def test_one_that_cannot_be_had_is_refused(plan: NetworkPlan) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        require_sayable(plan)
