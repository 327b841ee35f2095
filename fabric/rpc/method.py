"""What the protos say of a service's methods: their messages, their shape, and who may call them.

Deny by default: a method without the option `authz` cannot be served at all, and the process that tries does not start.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from fabric.errors import Bug
from fabric.model.identity import Role
from fabric.pb.common.v1 import options_pb2


class Scope(enum.IntEnum):
    """Where a method's caller must be at home (fabric.common.v1.Scope)."""

    PUBLIC = 1
    USER = 2
    PROJECT = 3
    SYSTEM = 4
    HOST = 5
    SERVICE = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Authz:
    """Who may call a method: the least role counts in PROJECT only. What `mutates` is written to the audit log."""

    scope: Scope
    role: Role = Role.UNSPECIFIED
    mutates: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One method of a service, as its descriptor says."""

    service: str
    name: str
    request: type[Message]
    response: type[Message]
    streams_requests: bool
    streams_responses: bool
    authz: Authz
    action: str = ""
    """The row of the lifecycle table that the method asks for, where it is served from it."""

    @property
    def path(self) -> str:
        """The path on the wire: `/fabric.compute.v1.InstanceService/GetInstance`."""
        return f"/{self.service}/{self.name}"

    @property
    def attribute(self) -> str:
        """The name of the handler's method: `get_instance`."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", self.name).lower()


def methods(service: ServiceDescriptor) -> tuple[Method, ...]:
    """Every method of a service. Raises Bug for one that does not say who may call it."""
    return tuple(_method(service, method) for method in service.methods)


def _method(service: ServiceDescriptor, method: MethodDescriptor) -> Method:
    # The runtime's descriptor does not tell whether a method streams; its proto does.
    proto = descriptor_pb2.MethodDescriptorProto()
    method.CopyToProto(proto)
    return Method(
        service=service.full_name,
        name=method.name,
        request=_message(method.input_type),
        response=_message(method.output_type),
        streams_requests=proto.client_streaming,
        streams_responses=proto.server_streaming,
        authz=_authz(method),
        action=method.GetOptions().Extensions[options_pb2.action],
    )


def _message(descriptor: Descriptor) -> type[Message]:
    return message_factory.GetMessageClass(descriptor)


def _authz(method: MethodDescriptor) -> Authz:
    option = method.GetOptions().Extensions[options_pb2.authz]
    if option.scope == options_pb2.SCOPE_UNSPECIFIED:
        raise Bug(f"{method.full_name} does not say who may call it: it needs the option authz with a scope")
    if (option.scope == options_pb2.SCOPE_PROJECT) != (option.role != options_pb2.ROLE_UNSPECIFIED):
        raise Bug(f"{method.full_name}: a role belongs to SCOPE_PROJECT, and SCOPE_PROJECT needs one")
    return Authz(scope=Scope(option.scope), role=Role(option.role), mutates=option.mutates)
