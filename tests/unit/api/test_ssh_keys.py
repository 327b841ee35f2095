from __future__ import annotations

import base64
import struct

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from fabric.api.ssh_keys import parse
from fabric.errors import InvalidRequest


def _line(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    public = key.public_key()
    return public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


ED25519 = _line(ed25519.Ed25519PrivateKey.generate())
GOOD = [
    ED25519,
    f"{ED25519} me@here with spaces",
    f"  {ED25519}\n",
    _line(ec.generate_private_key(ec.SECP256R1())),
    _line(ec.generate_private_key(ec.SECP384R1())),
    _line(rsa.generate_private_key(65537, 2048)),
]


def _made(kind: str, *parts: bytes) -> str:
    data = b"".join(struct.pack(">I", len(part)) + part for part in (kind.encode(), *parts))
    return f"{kind} {base64.b64encode(data).decode()}"


@pytest.mark.parametrize("text", GOOD, ids=range(len(GOOD)))
def test_a_key_of_openssh_is_taken_as_one_line(text: str) -> None:
    public = parse(text, field="k")

    assert public.line == text.strip()
    assert public.fingerprint.startswith("SHA256:")
    assert len(public.fingerprint) == 50


def test_a_fingerprint_is_what_ssh_keygen_prints() -> None:
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"

    assert parse(key, field="k").fingerprint == "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU"


BAD = [
    "",
    "ssh-ed25519",
    "ssh-ed25519 !!!",
    "ssh-dss AAAAB3NzaC1kc3M=",
    _made("ssh-ed25519", b"short"),
    _made("ssh-ed25519", b"x" * 32, b"more"),
    _made("ssh-rsa", b"\1\0\1", b"\x7f" * 64),
    ED25519.replace("ssh-ed25519", "ssh-rsa", 1),
    ED25519[:-20],
    f'command="rm -rf /" {ED25519}',
    f"{ED25519}\n{ED25519}",
    f"{ED25519} bell\x07",
    "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n-----END OPENSSH PRIVATE KEY-----",
]


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_anything_else_is_refused_by_its_field(text: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse(text, field="keypair.public_key")

    assert raised.value.field == "keypair.public_key"


def test_a_private_key_is_refused_without_repeating_it() -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse("-----BEGIN RSA PRIVATE KEY-----\nMIIcanary\n", field="k")

    assert "canary" not in raised.value.message
    assert "keep it" in raised.value.message


@given(st.text(max_size=200))
def test_no_text_is_more_than_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse(text, field="k")
