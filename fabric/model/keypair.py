"""Keypairs: only the public half is ever here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Keypair:
    """A user's SSH public key. `fingerprint` is `SHA256:` + base64 as ssh-keygen prints it."""

    id: str
    name: str
    user_id: str
    public_key: str
    fingerprint: str
    key_type: str = "ssh"
    create_time_ms: int = 0
