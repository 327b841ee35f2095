"""What gRPC raises, as an error of ours. The table is `fabric.rpc.status`, read backwards; here is only where it finds its values."""

from __future__ import annotations

import grpc

from fabric.errors import FabricError, Unavailable
from fabric.rpc.status import details_of, from_status


def from_rpc_error(error: object, endpoint: str) -> FabricError:
    """The error behind a failed call: what a stub has raised, which is a `grpc.RpcError` and a `grpc.Call` in one.

    Where the server said nothing (no google.rpc.Status came with the answer) and could not be reached, the text is ours: gRPC's own names
    every socket address it tried, and none of the reasons that people can do something about.
    """
    if not isinstance(error, grpc.Call):
        return Unavailable(f"the call to {endpoint} ended without an answer")
    code = error.code()
    details = details_of(error.trailing_metadata() or ())
    found = from_status(code.value[0], error.details() or code.name, details)
    if code is grpc.StatusCode.UNAVAILABLE and not details:
        return Unavailable(_unreachable(endpoint, found.message), reason=found.reason)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and not details:
        return Unavailable(f"{endpoint} did not answer in time", reason=found.reason)
    return found


def _unreachable(endpoint: str, said: str) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in said or "certificate verify failed" in said:
        return f"{endpoint} shows a certificate that the CA file does not vouch for, or one for another name"
    if "WRONG_VERSION_NUMBER" in said:
        return f"{endpoint} does not speak TLS: is the port right?"
    if "Connection refused" in said:
        return f"nothing listens at {endpoint}"
    if "DNS resolution failed" in said or "Domain name not found" in said:
        return f"the name in {endpoint} is not known"
    return f"{endpoint} cannot be reached"
