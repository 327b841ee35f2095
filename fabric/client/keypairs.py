"""Keypairs: the public halves of people's SSH keys."""

from __future__ import annotations

from fabric.client.calls import Calls
from fabric.pb.compute.v1 import keypair_service_pb2 as pb
from fabric.pb.compute.v1.keypair_service_pb2 import Keypair
from fabric.pb.compute.v1.keypair_service_pb2_grpc import KeypairServiceStub

__all__ = ["Keypair", "Keypairs"]


class Keypairs:
    """KeypairService."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = KeypairServiceStub(calls.channel)

    def get(self, keypair: str) -> Keypair:
        """One of the caller's, by name."""
        return self._calls.unary(self._stub.GetKeypair, pb.GetKeypairRequest(keypair=keypair)).keypair

    def list(self) -> list[Keypair]:
        """All of the caller's, by name."""
        pages = self._calls.pages(self._stub.ListKeypairs, pb.ListKeypairsRequest())
        return [keypair for page in pages for keypair in page.keypairs]

    def create(self, *, name: str, public_key: str) -> Keypair:
        """Add a public key, one line as OpenSSH writes it."""
        request = pb.CreateKeypairRequest(
            request_id=self._calls.request_id(), keypair=Keypair(name=name, public_key=public_key)
        )
        return self._calls.unary(self._stub.CreateKeypair, request).keypair

    def delete(self, keypair: str) -> None:
        """Remove one, by name."""
        request = pb.DeleteKeypairRequest(request_id=self._calls.request_id(), keypair=keypair)
        self._calls.delete(self._stub.DeleteKeypair, request)
