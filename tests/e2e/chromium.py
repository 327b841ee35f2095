"""A browser without a screen: Debian's chromium, told what to do by its DevTools protocol.

It believes the certificate whose key it is told, and no other that its own authorities do not vouch for.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from websockets.sync.client import ClientConnection, connect

from tests.e2e.running import until

NOVNC: Final = Path(__file__).resolve().parent / "novnc" / "node_modules" / "@novnc" / "novnc"
"""noVNC's own files, as npm has them."""

ANSWER_S: Final = 60.0

_KEYS: Final = {
    "\n": ("Enter", 13),
    " ": ("Space", 32),
    "-": ("Minus", 189),
    "/": ("Slash", 191),
    ".": ("Period", 190),
}
"""Places on the keyboard, and the numbers browsers have for them, of what is neither a letter nor a digit."""

_SHIFTED: Final = dict(zip(")!@#$%^&*(>_", "0123456789.-", strict=True))
"""What an American keyboard has above its keys."""


def novnc() -> Path:
    """noVNC's folder. Fails where it is missing: nothing is skipped."""
    assert (NOVNC / "core" / "rfb.js").is_file(), "noVNC is missing: run tools/setup browser"
    return NOVNC


class Page:
    """One tab. What it is asked is answered before anything else is done."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._number = 0
        self._session = ""
        self.errors: list[str] = []
        """What the page's scripts threw, and what its console says is wrong."""

    def open(self, url: str) -> None:
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")
        self._ask("Page.navigate", url=url)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression comes to."""
        found = self._ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def types(self, text: str) -> None:
        """Press and let go of the key of each character, on an American keyboard."""
        for each in text:
            plain = _SHIFTED.get(each, each.lower())
            if plain != each:
                self._key("rawKeyDown", "Shift", "ShiftLeft", 16)
            code, number = _place(plain)
            for kind in ("rawKeyDown", "keyUp"):
                self._key(kind, "Enter" if each == "\n" else each, code, number)
            if plain != each:
                self._key("keyUp", "Shift", "ShiftLeft", 16)

    def _key(self, kind: str, key: str, code: str, number: int) -> None:
        self._ask("Input.dispatchKeyEvent", type=kind, key=key, code=code, windowsVirtualKeyCode=number)

    def _ask(self, method: str, **words: object) -> dict[str, Any]:
        self._number += 1
        question = {"id": self._number, "method": method, "params": words}
        if self._session:
            question["sessionId"] = self._session
        self._connection.send(json.dumps(question))
        while True:
            said = json.loads(self._connection.recv(timeout=ANSWER_S))
            if said.get("id") == self._number:
                assert "error" not in said, f"{method}: {said['error']}"
                answer: dict[str, Any] = said["result"]
                return answer
            self._hear(said)

    def _hear(self, event: dict[str, Any]) -> None:
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.errors.append(json.dumps(event["params"]["exceptionDetails"]))
            case "Log.entryAdded" if event["params"]["entry"]["level"] == "error":
                self.errors.append(json.dumps(event["params"]["entry"]))


@contextlib.contextmanager
def a_page(profile: Path, *, trusted: Path) -> Iterator[Page]:
    """A tab of a browser of its own, whose files are in `profile`; it takes the server for whom it says it is if it has the key of
    `trusted`, a certificate. Fails where there is no browser: nothing is skipped.
    """
    program = shutil.which("chromium")
    assert program is not None, "chromium is missing: run tools/setup browser"
    words = [
        *(
            "--headless=new",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            "--window-size=1280,1024",
        ),
        *("--no-first-run", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"),
        *("--disable-component-update", "--no-proxy-server"),
        f"--ignore-certificate-errors-spki-list={_key_digest(trusted)}",
    ]
    if os.geteuid() == 0:
        # Its sandbox is not for root, whom these tests run as.
        words.append("--no-sandbox")
    with (profile.parent / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            (program, *words, "about:blank"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={"PATH": os.environ["PATH"], "HOME": str(profile.parent)},
        )
    try:
        address = until(
            lambda: _listening(profile, process), "chromium says where it listens", timeout_s=60.0
        )
        with connect(address, max_size=None, proxy=None) as connection:
            yield Page(connection)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listening(profile: Path, process: subprocess.Popen[bytes]) -> str:
    assert process.poll() is None, (profile.parent / "chromium.log").read_text(errors="replace")[-2000:]
    with contextlib.suppress(FileNotFoundError):
        lines = (profile / "DevToolsActivePort").read_text().split()
        if len(lines) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
    return ""


def _key_digest(certificate: Path) -> str:
    key = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    data = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def _place(character: str) -> tuple[str, int]:
    """Where its key is, and its number, as browsers tell pages."""
    if character in _KEYS:
        return _KEYS[character]
    return f"Digit{character}" if character.isdigit() else f"Key{character.upper()}", ord(character.upper())
