"""OpenSSH public keys: whether a line is one, and its fingerprint (RFC 4253, section 6.6; RFC 5656; RFC 8709)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from dataclasses import dataclass
from typing import Final

from fabric.errors import InvalidRequest

KINDS: Final = frozenset(
    {
        "ssh-ed25519",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "ssh-rsa",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
    }
)
"""What today's OpenSSH accepts by default."""

LEAST_RSA_BITS: Final = 2048


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key: its one line as it is stored, and its fingerprint as ssh-keygen prints it."""

    line: str
    fingerprint: str


def parse(text: str, *, field: str) -> PublicKey:
    """The key in a line as OpenSSH writes it: kind, base64, and perhaps a comment.

    Raises:
        InvalidRequest: naming `field`: not such a line, of a kind that OpenSSH refuses, or too weak; for a private key with a warning.
    """
    if "PRIVATE KEY" in text:
        raise InvalidRequest(
            f"{field} is a private key: keep it to yourself, and send the .pub file", field=field
        )
    words = text.strip().split(" ", 2)
    if len(words) < 2 or not text.strip().isprintable():
        raise InvalidRequest(
            f"{field} must be one line as OpenSSH writes it: kind, key, comment", field=field
        )
    kind = words[0]
    if kind not in KINDS:
        raise InvalidRequest(
            f"{field} is of the kind {kind[:40]!r}; it must be one of {', '.join(sorted(KINDS))}", field=field
        )
    try:
        data = base64.b64decode(words[1], validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"{field}: the key is not base64", field=field) from None
    parts = _parts(data)
    if len(parts) < 2 or parts[0] != kind.encode():
        raise InvalidRequest(f"{field}: the key is not a whole {kind} key", field=field)
    if kind == "ssh-rsa" and (len(parts) != 3 or int.from_bytes(parts[2]).bit_length() < LEAST_RSA_BITS):
        raise InvalidRequest(f"{field}: an RSA key needs {LEAST_RSA_BITS} bits at least", field=field)
    if kind == "ssh-ed25519" and (len(parts) != 2 or len(parts[1]) != 32):
        raise InvalidRequest(f"{field}: the key is not a whole {kind} key", field=field)
    digest = base64.b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return PublicKey(" ".join(words), f"SHA256:{digest}")


def _parts(data: bytes) -> list[bytes]:
    """The strings that a key is made of; nothing where their lengths do not add up."""
    parts: list[bytes] = []
    begin = 0
    while begin + 4 <= len(data):
        (length,) = struct.unpack_from(">I", data, begin)
        begin += 4
        if begin + length > len(data):
            return []
        parts.append(data[begin : begin + length])
        begin += length
    return parts if begin == len(data) else []
