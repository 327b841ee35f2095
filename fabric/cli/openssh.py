"""SSH keys in OpenSSH's formats, made here, so that the private half never leaves this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from fabric.errors import InvalidRequest


class KeyPair(NamedTuple):
    """The two halves, as text."""

    private: str
    public: str


def make_key() -> KeyPair:
    """A fresh Ed25519 key, without a passphrase, as cloud keypairs are."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return KeyPair(private.decode(), public.decode())


def read_public_key(path: Path) -> str:
    """The one line of a public key file.

    Raises:
        InvalidRequest: it holds something else; a private key above all, which must not be sent anywhere.
    """
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}", field="public_key") from None
    if "PRIVATE KEY" in text:
        raise InvalidRequest(f"{path} is a private key: give the public one, {path}.pub", field="public_key")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if len(lines) != 1 or len(lines[0].split()) < 2:
        raise InvalidRequest(
            f"{path} is not one public key on one line, as ssh-keygen writes it", field="public_key"
        )
    return lines[0]


def write_private(path: Path, text: str) -> None:
    """Write a private key to a new file that its owner alone can read. Raises InvalidRequest if it is there already."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
    except FileExistsError:
        raise InvalidRequest(
            f"{path} is there already, and a key is not overwritten", field="private_key"
        ) from None
