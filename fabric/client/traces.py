"""What becomes of packets."""

from __future__ import annotations

from fabric.client.calls import Calls
from fabric.pb.network.v1 import trace_service_pb2 as pb
from fabric.pb.network.v1.trace_service_pb2 import ReadTraceResponse, TraceOutcome
from fabric.pb.network.v1.trace_service_pb2_grpc import TraceServiceStub

__all__ = ["ReadTraceResponse", "Traces", "outcome_name"]


def outcome_name(outcome: TraceOutcome.ValueType) -> str:
    """What a step makes of the packet, in a word."""
    return TraceOutcome.Name(outcome).removeprefix("TRACE_OUTCOME_").lower()


class Traces:
    """TraceService."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = TraceServiceStub(calls.channel)

    def trace(
        self, source: str, destination: str, *, protocol: str, port: int | None = None
    ) -> ReadTraceResponse:
        """What a packet meets, from a port or server to an address, port or server. `port` is the ICMP type for ICMP; None: any."""
        request = pb.ReadTraceRequest(source=source, destination=destination, protocol=protocol, port=port)
        return self._calls.unary(self._stub.ReadTrace, request)
