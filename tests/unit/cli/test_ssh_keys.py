"""The host keys that a guest shows on its console are believed, and nothing else that it writes there."""

from __future__ import annotations

from pathlib import Path

from fabric.cli.instance_ssh import host_keys
from tests.unit.cli.shell import Shell

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIETvoMFxVBgIbZcZzMNTxD5iM3iYdYwlE7Empp7mfg"
OLD = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"


def _block(*lines: str) -> str:
    return "\r\n".join(
        ("-----BEGIN SSH HOST KEY KEYS-----", *lines, "-----END SSH HOST KEY KEYS-----", "login: ")
    )


def test_the_keys_of_the_last_boot_count_without_their_comments() -> None:
    """After a rescue or a rebuild the guest has other keys than the ones that were remembered: it could not be logged into any more."""
    console = f"{_block(OLD)}\r\nboot\r\n{_block(f'{KEY} root@web')}".encode()

    assert host_keys(console) == (KEY,)


def test_what_is_no_key_is_left_out() -> None:
    console = _block(
        "* ssh-rsa AAAA", "@cert-authority * ssh-rsa AAAAB3NzaC1yc2EAAAA", "\x1b[2J", KEY
    ).encode()

    assert host_keys(console) == (KEY,)
    assert host_keys(b"-----BEGIN SSH HOST KEY KEYS-----\n" + KEY.encode()) == ()


def test_shown_keys_are_demanded_and_without_them_the_first_is_remembered(stocked: Shell) -> None:
    made = stocked.api.put_instance("web")
    stocked.ok("server", "ssh", "web")
    assert "StrictHostKeyChecking=accept-new" in stocked.became

    stocked.api.console = _block(KEY).encode()
    stocked.ok("server", "ssh", "web")
    assert "StrictHostKeyChecking=yes" in stocked.became
    *_, known = (word.partition("=")[2] for word in stocked.became if word.startswith("UserKnownHostsFile="))
    assert Path(known).read_text(encoding="ascii") == f"cellfabric-{made.id} {KEY}\n"
