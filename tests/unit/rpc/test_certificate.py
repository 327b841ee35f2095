"""Two things are read from a certificate, and the library that reads everything has to find the same."""

from __future__ import annotations

import datetime as dt
import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.rpc.certificate import CertificateNames, read_der, read_pem
from fabric.rpc.tls import host_uri, proven
from fabric.server import pki

KEY = ec.generate_private_key(ec.SECP256R1())
NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "anybody")])
WHEN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
NOW_MS = 1_800_000_000_000

LIBRARY_REFUSES = (
    ValueError,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)

URIS = st.lists(st.from_regex(r"spiffe://[a-z]{1,9}/[a-z0-9./-]{0,200}", fullmatch=True), max_size=4)
SERIALS = st.integers(min_value=1, max_value=2**159 - 1)


def _certificate(serial: int, names: list[x509.GeneralName] | None, *, is_critical: bool = False) -> bytes:
    builder = (
        x509.CertificateBuilder()
        .subject_name(NAME)
        .issuer_name(NAME)
        .public_key(KEY.public_key())
        .serial_number(serial)
        .not_valid_before(WHEN)
        .not_valid_after(WHEN + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=is_critical)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def _as_the_library_reads_it(der: bytes) -> CertificateNames:
    certificate = x509.load_der_x509_certificate(der)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return CertificateNames(certificate.serial_number, ())
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return CertificateNames(certificate.serial_number, tuple(uris))


@settings(max_examples=40, deadline=None)
@given(serial=SERIALS, uris=URIS, is_critical=st.booleans(), has_names=st.booleans())
def test_what_is_read_is_what_the_library_reads(
    serial: int, uris: list[str], *, is_critical: bool, has_names: bool
) -> None:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(each) for each in uris]
    names += [x509.DNSName("spiffe.example"), x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]
    der = _certificate(serial, names if has_names else None, is_critical=is_critical)

    assert read_der(der) == CertificateNames(serial, tuple(uris) if has_names else ())
    assert read_der(der) == _as_the_library_reads_it(der)


WHOLE = _certificate(0xC0FFEE, [x509.UniformResourceIdentifier(host_uri("cell1", "h1"))])


@settings(max_examples=400, deadline=None)
@given(at=st.integers(0, len(WHOLE) - 1), byte=st.integers(0, 255))
def test_what_is_damaged_is_refused_or_read_as_the_library_reads_it(at: int, byte: int) -> None:
    damaged = WHOLE[:at] + bytes((byte,)) + WHOLE[at + 1 :]
    try:
        found = read_der(damaged)
    except ValueError:
        return

    try:
        expected = _as_the_library_reads_it(damaged)
    except LIBRARY_REFUSES:
        return  # for something in it that we do not read
    assert found == expected


@pytest.mark.parametrize("length", range(0, len(WHOLE), 7))
def test_what_is_cut_off_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="it "):
        read_der(WHOLE[:length])


def test_of_a_chain_the_first_is_read_whatever_stands_before_it() -> None:
    authority = pki.create_authority("test", now_ms=NOW_MS)
    issued = authority.issue_host("cell1", "h1", now_ms=NOW_MS)

    chain = b"a comment\n" + issued.certificate + authority.pem

    assert read_pem(chain).uris == (host_uri("cell1", "h1"),)
    assert (proven(chain).cell, proven(chain).host) == ("cell1", "h1")
    serial = x509.load_pem_x509_certificate(issued.certificate).serial_number
    assert proven(chain).cert_serial == f"{serial:x}"


@pytest.mark.parametrize(
    "text", [b"", b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", b"none"]
)
def test_what_is_no_certificate_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="it"):
        read_pem(text)
