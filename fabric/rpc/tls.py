"""TLS for servers and clients, from files, and what a client certificate proves.

Names are SPIFFE ids in the URI SAN: `spiffe://cellfabric/cell/<cell>/host/<name>` for hosts, `spiffe://cellfabric/service/<service>[/<cell>]`
for servers. The common name proves nothing. Serial numbers are hexadecimal, lower case, without leading zeros.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from fabric.model.identity import Principal
from fabric.rpc.authz import ANYBODY
from fabric.rpc.certificate import read_pem

TRUST_DOMAIN: Final = "cellfabric"

# gRPC for Python has no setting for the least version of TLS. But version 1.2 binds a cipher suite to the kind of the certificate's
# key, and ours are all ECDSA: with suites for RSA only, a handshake of 1.2 finds none in common, and 1.3, which has suites of its
# own, goes on. gRPC reads this when the first credentials are made.
os.environ.setdefault("GRPC_SSL_CIPHER_SUITES", "ECDHE-RSA-AES256-GCM-SHA384")

_NAME = r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"spiffe://{TRUST_DOMAIN}/cell/({_NAME})/host/({_NAME})")
_SERVICE = re.compile(rf"spiffe://{TRUST_DOMAIN}/service/(api|scheduler|conductor)(?:/({_NAME}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """One end's own certificate and key, and whom it believes. PEM."""

    ca_path: Path
    cert_path: Path
    key_path: Path


def server_credentials(files: TlsFiles, *, client_certificates: bool) -> grpc.ServerCredentials:
    """A server's side. With `client_certificates` nobody gets in without one signed by our CA."""
    return grpc.ssl_server_credentials(
        [(files.key_path.read_bytes(), files.cert_path.read_bytes())],
        root_certificates=files.ca_path.read_bytes(),
        require_client_auth=client_certificates,
    )


def client_credentials(files: TlsFiles) -> grpc.ChannelCredentials:
    """A client that shows its certificate."""
    return grpc.ssl_channel_credentials(
        root_certificates=files.ca_path.read_bytes(),
        private_key=files.key_path.read_bytes(),
        certificate_chain=files.cert_path.read_bytes(),
    )


def host_uri(cell: str, host: str) -> str:
    """The SPIFFE id of a host."""
    return f"spiffe://{TRUST_DOMAIN}/cell/{cell}/host/{host}"


def service_uri(service: str, cell: str = "") -> str:
    """The SPIFFE id of a control-plane server."""
    return f"spiffe://{TRUST_DOMAIN}/service/{service}" + (f"/{cell}" if cell else "")


def serial_text(serial: int) -> str:
    """A serial number as it is stored and compared."""
    return f"{serial:x}"


def named(uris: Iterable[str], serial: str) -> Principal:
    """Whom the URI names of a certificate prove. Exactly one of ours counts: a certificate for two is for nobody."""
    found = [
        principal
        for uri in uris
        for principal in (_host(uri, serial), _service(uri, serial))
        if principal is not None
    ]
    return found[0] if len(found) == 1 else ANYBODY


@functools.lru_cache(maxsize=4096)
def proven(pem: bytes) -> Principal:
    """Whom a certificate proves that the TLS layer has verified, or that is one's own; ANYBODY where it names nobody of ours.

    Raises ValueError for what is no certificate.
    """
    names = read_pem(pem)
    return named(names.uris, serial_text(names.serial))


def _host(uri: str, serial: str) -> Principal | None:
    match = _HOST.fullmatch(uri)
    return None if match is None else Principal(cell=match[1], host=match[2], cert_serial=serial)


def _service(uri: str, serial: str) -> Principal | None:
    match = _SERVICE.fullmatch(uri)
    return None if match is None else Principal(service=match[1], cell=match[2] or "", cert_serial=serial)
