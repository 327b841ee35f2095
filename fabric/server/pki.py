"""Our own certificates: a certificate authority, and what it issues for servers, hosts and stores.

ECDSA on P-256 throughout. Who somebody is stands in a SPIFFE id in the URI SAN (fabric.rpc.tls); DNS names and addresses are for those who
dial. A host's certificate is for clients only, so that a stolen one cannot pose as a conductor (security.md, section 2). Serial numbers
are random and recorded with the host, which makes taking one off the record the revocation.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fabric.rpc.tls import TlsFiles, host_uri, serial_text, service_uri

CA_DAYS = 3650
LEAF_DAYS = 365

_BACKDATED = dt.timedelta(minutes=5)
"""Clocks of hosts differ a little; a certificate must be good on the slowest of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate with its key, PEM, and its serial number as it is recorded."""

    certificate: bytes
    key: bytes
    serial: str


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority, with its key in memory."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        """What everybody who believes this authority is given."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        name: str,
        *,
        now_ms: int,
        uris: Sequence[str] = (),
        addresses: Sequence[str] = (),
        serves: bool = False,
        dials: bool = False,
        days: int = LEAF_DAYS,
    ) -> Issued:
        """A new key and a certificate for it.

        Args:
            name: the common name. It proves nothing to us; etcd takes it for the user's name.
            now_ms: wall time.
            uris: SPIFFE ids.
            addresses: DNS names and IP addresses under which it is dialled.
            serves: whether it may be a server's.
            dials: whether it may be a client's.
            days: how long it is good.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        serial = x509.random_serial_number()
        begin = _when(now_ms)
        usages = [
            usage
            for usage, wanted in (
                (ExtendedKeyUsageOID.SERVER_AUTH, serves),
                (ExtendedKeyUsageOID.CLIENT_AUTH, dials),
            )
            if wanted
        ]
        builder = (
            _builder(name, key, serial, begin, days)
            .issuer_name(self.certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
        )
        names = [x509.UniformResourceIdentifier(uri) for uri in uris] + [_address(each) for each in addresses]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        return Issued(
            certificate=certificate.public_bytes(serialization.Encoding.PEM),
            key=_key_pem(key),
            serial=serial_text(serial),
        )

    def issue_host(self, cell: str, host: str, *, now_ms: int, days: int = LEAF_DAYS) -> Issued:
        """A host's certificate: its name in its cell, for dialling only."""
        return self.issue(host, now_ms=now_ms, uris=(host_uri(cell, host),), dials=True, days=days)

    def issue_service(
        self,
        service: str,
        *,
        now_ms: int,
        cell: str = "",
        addresses: Sequence[str] = (),
        days: int = LEAF_DAYS,
    ) -> Issued:
        """A control-plane server's certificate. `service` is `api`, `scheduler` or `conductor`."""
        return self.issue(
            f"{service}-{cell}" if cell else service,
            now_ms=now_ms,
            uris=(service_uri(service, cell),),
            addresses=addresses,
            serves=True,
            dials=True,
            days=days,
        )

    def save(self, folder: Path) -> None:
        """Keep the authority as `ca.pem` and `ca.key`."""
        folder.mkdir(parents=True, exist_ok=True)
        write_private(folder / "ca.key", _key_pem(self.key))
        (folder / "ca.pem").write_bytes(self.pem)


def create_authority(name: str, *, now_ms: int, days: int = CA_DAYS) -> Authority:
    """A new authority that signs only for those at the ends of a chain."""
    key = ec.generate_private_key(ec.SECP256R1())
    begin = _when(now_ms)
    certificate = (
        _builder(name, key, x509.random_serial_number(), begin, days)
        .issuer_name(_subject(name))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def save(issued: Issued, authority: Authority, folder: Path, name: str) -> TlsFiles:
    """Keep a certificate as `<name>.pem` and `<name>.key`, beside the authority's as `ca.pem`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = TlsFiles(
        ca_path=folder / "ca.pem", cert_path=folder / f"{name}.pem", key_path=folder / f"{name}.key"
    )
    files.ca_path.write_bytes(authority.pem)
    files.cert_path.write_bytes(issued.certificate)
    write_private(files.key_path, issued.key)
    return files


def write_private(path: Path, data: bytes) -> None:
    """Write a file that nobody else may read, not even for a moment."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)
        file.write(data)


def _builder(
    name: str, key: ec.EllipticCurvePrivateKey, serial: int, begin: dt.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_subject(name))
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(begin - _BACKDATED)
        .not_valid_after(begin + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _address(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _when(now_ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(now_ms / 1000, tz=dt.UTC)
