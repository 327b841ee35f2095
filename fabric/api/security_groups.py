"""SecurityGroupService: what may pass at the ports of a group. Each project has a group `default` without making it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fabric.api.draft import Draft
from fabric.api.named import Found, absent, named_by
from fabric.api.network_desk import Desk, named, position, project_of, required_name
from fabric.api.network_messages import group_message, rule_message
from fabric.errors import InvalidRequest, Reason, WrongState
from fabric.model.identity import Principal
from fabric.model.security_group import DEFAULT_GROUP, Direction, EtherType, SecurityGroup, SecurityRule
from fabric.network.core.rules import (
    AskedRule,
    default_group,
    default_group_id,
    new_group,
    rule_of,
    with_rule,
    without_rule,
)
from fabric.pb.network.v1 import security_group_service_pb2 as pb
from fabric.store.base import Txn
from fabric.store.codec import encode
from fabric.store.keys import (
    NETWORK_USE,
    SECURITY_GROUP,
    SECURITY_GROUP_MEMBER,
    SECURITY_GROUP_NAME,
    SECURITY_GROUP_REFERRER,
)

UPDATABLE = frozenset({"name", "description"})


async def ensure_default(desk: Desk, project_id: str) -> str:
    """Make a project's default group unless it is there; returns its id.

    Several may do so at once: what they write is the same, and the keys are compared as absent.
    """
    group_id = default_group_id(project_id)
    key, name = SECURITY_GROUP.at(project_id, group_id), SECURITY_GROUP_NAME.at(project_id, DEFAULT_GROUP)
    if project_id and key not in (await desk.store.get(key)).entries:
        group = default_group(project_id, now_ms=desk.clock.now_ms())
        await desk.store.commit(
            Txn(unchanged={key: 0, name: 0}, put={key: encode(group), name: encode(group_id)})
        )
    return group_id


class SecurityGroupHandlers:
    """The RPCs, as functions of a request and who asks."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def get_security_group(
        self, request: pb.GetSecurityGroupRequest, principal: Principal
    ) -> pb.GetSecurityGroupResponse:
        found = await self._get(request.security_group, principal)
        return pb.GetSecurityGroupResponse(
            security_group=group_message(found.value, found.mod_revision), revision=found.revision
        )

    async def list_security_groups(
        self, request: pb.ListSecurityGroupsRequest, principal: Principal
    ) -> pb.ListSecurityGroupsResponse:
        found, revision = await self._all(principal)
        page, token = self._desk.pages.cut(found, request, key=_position)
        return pb.ListSecurityGroupsResponse(
            security_groups=[group_message(each.value, each.mod_revision) for each in page],
            next_page_token=token,
            revision=revision,
        )

    async def create_security_group(
        self, request: pb.CreateSecurityGroupRequest, principal: Principal
    ) -> pb.CreateSecurityGroupResponse:
        asked, desk = request.security_group, self._desk
        project_id, group_id = project_of(principal), desk.ids.new_id()

        async def decide(draft: Draft) -> str:
            await ensure_default(desk, project_id)
            name = SECURITY_GROUP_NAME.at(project_id, asked.name)
            await desk.take_name(draft, name, group_id, what="security group", name=asked.name)
            now_ms = desk.clock.now_ms()
            group = SecurityGroup(
                id=group_id,
                name=asked.name,
                project_id=project_id,
                description=asked.description,
                quota_slot=await desk.take_slot(
                    draft, project_id, "security_groups", group_id, seed=f"{group_id}/{draft.attempt}"
                ),
                create_time_ms=now_ms,
                update_time_ms=now_ms,
            )
            draft.write(
                SECURITY_GROUP.at(project_id, group_id), new_group(group, rule_id=desk.ids.new_id), seen=0
            )
            return group_id

        done = await desk.make(decide, request, principal)
        made = await self._get(done.resource_id, principal)
        return pb.CreateSecurityGroupResponse(
            security_group=group_message(made.value, made.mod_revision), revision=done.revision
        )

    async def update_security_group(
        self, request: pb.UpdateSecurityGroupRequest, principal: Principal
    ) -> pb.UpdateSecurityGroupResponse:
        desk, paths = self._desk, named(request.update_mask, UPDATABLE)

        async def decide(draft: Draft) -> str:
            found = await self._get(request.security_group, principal)
            before = found.value
            after = replace(
                before,
                name=required_name(request.name) if "name" in paths else before.name,
                description=request.description if "description" in paths else before.description,
                update_time_ms=desk.clock.now_ms(),
            )
            if before.name == DEFAULT_GROUP and after.name != DEFAULT_GROUP:
                raise WrongState("the default group keeps its name", group=before.id)
            await desk.rename(
                draft,
                SECURITY_GROUP_NAME.at(before.project_id, before.name),
                SECURITY_GROUP_NAME.at(before.project_id, after.name),
                before.id,
                what="security group",
                name=after.name,
            )
            draft.write(SECURITY_GROUP.at(before.project_id, before.id), after, seen=found.mod_revision)
            return before.id

        done = await desk.make(decide, request, principal)
        made = await self._get(done.resource_id, principal)
        return pb.UpdateSecurityGroupResponse(
            security_group=group_message(made.value, made.mod_revision), revision=done.revision
        )

    async def delete_security_group(
        self, request: pb.DeleteSecurityGroupRequest, principal: Principal
    ) -> pb.DeleteSecurityGroupResponse:
        desk = self._desk

        async def decide(draft: Draft) -> str:
            found = await self._get(request.security_group, principal)
            group = found.value
            if group.name == DEFAULT_GROUP:
                raise WrongState(
                    "the default group stays: every project has one",
                    reason=Reason.RESOURCE_IN_USE,
                    group=group.id,
                )
            await desk.check_nothing_below(
                draft, [SECURITY_GROUP_MEMBER.under(group.id)], f"security group {group.name} has ports in it"
            )
            await desk.check_nothing_below(
                draft,
                [SECURITY_GROUP_REFERRER.under(group.id)],
                f"security group {group.name} is named by rules of other groups",
            )
            draft.remove(SECURITY_GROUP.at(group.project_id, group.id), seen=found.mod_revision)
            draft.free(SECURITY_GROUP_NAME.at(group.project_id, group.name))
            draft.free(*(_reference(each, group) for each in group.rules))
            if group.quota_slot:
                draft.free(NETWORK_USE.at(group.project_id, "security_groups", str(group.quota_slot)))
            return group.id

        done = await desk.make(decide, request, principal)
        return pb.DeleteSecurityGroupResponse(revision=done.revision)

    # ------------------------------------------------------------------ rules

    async def get_security_group_rule(
        self, request: pb.GetSecurityGroupRuleRequest, principal: Principal
    ) -> pb.GetSecurityGroupRuleResponse:
        rule, found = await self._rule(request.rule, principal)
        return pb.GetSecurityGroupRuleResponse(rule=rule_message(rule, found.value), revision=found.revision)

    async def list_security_group_rules(
        self, request: pb.ListSecurityGroupRulesRequest, principal: Principal
    ) -> pb.ListSecurityGroupRulesResponse:
        if request.security_group:
            found = await self._get(request.security_group, principal)
            groups, revision = [found], found.revision
        else:
            groups, revision = await self._all(principal)
        rows = [
            (f"{_position(group)}\0{rule.create_time_ms:020}\0{rule.id}", rule, group.value)
            for group in groups
            for rule in group.value.rules
        ]
        page, token = self._desk.pages.cut(
            sorted(rows, key=lambda row: row[0]), request, key=lambda row: row[0]
        )
        return pb.ListSecurityGroupRulesResponse(
            rules=[rule_message(rule, group) for _, rule, group in page],
            next_page_token=token,
            revision=revision,
        )

    async def create_security_group_rule(
        self, request: pb.CreateSecurityGroupRuleRequest, principal: Principal
    ) -> pb.CreateSecurityGroupRuleResponse:
        asked, desk = request.rule, self._desk
        rule_id = desk.ids.new_id()

        async def decide(draft: Draft) -> str:
            found = await named_by("rule.security_group", self._get(asked.security_group, principal))
            group, remote_id = found.value, ""
            if asked.remote_group:
                remote = await named_by("rule.remote_group", self._get(asked.remote_group, principal))
                remote_id = remote.value.id
                draft.read(SECURITY_GROUP.at(group.project_id, remote_id), remote.mod_revision)
            rule = rule_of(
                _asked(asked, remote_id), rule_id=rule_id, now_ms=desk.clock.now_ms(), field="rule"
            )
            reference = _reference(rule, group)
            if reference:
                draft.take(reference, group.id)
            draft.write(
                SECURITY_GROUP.at(group.project_id, group.id), with_rule(group, rule), seen=found.mod_revision
            )
            return rule_id

        done = await desk.make(decide, request, principal)
        rule, made = await self._rule(done.resource_id, principal)
        return pb.CreateSecurityGroupRuleResponse(rule=rule_message(rule, made.value), revision=done.revision)

    async def delete_security_group_rule(
        self, request: pb.DeleteSecurityGroupRuleRequest, principal: Principal
    ) -> pb.DeleteSecurityGroupRuleResponse:
        desk = self._desk

        async def decide(draft: Draft) -> str:
            rule, found = await self._rule(request.rule, principal)
            group = found.value
            draft.free(_reference(rule, group))
            draft.write(
                SECURITY_GROUP.at(group.project_id, group.id),
                without_rule(group, rule.id, now_ms=desk.clock.now_ms()),
                seen=found.mod_revision,
            )
            return rule.id

        done = await desk.make(decide, request, principal)
        return pb.DeleteSecurityGroupRuleResponse(revision=done.revision)

    # ------------------------------------------------------------------ looking up

    async def _get(self, word: str, principal: Principal) -> Found[SecurityGroup]:
        await ensure_default(self._desk, principal.project_id)
        return await self._desk.groups.get(principal.project_id, word)

    async def _all(self, principal: Principal) -> tuple[list[Found[SecurityGroup]], int]:
        await ensure_default(self._desk, principal.project_id)
        found, revision = await self._desk.groups.all(principal.project_id)
        return sorted(found, key=_position), revision

    async def _rule(self, rule_id: str, principal: Principal) -> tuple[SecurityRule, Found[SecurityGroup]]:
        """A rule of the project's, and its group. Raises NotFound."""
        for group in (await self._all(principal))[0]:
            for rule in group.value.rules:
                if rule.id == rule_id:
                    return rule, group
        raise absent("security group rule", rule_id)


async def groups_named(
    desk: Desk, asked: Sequence[str], project_id: str, *, field: str
) -> list[Found[SecurityGroup]]:
    """The groups that a port is to be in, each once. Raises InvalidRequest, naming the field."""
    await ensure_default(desk, project_id)
    found = [
        await named_by(f"{field}[{at}]", desk.groups.get(project_id, each)) for at, each in enumerate(asked)
    ]
    if len({each.value.id for each in found}) != len(found):
        raise InvalidRequest(f"{field} names one group twice", field=field)
    return found


def _reference(rule: SecurityRule, group: SecurityGroup) -> str:
    """The key that keeps the remote group of a rule from being deleted; empty where there is none, or it is the rule's own."""
    if rule.remote_group_id in {"", group.id}:
        return ""
    return SECURITY_GROUP_REFERRER.at(rule.remote_group_id, rule.id)


def _asked(asked: pb.SecurityGroupRule, remote_group_id: str) -> AskedRule:
    return AskedRule(
        direction=Direction(asked.direction),
        ether_type=EtherType(asked.ether_type),
        protocol=asked.protocol,
        port_min=asked.port_range_min if asked.HasField("port_range_min") else None,
        port_max=asked.port_range_max if asked.HasField("port_range_max") else None,
        remote_cidr=asked.remote_cidr,
        remote_group_id=remote_group_id,
        description=asked.description,
    )


def _position(found: Found[SecurityGroup]) -> str:
    return position(found.value.name, found.value.id)
