"""The public API from Python: a typed, synchronous client over the generated stubs.

    with Client("fabric.example:7443", ca_file=Path("ca.pem"), token=token) as client:
        server = client.instances.create(name="web", flavor="m1.small", image="debian-12", key_name="laptop")
        server = client.instances.wait_for(server, "ACTIVE", timeout_s=600)

Answers are the messages of `protos/`, errors the classes of `fabric.errors`. Everything that changes something carries a `request_id`
made once per call and used again on every retry, so a lost answer never makes a second server.
"""

from fabric.client.client import Client

__all__ = ["Client"]
