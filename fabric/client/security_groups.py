"""Security groups: what may pass at ports."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fabric.client.calls import Calls
from fabric.client.networks import mask_of
from fabric.pb.network.v1 import security_group_service_pb2 as pb
from fabric.pb.network.v1.security_group_service_pb2 import SecurityGroup, SecurityGroupRule
from fabric.pb.network.v1.security_group_service_pb2_grpc import SecurityGroupServiceStub

__all__ = [
    "DIRECTIONS",
    "ETHER_TYPES",
    "SecurityGroup",
    "SecurityGroupRule",
    "SecurityGroups",
    "direction_name",
    "ether_type_name",
]

DIRECTIONS: Mapping[str, pb.Direction.ValueType] = MappingProxyType(
    {"ingress": pb.DIRECTION_INGRESS, "egress": pb.DIRECTION_EGRESS}
)
"""What people call the directions."""

ETHER_TYPES: Mapping[str, pb.EtherType.ValueType] = MappingProxyType(
    {"IPv4": pb.ETHER_TYPE_IPV4, "IPv6": pb.ETHER_TYPE_IPV6}
)
"""What people call the families."""


def direction_name(rule: SecurityGroupRule) -> str:
    """`ingress` or `egress`."""
    return next((name for name, value in DIRECTIONS.items() if value == rule.direction), "")


def ether_type_name(rule: SecurityGroupRule) -> str:
    """`IPv4` or `IPv6`."""
    return next((name for name, value in ETHER_TYPES.items() if value == rule.ether_type), "")


class SecurityGroups:
    """SecurityGroupService."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = SecurityGroupServiceStub(calls.channel)

    def get(self, group: str) -> SecurityGroup:
        """One with its rules, by id or name."""
        request = pb.GetSecurityGroupRequest(security_group=group)
        return self._calls.unary(self._stub.GetSecurityGroup, request).security_group

    def list(self) -> list[SecurityGroup]:
        """The project's, by name."""
        pages = self._calls.pages(self._stub.ListSecurityGroups, pb.ListSecurityGroupsRequest())
        return [group for page in pages for group in page.security_groups]

    def create(self, *, name: str, description: str = "") -> SecurityGroup:
        """Make one."""
        request = pb.CreateSecurityGroupRequest(
            request_id=self._calls.request_id(),
            security_group=SecurityGroup(name=name, description=description),
        )
        return self._calls.unary(self._stub.CreateSecurityGroup, request).security_group

    def update(self, group: str, **changes: Any) -> SecurityGroup:
        """Change name or description: what is given."""
        request = pb.UpdateSecurityGroupRequest(
            request_id=self._calls.request_id(),
            security_group=group,
            update_mask=mask_of(changes),
            **changes,
        )
        return self._calls.unary(self._stub.UpdateSecurityGroup, request).security_group

    def delete(self, group: str) -> None:
        """Delete one, by id or name."""
        request = pb.DeleteSecurityGroupRequest(request_id=self._calls.request_id(), security_group=group)
        self._calls.delete(self._stub.DeleteSecurityGroup, request)

    def get_rule(self, rule: str) -> SecurityGroupRule:
        """One rule, by id."""
        request = pb.GetSecurityGroupRuleRequest(rule=rule)
        return self._calls.unary(self._stub.GetSecurityGroupRule, request).rule

    def list_rules(self, *, group: str = "") -> builtins.list[SecurityGroupRule]:
        """The rules of a group, or all of the project's."""
        request = pb.ListSecurityGroupRulesRequest(security_group=group)
        pages = self._calls.pages(self._stub.ListSecurityGroupRules, request)
        return [rule for page in pages for rule in page.rules]

    def create_rule(
        self,
        *,
        group: str,
        direction: str = "ingress",
        ether_type: str = "",
        protocol: str = "",
        port_min: int | None = None,
        port_max: int | None = None,
        remote_cidr: str = "",
        remote_group: str = "",
        description: str = "",
    ) -> SecurityGroupRule:
        """Allow something more. `direction` is a key of DIRECTIONS, `ether_type` of ETHER_TYPES or empty."""
        request = pb.CreateSecurityGroupRuleRequest(
            request_id=self._calls.request_id(),
            rule=SecurityGroupRule(
                security_group=group,
                direction=DIRECTIONS[direction],
                ether_type=ETHER_TYPES.get(ether_type, pb.ETHER_TYPE_UNSPECIFIED),
                protocol=protocol,
                port_range_min=port_min,
                port_range_max=port_max,
                remote_cidr=remote_cidr,
                remote_group=remote_group,
                description=description,
            ),
        )
        return self._calls.unary(self._stub.CreateSecurityGroupRule, request).rule

    def delete_rule(self, rule: str) -> None:
        """Allow something no longer."""
        request = pb.DeleteSecurityGroupRuleRequest(request_id=self._calls.request_id(), rule=rule)
        self._calls.delete(self._stub.DeleteSecurityGroupRule, request)
