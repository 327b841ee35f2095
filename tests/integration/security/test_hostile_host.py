"""A host that is somebody else's by now, with a certificate that is right: against a conductor's process, on an etcd that is real.

What it says, tens of thousands of times, changes the status of the server placed on it and nothing else: shown by comparing every key of
the store before and after, and the fields of its own. The host beside it notices nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fabric.model.host import Session, SessionState
from fabric.model.instance import Instance, Tombstone
from fabric.model.session import Beat, BeatAck, Goodbye, Granted, Hello, HostState, Status
from fabric.pb.host.v1 import host_session_service_pb2 as pb
from fabric.rpc.channel import channel
from fabric.rpc.session_codec import unpack_from_host
from fabric.rpc.tls import TlsFiles, host_uri
from fabric.server.pki import create_authority, save
from fabric.store.codec import decode
from fabric.store.etcd import EtcdStore
from fabric.store.keys import ALIVE, HOST, INSTANCE, REPORT, SESSION, TOMBSTONE
from tests.chaos.etcd_process import Certificates, Cluster, find_binaries
from tests.integration.api.front_door import HIDDEN, HIDDEN_TRIES
from tests.integration.security.conductor_process import (
    CELL,
    SESSION_PATH,
    ConductorProcess,
    HostEnd,
    dialled,
    different,
    fetched,
    now_ms,
)
from tests.integration.security.hostile_words import every_word, floods, garbage, is_in_form, is_offence
from tests.unit.conductor.worlds import IMAGE, instance_id

BINARIES = find_binaries()
SEED = 20_261_122
EACH = 1050
"""What one host says: more than its allowance, so that it feels that too."""

GOODS, NOBODYS = instance_id(900), instance_id(901)

OWN_FIELDS: Final = frozenset(
    {"vm_state", "vm_state_time_ms", "task", "power", "power_seen_ms", "observed_generation"}
    | {"observed_action", "fault", "event"}
    | {"task_deadline_ms", "task_start_ms", "task_request_id", "launch_time_ms", "update_time_ms", "op_id"}
)
"""What a host's word may change in the record of a server that is placed on it."""

MEMORY_MIB: Final = 150


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    if not BINARIES:
        pytest.skip("NO ETCD HERE: run tools/setup first")
    binary = next(iter(BINARIES.values()))
    with Cluster(tmp_path / "etcd", binary=binary, certificates=Certificates.make(tmp_path / "tls")) as made:
        yield made


@pytest.fixture
async def store(cluster: Cluster) -> AsyncIterator[EtcdStore]:
    made = EtcdStore(cluster.patient(), name=CELL)
    yield made
    await made.close()


@pytest.fixture
def conductor(tmp_path: Path, cluster: Cluster, store: EtcdStore) -> Iterator[ConductorProcess]:
    made = ConductorProcess(tmp_path, cluster, store)
    yield made
    made.end()


class Good:
    """The honest host beside them: has a server and a tombstone, and beats."""

    def __init__(self, end: HostEnd) -> None:
        self._end = end
        self._seq = 0
        self._beating = asyncio.create_task(self._beat())

    async def _beat(self) -> None:
        while True:
            await self.beat()
            await asyncio.sleep(1)

    async def beat(self) -> BeatAck:
        self._seq += 1
        await self._end.say(Beat(seq=self._seq, epoch=self._end.epoch))
        acknowledged = await self._end.next_of(BeatAck)
        assert isinstance(acknowledged, BeatAck), "the honest host has lost its session"
        return acknowledged

    async def rest(self) -> None:
        """Raises what went wrong meanwhile."""
        self._beating.cancel()
        results = await asyncio.gather(self._beating, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError), results


@pytest.mark.timeout(600)
@pytest.mark.parametrize("hosts", [4, pytest.param(24, marks=pytest.mark.slow)])
async def test_forged_words_change_nothing_but_the_status_of_ones_own_server(
    conductor: ConductorProcess, hosts: int
) -> None:
    words = [_forgeries(number) for number in range(hosts)]
    good_files = await conductor.approve("good")
    async with dialled(conductor, good_files) as end:
        await end.come_up()
        await conductor.until_up("good")
        good = Good(end)
        await conductor.place(900, "good")
        await conductor.put(
            {TOMBSTONE.at("good", NOBODYS): Tombstone(instance_id=NOBODYS, placement_epoch=1)}
        )
        evil = {f"evil-{number}": await conductor.approve(f"evil-{number}") for number in range(hosts)}
        for number, name in enumerate(evil):
            await conductor.place(number, name)
        before, memory = await conductor.settled(), conductor.resident_mib()

        said = await asyncio.gather(
            *(_forge(conductor, *each) for each in zip(evil.values(), words, strict=True))
        )

        await good.rest()
        assert (await good.beat()).epoch == end.epoch
        after = await conductor.settled()
    assert sum(said) >= hosts * EACH
    assert conductor.process.poll() is None
    assert conductor.resident_mib() - memory < MEMORY_MIB
    _check_log(conductor)
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    own = {key.at(name) for name in evil for key in (SESSION, ALIVE, REPORT)} | {
        INSTANCE.at(instance_id(number)) for number in range(hosts)
    }
    # The honest host's sign of life and measurements are its own.
    assert changed - own - {ALIVE.at("good"), REPORT.at("good")} == set()
    for number in range(hosts):
        key = INSTANCE.at(instance_id(number))
        fields = different(decode(Instance, before[key]), decode(Instance, after[key]))
        assert fields <= OWN_FIELDS, fields


def _forgeries(number: int) -> list[bytes]:
    """Every word that is in form, then any of them again, as often as it takes: for a host in its first session."""
    chance = random.Random(SEED + number)
    own, next_one = instance_id(number), instance_id(number + 1)
    words = [
        word
        for word in every_word(own=own, others=(GOODS, NOBODYS, next_one), epoch=1)
        if is_in_form(word) and not is_offence(word, epoch=1) and not _is_its_right(word, own)
    ]
    chance.shuffle(words)
    return [*words, *chance.choices(words, k=max(0, EACH - len(words)))]


async def _forge(conductor: ConductorProcess, files: TlsFiles, words: Sequence[bytes]) -> int:
    """One hostile host. Returns how many of its words were read."""
    async with dialled(conductor, files) as host:
        await host.come_up()
        assert host.epoch == 1
        for word in words:
            await host.say(word)
        # Whoever answers this has read all that came before it.
        await host.say(Beat(seq=2**50, epoch=host.epoch))
        while True:
            answer = await host.next_of(BeatAck | Goodbye)
            assert isinstance(answer, BeatAck), answer
            if answer.seq == 2**50:
                return len(words)


def _is_its_right(word: bytes, own: str) -> bool:
    """That its own server has failed it may say, and something follows from it: what, is tested elsewhere."""
    match unpack_from_host(word):
        case Status(instance_id=instance, state=HostState.ERROR):
            return instance == own
        case _:
            return False


@pytest.mark.timeout(600)
@pytest.mark.parametrize("hosts", [8, pytest.param(150, marks=pytest.mark.slow)])
async def test_words_out_of_form_end_the_session_and_change_nothing(
    conductor: ConductorProcess, hosts: int
) -> None:
    files = [await conductor.approve(f"evil-{number}") for number in range(hosts)]
    chance = random.Random(SEED)
    own = instance_id(1)
    epoch = 1
    wrong = [
        word for word in every_word(own=own, others=(GOODS,), epoch=epoch) if is_offence(word, epoch=epoch)
    ]
    damaged = (word for word in garbage(chance, wrong) if is_offence(word, epoch=epoch))
    chosen = [*floods(epoch), *chance.sample(wrong, min(len(wrong), hosts * 2))]
    words = [*chosen, *islice(damaged, hosts * 3 - len(chosen))]
    assert all(is_offence(word, epoch=epoch) for word in words)
    before, memory = await conductor.settled(), conductor.resident_mib()

    for number, each in enumerate(files):
        farewell = await _offend(conductor, each, words[3 * number : 3 * number + 3])
        assert farewell.startswith("quarantined: sent 3 bad messages"), farewell

    after = await conductor.settled()
    assert conductor.process.poll() is None
    assert conductor.resident_mib() - memory < MEMORY_MIB
    _check_log(conductor)
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert changed <= {key.at(f"evil-{number}") for key in (SESSION, ALIVE) for number in range(hosts)}
    states = {decode(Session, after[SESSION.at(f"evil-{number}")]).state for number in range(hosts)}
    assert states == {SessionState.QUARANTINED}


async def _offend(conductor: ConductorProcess, files: TlsFiles, words: Sequence[bytes]) -> str:
    async with dialled(conductor, files) as host:
        await host.join()
        for word in words:
            await host.say(word)
        farewell = await host.next_of(Goodbye)
        assert isinstance(farewell, Goodbye)
        return farewell.reason


async def test_a_frame_too_large_for_anybody_ends_the_stream_with_a_typed_error(
    conductor: ConductorProcess,
) -> None:
    files = await conductor.approve("evil")
    async with dialled(conductor, files) as host:
        await host.come_up()
        # The server may hang up before all of it is written; then our own library does not read what it said.
        with contextlib.suppress(grpc.aio.AioRpcError):
            await host.say(b"\x00" * (4 * 1024 * 1024 + 1))
            assert await host.next_of(Goodbye) is None
            assert await host.call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    # And it may come again.
    async with dialled(conductor, files) as host:
        await host.come_up()
    _check_log(conductor)


async def test_an_image_is_for_hosts_that_are_to_run_it(conductor: ConductorProcess) -> None:
    mine, other = await conductor.approve("h1"), await conductor.approve("evil")
    await conductor.place(1, "h1")
    await conductor.settled()
    real = pb.FetchImageRequest(image_id=IMAGE).SerializeToString()
    absent_id = IMAGE.replace("aa", "bb")

    # There is no API server here to have it from: that it is asked at all is what the right host is let do.
    allowed = await fetched(conductor, mine, real)
    foreign = await fetched(conductor, other, real)
    absent = await fetched(conductor, other, pb.FetchImageRequest(image_id=absent_id).SerializeToString())
    odd = [
        await fetched(conductor, mine, data)
        for data in (
            b"",
            b"\xff",
            pb.FetchImageRequest(image_id="../../etc/shadow").SerializeToString(),
            pb.FetchImageRequest(image_id=IMAGE, offset_bytes=-1).SerializeToString(),
        )
    ]

    assert allowed.code() is grpc.StatusCode.UNAVAILABLE
    assert foreign.code() is absent.code() is grpc.StatusCode.NOT_FOUND
    assert str(foreign.details()).replace(IMAGE, "") == str(absent.details()).replace(absent_id, "")
    assert {each.code() for each in odd} == {grpc.StatusCode.INVALID_ARGUMENT}


async def test_only_the_certificate_that_was_approved_lets_a_host_in(
    conductor: ConductorProcess, tmp_path: Path
) -> None:
    day_ms = 86_400_000
    ours, theirs = conductor.authority, create_authority("cell east", now_ms=now_ms())
    right, serial = conductor.certificate("h1")
    await conductor.put({HOST.at("h1"): conductor.inventory("h1", serial)})
    async with dialled(conductor, right) as host:
        await host.join()
    issued = {
        "of another authority": theirs.issue_host(CELL, "h1", now_ms=now_ms()),
        "of another cell": ours.issue_host("west", "h1", now_ms=now_ms()),
        "expired": ours.issue_host(CELL, "h1", now_ms=now_ms() - 3 * day_ms, days=1),
        "not yet valid": ours.issue_host(CELL, "h1", now_ms=now_ms() + day_ms),
        "with another serial": ours.issue_host(CELL, "h1", now_ms=now_ms()),
        "of a server": ours.issue("h1", now_ms=now_ms(), uris=(host_uri(CELL, "h1"),), serves=True),
        "of a service": ours.issue_service("conductor", now_ms=now_ms(), cell=CELL),
        "of two hosts": ours.issue(
            "h1", now_ms=now_ms(), uris=(host_uri(CELL, "h1"), host_uri(CELL, "h2")), dials=True
        ),
        "with the name in the common name": ours.issue(host_uri(CELL, "h1"), now_ms=now_ms(), dials=True),
        "of a host that nobody approved": ours.issue_host(CELL, "h9", now_ms=now_ms()),
    }
    wrong = {
        what: save(each, ours, tmp_path / "wrong", str(number))
        for number, (what, each) in enumerate(issued.items())
    }
    wrong["signed by itself"] = _self_signed(tmp_path / "self", host_uri(CELL, "h1"), ours.pem)
    before = await conductor.settled()

    outcomes = {what: await _knock(conductor, files) for what, files in wrong.items()}
    outcomes["none"] = await _knock(conductor, None, ca=ours.pem)

    assert not {what for what, outcome in outcomes.items() if outcome == "granted"}
    assert {what: outcome for what, outcome in outcomes.items() if outcome in {"UNKNOWN", "INTERNAL"}} == {}
    assert outcomes["with another serial"] == outcomes["of a host that nobody approved"]
    after = await conductor.settled()
    # The right one's sign of life may have run out meanwhile, and then its session with it.
    mine = {ALIVE.at("h1"), SESSION.at("h1")}
    assert {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} <= mine
    _check_log(conductor)


async def _knock(
    conductor: ConductorProcess, files: TlsFiles | None, *, ca: bytes = b"", tries: int = HIDDEN_TRIES
) -> str:
    """What a hello comes to: `granted`, a farewell's reason, or the name of a code."""
    if files is not None:
        wire = channel(conductor.endpoint, files)
    else:
        wire = grpc.aio.secure_channel(conductor.endpoint, grpc.ssl_channel_credentials(ca))
    async with wire:
        session: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = wire.stream_stream(SESSION_PATH)
        host = HostEnd(session(timeout=15))
        try:
            await host.say(Hello(boot_id="boot", agent_version="1", highest_epoch=0))
            answer = await host.next_of(Granted | Goodbye)
        except grpc.aio.AioRpcError as refused:
            if refused.details() == HIDDEN and tries:
                return await _knock(conductor, files, ca=ca, tries=tries - 1)
            return refused.code().name
        finally:
            await host.close()
        if isinstance(answer, Goodbye):
            return answer.reason
        return "granted" if answer is not None else (await host.call.code()).name


def _self_signed(folder: Path, uri: str, ca: bytes) -> TlsFiles:
    folder.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "h1")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = TlsFiles(ca_path=folder / "ca.pem", cert_path=folder / "cert.pem", key_path=folder / "key.pem")
    files.ca_path.write_bytes(ca)
    files.cert_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files.key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return files


def _check_log(conductor: ConductorProcess) -> None:
    """Nothing happened that was not foreseen."""
    log = conductor.log
    for word in (
        "Traceback",
        "rpc.failed",
        "INTERNAL",
        "UNKNOWN",
        "writer.dropped",
        "\x1b]0;pwned",
        "PAY_ME",
    ):
        assert word not in log, word
