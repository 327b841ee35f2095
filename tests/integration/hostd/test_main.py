"""hostd as a process: real settings, journal and TLS, a simulated machine below, a conductor in this process."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fabric.clock import SystemClock
from fabric.errors import NotFound
from fabric.ids import RandomIds
from fabric.model.image import ImageOffer
from fabric.model.session import Beat, FromHost, Granted, Hello, Inventory, Snapshot
from fabric.rpc import conductor_handlers, stages
from fabric.rpc.server import RpcServer, ServerSettings
from fabric.rpc.session_codec import pack_from_conductor, unpack_from_host
from fabric.rpc.stream import Stream, StreamClosed
from fabric.rpc.tls import TlsFiles
from fabric.server.pki import Authority, create_authority, save
from tests.console_doubles import NoConsoles

ROOT = Path(__file__).resolve().parents[3]
NOW_MS = time.time_ns() // 1_000_000
PATIENCE_S = 30


class Conductor(NoConsoles):
    """Grants every host a session with nothing to do, and keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[FromHost] = []
        self.changed = asyncio.Event()

    async def serve_host(self, host: str, cert_serial: str, stream: Stream) -> None:
        hello = unpack_from_host(await stream.receive())
        assert isinstance(hello, Hello)
        self._hear(hello)
        epoch = hello.highest_epoch + 1
        granted = Granted(epoch=epoch, permit_ms=60_000, host=host, guest_cidr="10.0.0.0/24", zone="z")
        nothing = Snapshot(epoch=epoch, revision=1, orders=(), releases=(), last=True)
        try:
            await stream.send(pack_from_conductor(granted))
            await stream.send(pack_from_conductor(nothing))
            while True:
                self._hear(unpack_from_host(await stream.receive()))
        except StreamClosed:
            return

    async def until_heard(self, kind: type[FromHost]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not any(isinstance(said, kind) for said in self.heard):
                self.changed.clear()
                await self.changed.wait()

    def _hear(self, message: FromHost) -> None:
        self.heard.append(message)
        self.changed.set()

    async def fetch_image(
        self, host: str, cert_serial: str, image_id: str, offset_bytes: int
    ) -> AsyncIterator[bytes]:
        yield b""

    async def upload_image(
        self, host: str, cert_serial: str, offer: ImageOffer, chunks: AsyncIterator[bytes]
    ) -> None:
        raise NotFound("no image is wanted")

    async def read_console_log(
        self, host: str, instance_id: str, placement_epoch: int, tail_bytes: int
    ) -> bytes:
        return b""

    def read_progress(self, instance_ids: object) -> dict[str, str]:
        return {}


@pytest.fixture
def authority() -> Authority:
    return create_authority("test", now_ms=NOW_MS)


@pytest.fixture
def conductor() -> Conductor:
    return Conductor()


@pytest.fixture
async def port(authority: Authority, conductor: Conductor, tmp_path: Path) -> AsyncIterator[int]:
    issued = authority.issue_service("conductor", now_ms=NOW_MS, cell="c1", addresses=("127.0.0.1",))
    server = RpcServer(
        ServerSettings(
            listen="127.0.0.1:0",
            tls=save(issued, authority, tmp_path, "conductor"),
            client_certificates=True,
            drain_s=0.2,
        ),
        conductor_handlers.bound(conductor, "c1"),
        (
            stages.report(SystemClock(), RandomIds().new_id),
            stages.deadline,
            stages.authenticate(None),
            stages.authorize,
        ),
    )
    yield await server.start()
    await server.stop()


def settings(folder: Path, files: TlsFiles, port: int) -> Path:
    path = folder / "hostd.toml"
    path.write_text(
        f'conductors = ["127.0.0.1:{port}"]\n'
        f'state_path = "{folder / "state"}"\n'
        'driver = "fake"\n'
        "beat_s = 0.2\n"
        "[tls]\n"
        f'ca = "{files.ca_path}"\ncert = "{files.cert_path}"\nkey = "{files.key_path}"\n'
    )
    return path


async def hostd(config: Path, **environment: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "cmd" / "hostd"),
        "--config",
        str(config),
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", **environment},
        stderr=asyncio.subprocess.PIPE,
    )


async def end_of(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    async with asyncio.timeout(PATIENCE_S):
        _, said = await process.communicate()
    return process.returncode, said.decode()


async def test_a_daemon_has_a_session_and_ends_when_asked(
    port: int, authority: Authority, conductor: Conductor, tmp_path: Path
) -> None:
    files = save(authority.issue_host("c1", "h1", now_ms=NOW_MS), authority, tmp_path, "h1")
    process = await hostd(settings(tmp_path, files, port))
    await conductor.until_heard(Inventory)
    await conductor.until_heard(Beat)
    process.send_signal(signal.SIGTERM)
    code, log = await end_of(process)

    assert code == 0, log
    assert "hostd.stopped" in log


async def test_a_running_daemon_does_not_carry_what_it_read_its_certificate_with(
    port: int, authority: Authority, conductor: Conductor, tmp_path: Path
) -> None:
    files = save(authority.issue_host("c1", "h1", now_ms=NOW_MS), authority, tmp_path, "h1")
    process = await hostd(settings(tmp_path, files, port))
    await conductor.until_heard(Inventory)

    libraries = Path(f"/proc/{process.pid}/maps").read_text()
    process.terminate()
    await end_of(process)
    assert "/grpc/" in libraries
    assert "/cryptography/" not in libraries


async def test_a_granted_epoch_is_on_the_disk_before_anything_else(
    port: int, authority: Authority, conductor: Conductor, tmp_path: Path
) -> None:
    config = settings(
        tmp_path, save(authority.issue_host("c1", "h1", now_ms=NOW_MS), authority, tmp_path, "h1"), port
    )
    killed = await hostd(config, FABRIC_FAIL="hostd.session.granted:kill")
    code, log = await end_of(killed)
    assert code == -signal.SIGKILL, log
    again = await hostd(config)
    await conductor.until_heard(Inventory)
    again.terminate()
    await end_of(again)

    assert [said.highest_epoch for said in conductor.heard if isinstance(said, Hello)] == [0, 1]


async def test_a_certificate_that_is_none_is_refused_with_the_setting(
    authority: Authority, tmp_path: Path
) -> None:
    files = save(authority.issue_host("c1", "h1", now_ms=NOW_MS), authority, tmp_path, "h1")
    files.cert_path.write_text("not a certificate")
    code, said = await end_of(await hostd(settings(tmp_path, files, 1)))

    assert code == 2
    assert "cannot read the certificate" in said


async def test_a_certificate_that_names_no_host_is_refused_with_the_setting(
    authority: Authority, tmp_path: Path
) -> None:
    files = save(authority.issue_service("api", now_ms=NOW_MS), authority, tmp_path, "api")
    code, said = await end_of(await hostd(settings(tmp_path, files, 1)))

    assert code == 2
    assert "host's certificate" in said
