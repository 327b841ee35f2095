"""What a certificate says of whom it is for: its serial number and its URI names, read from its DER (X.690; RFC 5280, 4.1 and 4.2.1.6).

Nothing is verified here: who asks has a certificate that the TLS layer has verified, or its own. A library that reads all that a
certificate may say takes 10 MiB of every server, for these two; the tests compare with it.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----\s*\n([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")

_BOOLEAN: Final = 0x01
_INTEGER: Final = 0x02
_OCTETS: Final = 0x04
_OID: Final = 0x06
_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0
_EXTENSIONS: Final = 0xA3
_URI: Final = 0x86
"""Tags: of ASN.1's own types, of two of a TBSCertificate's fields, and of a GeneralName that is a URI."""

_VERSION_3: Final = (_INTEGER, bytes((2,)))
"""The only one with extensions."""

_SUBJECT_ALTERNATIVE_NAME: Final = bytes((0x55, 0x1D, 0x11))
"""2.5.29.17."""


@dataclass(frozen=True, slots=True)
class CertificateNames:
    """A certificate's serial number, and the URIs among its subject's alternative names, in order."""

    serial: int
    uris: tuple[str, ...]


def read_pem(pem: bytes) -> CertificateNames:
    """Of the first certificate in a PEM text. Raises ValueError where there is none, or it is malformed."""
    found = _PEM.search(pem)
    if found is None:
        raise ValueError("there is no certificate in it")
    return read_der(binascii.a2b_base64(found[1]))


def read_der(der: bytes) -> CertificateNames:
    """Of a certificate. Raises ValueError where it is malformed, as far as that is read."""
    fields = _elements(_only(_elements(_only(_elements(der), _SEQUENCE))[:1], _SEQUENCE))
    if _elements(_only(fields[:1], _VERSION)) != [_VERSION_3]:
        raise ValueError("it is of another version")
    serial = int.from_bytes(_only(fields[1:2], _INTEGER), "big", signed=True)
    if serial <= 0:
        raise ValueError("its serial number is not positive")
    uris: list[str] = []
    for tag, content in fields[2:]:
        if tag == _EXTENSIONS:
            uris += _uris(_elements(_only(_elements(content), _SEQUENCE)))
    return CertificateNames(serial, tuple(uris))


def _uris(extensions: list[tuple[int, bytes]]) -> Iterator[str]:
    values = []
    for tag, content in extensions:
        parts = _elements(content) if tag == _SEQUENCE else []
        kinds = [kind for kind, _ in parts]
        if kinds not in ([_OID, _OCTETS], [_OID, _BOOLEAN, _OCTETS]):
            raise ValueError("an extension is malformed")
        if parts[0][1] == _SUBJECT_ALTERNATIVE_NAME:
            values.append(parts[-1][1])
    if len(values) > 1:
        raise ValueError("it names its subject twice")
    for value in values:
        for kind, name in _elements(_only(_elements(value), _SEQUENCE)):
            if kind == _URI:
                yield name.decode("ascii")


def _only(elements: list[tuple[int, bytes]], tag: int) -> bytes:
    """The content of the one element that is here, which must be of this kind."""
    if len(elements) != 1 or elements[0][0] != tag:
        raise ValueError("it is no certificate")
    return elements[0][1]


def _elements(data: bytes) -> list[tuple[int, bytes]]:
    """The elements one after the other, each as its tag and its content: DER, so each length is as short as it can be."""
    found = []
    at = 0
    while at < len(data):
        tag, start, end = _head(data, at)
        if end > len(data):
            raise ValueError("it is cut off")
        found.append((tag, data[start:end]))
        at = end
    return found


def _head(data: bytes, at: int) -> tuple[int, int, int]:
    """The tag of the element that begins here, and where its content does, and where that ends."""
    if at + 2 > len(data):
        raise ValueError("it is cut off")
    tag, length, start = data[at], data[at + 1], at + 2
    if tag & 0x1F == 0x1F:
        raise ValueError("it has a tag of several bytes")
    if length < 0x80:
        return tag, start, start + length
    size = length & 0x7F
    digits = data[start : start + size]
    if not 1 <= size <= 4 or len(digits) != size or digits[0] == 0:
        raise ValueError("it has a malformed length")
    length = int.from_bytes(digits, "big")
    if length < 0x80:
        raise ValueError("it has a length that is longer than need be")
    return tag, start + size, start + size + length
