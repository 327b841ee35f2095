"""The browsers' door over real sockets and TLS, to a guest that only pretends: what a viewer must show, and what it gets."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import trustme
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin

from fabric.api.consoles import ConsoleOptions
from fabric.model.console import ConsoleKind
from fabric.rpc.tls import TlsFiles
from fabric.server.web_console import ConsoleDoor, DoorSettings
from tests.console_chain import Chain, a_chain

OURS = "https://consoles.test"


@dataclass
class Door:
    """The door, open, and what is behind it."""

    chain: Chain
    port: int
    trust: ssl.SSLContext

    async def ticket(self) -> str:
        api = self.chain.apis[0]
        url = api.url_of(await api.issue("web", ConsoleKind.VNC, self.chain.me))
        assert url.startswith(f"{OURS}/#ticket=")
        return parse_qs(urlsplit(url).fragment)["ticket"][0]

    def come(self, ticket: str, *, origin: str | None = OURS, path: str = "vnc") -> connect:
        return connect(
            f"wss://127.0.0.1:{self.port}/{path}?ticket={ticket}",
            ssl=self.trust,
            origin=None if origin is None else Origin(origin),
            proxy=None,
        )

    async def get(self, path: str, *headers: str) -> tuple[int, bytes, bytes]:
        """Status, headers and body of a plain request."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.trust)
        lines = (f"GET {path} HTTP/1.1", "Host: consoles.test", *headers, "", "")
        writer.write("\r\n".join(lines).encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return int(head.split()[1]), head, body


@asynccontextmanager
async def a_door(folder: Path, *, most: int = 200) -> AsyncIterator[Door]:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "consoles.test")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    (folder / "novnc" / "core").mkdir(parents=True)
    (folder / "novnc" / "core" / "rfb.js").write_text("export default 1;\n")
    (folder / "secret.js").write_text("not for you")
    (folder / "novnc" / "escape.js").symlink_to(folder / "secret.js")
    settings = DoorSettings(
        listen="127.0.0.1:0",
        url=OURS,
        tls=TlsFiles(ca_path=folder / "ca.pem", cert_path=folder / "cert.pem", key_path=folder / "key.pem"),
        origins=("https://portal.test",),
        novnc=folder / "novnc",
        most=most,
    )
    trust = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    async with a_chain(ConsoleOptions(url=OURS)) as chain:
        door = ConsoleDoor(settings, chain.apis[1], chain.world.clock)
        port = await door.start()
        try:
            yield Door(chain, port, trust)
        finally:
            await door.stop()


async def shakes_hands(viewer: ClientConnection) -> bytes:
    """RFB 3.8 as a viewer speaks it (RFC 6143, section 7): what the server says of its screen."""
    said = b""

    async def take(size: int) -> bytes:
        nonlocal said
        while len(said) < size:
            piece = await viewer.recv()
            assert isinstance(piece, bytes)
            said += piece
        taken, said = said[:size], said[size:]
        return taken

    assert await take(12) == b"RFB 003.008\n"
    await viewer.send(b"RFB 003.008\n")
    assert await take(2) == b"\x01\x01"
    await viewer.send(b"\x01")
    assert await take(4) == bytes(4)
    await viewer.send(b"\x01")
    screen = await take(24)
    return screen + await take(int.from_bytes(screen[20:24], "big"))


async def test_a_viewer_with_a_ticket_sees_the_screen(tmp_path: Path) -> None:
    async with a_door(tmp_path) as door, door.come(await door.ticket()) as viewer:
        screen = await shakes_hands(viewer)

        await viewer.send(b"\x03\x00\x00\x00\x00\x00\x00\x10\x00\x10")
        update = await viewer.recv()

        assert screen[:4] == b"\x00\x10\x00\x10"
        assert len(update) == 16 + 4 * 16 * 16


async def test_a_ticket_is_good_once(tmp_path: Path) -> None:
    async with a_door(tmp_path) as door:
        ticket = await door.ticket()
        async with door.come(ticket):
            pass

        with pytest.raises(InvalidStatus) as refused:
            await door.come(ticket)

        assert refused.value.response.status_code == 403


@pytest.mark.parametrize("origin", ["https://evil.test", "http://consoles.test", "null", OURS + ".evil.test"])
async def test_a_foreign_page_opens_nothing_and_does_not_use_the_ticket_up(
    tmp_path: Path, origin: str
) -> None:
    async with a_door(tmp_path) as door:
        ticket = await door.ticket()

        with pytest.raises(InvalidStatus) as refused:
            await door.come(ticket, origin=origin)

        assert refused.value.response.status_code == 403
        async with door.come(ticket, origin="https://portal.test") as viewer:
            await shakes_hands(viewer)


@pytest.mark.parametrize("ticket", ["", "x", "A" * 43, "A" * 4000, "%00", "a&ticket=b"])
async def test_what_is_no_ticket_opens_nothing(tmp_path: Path, ticket: str) -> None:
    async with a_door(tmp_path) as door:
        with pytest.raises(InvalidStatus) as refused:
            await door.come(ticket)

        assert refused.value.response.status_code == 403


async def test_who_guesses_is_slowed_down(tmp_path: Path) -> None:
    async with a_door(tmp_path) as door:
        codes = []
        for _ in range(30):
            with pytest.raises(InvalidStatus) as refused:
                await door.come("A" * 43)
            codes.append(refused.value.response.status_code)

        assert codes.count(403) >= 20
        assert codes[-1] == 429


async def test_a_ticket_for_the_serial_port_opens_no_screen(tmp_path: Path) -> None:
    async with a_door(tmp_path) as door:
        issued = await door.chain.apis[0].issue("web", ConsoleKind.SERIAL, door.chain.me)

        with pytest.raises(InvalidStatus):
            await door.come(issued.secret)


async def test_text_and_too_much_at_once_end_the_console(tmp_path: Path) -> None:
    async with a_door(tmp_path) as door:
        for bad in ("text", b"x" * (64 * 1024 + 1)):
            async with door.come(await door.ticket()) as viewer:
                await viewer.send(bad)
                with pytest.raises(ConnectionClosed):
                    await shakes_hands(viewer)


async def test_the_end_of_a_guest_is_the_end_of_its_screen(tmp_path: Path) -> None:
    async with a_door(tmp_path) as door, door.come(await door.ticket()) as viewer:
        await shakes_hands(viewer)

        door.chain.machine.cut(door.chain.instance_id)

        with pytest.raises(ConnectionClosed):
            await viewer.recv()
        assert viewer.close_reason == "GUEST_OFF"


async def test_a_screen_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    async with a_door(tmp_path) as door:
        ticket = await door.ticket()
        door.chain.machine.cut(door.chain.instance_id)

        async with door.come(ticket) as viewer:
            with pytest.raises(ConnectionClosed):
                await viewer.recv()

        assert "shut itself down" in (viewer.close_reason or "")


async def test_there_is_a_limit_and_who_leaves_makes_room(tmp_path: Path) -> None:
    async with a_door(tmp_path, most=1) as door:
        async with door.come(await door.ticket()):
            with pytest.raises(InvalidStatus) as refused:
                await door.come(await door.ticket())
            assert refused.value.response.status_code == 503

        async with door.come(await door.ticket()) as viewer:
            await shakes_hands(viewer)


async def test_the_limit_holds_for_those_who_come_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only those were counted whose tickets had been looked at: while a store was slow, any number got in."""
    async with a_door(tmp_path, most=1) as door:
        first, second = await door.ticket(), await door.ticket()
        consoles = door.chain.apis[1]
        redeem, has_come, may_go_on = consoles.redeem, asyncio.Event(), asyncio.Event()

        async def slowly(shown: str, kind: ConsoleKind) -> object:
            has_come.set()
            await may_go_on.wait()
            return await redeem(shown, kind)

        monkeypatch.setattr(consoles, "redeem", slowly)
        coming = asyncio.ensure_future(door.come(first))
        await has_come.wait()

        with pytest.raises(InvalidStatus) as refused:
            await asyncio.wait_for(door.come(second), 60)
        may_go_on.set()
        viewer = await coming

        assert refused.value.response.status_code == 503
        await shakes_hands(viewer)
        await viewer.close()
        async with door.come(second):
            pass  # its ticket was not used up


async def test_the_page_and_novnc_are_served_and_nothing_else_is(tmp_path: Path) -> None:
    async with a_door(tmp_path) as door:
        for path, words in (
            ("/", b"console.js"),
            ("/console.js", b"novnc/core/rfb.js"),
            ("/console.css", b"#screen"),
            ("/novnc/core/rfb.js", b"export default"),
        ):
            status, head, body = await door.get(path)
            assert (status, words in body) == (200, True)
            assert b"frame-ancestors 'none'" in head
            assert b"no-store" in head
        for path in (
            "/novnc/../secret.js",
            "/novnc/%2e%2e/secret.js",
            "/novnc/escape.js",
            "/novnc//etc/passwd",
            "/novnc/core",
            "/../web_console.py",
            "/__init__.py",
            "/nothing",
        ):
            assert (await door.get(path))[0] == 404
        assert (await door.get("/vnc"))[0] == 426


@pytest.mark.parametrize(
    ("path", "headers", "answer"),
    [
        ("//[", (), 404),
        ("//[/vnc", (), 404),
        ("/vnc?ticket=x", ("Upgrade: websocket", f"Origin: {OURS}", "Origin: https://evil.test"), 403),
        ("/vnc?ticket=x", ("Upgrade: websocket", f"Origin: {OURS}", f"Origin: {OURS}"), 403),
        ("/vnc?ticket=x", ("Upgrade: websocket", "Upgrade: h2c"), 426),
    ],
)
async def test_what_no_browser_sends_is_refused_and_breaks_nothing(
    tmp_path: Path, path: str, headers: tuple[str, ...], answer: int
) -> None:
    """A path that is no path, and a header that comes twice, were answered as failures of the server's own."""
    async with a_door(tmp_path) as door:
        status, _, _ = await door.get(path, *headers)

    assert status == answer


async def test_an_older_tls_is_refused(tmp_path: Path) -> None:
    async with a_door(tmp_path) as door:
        door.trust.maximum_version = ssl.TLSVersion.TLSv1_2

        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await door.get("/")
