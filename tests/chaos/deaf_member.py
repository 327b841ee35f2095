"""An etcd member that is connected, answers pings, and never answers anything it is asked.

A member stuck in its disk looks like this, and so does a process stopped behind a proxy that keeps its connections.
"""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio


class DeafMember:
    """Listens on 127.0.0.1. An async context manager."""

    def __init__(self) -> None:
        self._server = grpc.aio.server(handlers=[_Deaf(self)])
        self.asked: list[str] = []
        self.endpoint = ""

    async def __aenter__(self) -> DeafMember:
        self.endpoint = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)


class _Deaf(grpc.GenericRpcHandler):
    def __init__(self, member: DeafMember) -> None:
        self._member = member

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        self._member.asked.append(handler_call_details.method)

        async def never(_: object, __: object) -> bytes:
            await asyncio.Event().wait()
            return b""

        return grpc.stream_unary_rpc_method_handler(never)
