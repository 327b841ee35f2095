"""What was done to servers, and every change of them as it happens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import grpc

from fabric.client.calls import Calls
from fabric.client.retry import may_pass
from fabric.errors import Unauthenticated
from fabric.pb.compute.v1 import instance_event_service_pb2 as pb
from fabric.pb.compute.v1.instance_event_service_pb2 import InstanceEvent, WatchInstancesResponse
from fabric.pb.compute.v1.instance_event_service_pb2_grpc import InstanceEventServiceStub

__all__ = ["InstanceEvent", "InstanceEvents", "WatchInstancesResponse"]

WATCH_TIMEOUT_S: Final = 900.0
"""One call of a watch. A server ends it well before; this is for one that has forgotten to."""

AGAIN_S: Final = 0.5
"""Between a watch that ended or broke and the next: a server that ends every one at once is not asked as fast as it can answer."""


class InstanceEvents:
    """Actions on servers with their steps, and news of servers."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = InstanceEventServiceStub(calls.channel)

    def list(self, instance: str) -> list[InstanceEvent]:
        """The last actions on a server, newest first, without their steps. One that is gone is named by its id."""
        request = pb.ListInstanceEventsRequest(instance=instance)
        return [*self._calls.unary(self._stub.ListInstanceEvents, request).events]

    def get(self, instance: str, request_id: str) -> InstanceEvent:
        """One action on a server, with its steps. Raises NotFound."""
        request = pb.GetInstanceEventRequest(instance=instance, request_id=request_id)
        return self._calls.unary(self._stub.GetInstanceEvent, request).event

    def watch(
        self, *, all_projects: bool = False, resume_token: str = ""
    ) -> Iterator[WatchInstancesResponse]:
        """Every change of the project's servers, for ever: first all there are, then each as it happens.

        A call that ends or breaks is made again and goes on where it was; what could not be told meanwhile is told as a `resync`, after
        which come all servers there are. Marks are passed on: with the last one, another process goes on from here.

        Args:
            all_projects: every project's, for system administrators.
            resume_token: of an earlier watch's last mark.

        Raises:
            FabricError: the watch cannot be begun, or not begun again within the client's time-out.
        """
        request = pb.WatchInstancesRequest(all_projects=all_projects, resume_token=resume_token)
        while True:
            stream, first = self._calls.attempt(
                lambda _left_s: self._begun(request), attempt_timeout_s=WATCH_TIMEOUT_S
            )
            try:
                if first is not None:
                    request.resume_token = first.mark.resume_token or request.resume_token
                    yield first
                for news in stream:
                    request.resume_token = news.mark.resume_token or request.resume_token
                    yield news
            except grpc.RpcError as raised:
                error = self._calls.error(raised)
                # Who is not let in any more is asked for a new token when the next call is made.
                if not may_pass(error) and not isinstance(error, Unauthenticated):
                    raise error from None
            finally:
                stream.cancel()
            self._calls.world.sleep(AGAIN_S)

    def _begun(self, request: pb.WatchInstancesRequest) -> tuple[Any, WatchInstancesResponse | None]:
        """A call, and its first answer: only then is it known whether it was let in."""
        stream = self._stub.WatchInstances(request, timeout=WATCH_TIMEOUT_S, metadata=self._calls.metadata())
        return stream, next(iter(stream), None)
