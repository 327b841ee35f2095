"""What the fabric adds to a create on real libvirt: RPC to ACTIVE ÷ the same domain by a bare script on the same libvirtd.

Pairs of one create each way, in turns, so that what else the machine does falls on both alike:

- A, ours: from sending CreateInstance to reading ACTIVE by GetInstance, on a connection that is open already. In it: four etcd
  transactions, choosing the host, the order's way to the host, its journal, overlay, config drive, tap, packet filter and DHCP,
  `defineXML` and `create`. GetInstance is asked as soon as the cell's store, which is watched, has something new of the instance: to ask
  again and again would take from the hypervisor, on a small machine, what it is then found to be late.
- B, bare: `defineXML` and `create` of the domain that A made, on a connection that is open already: the same definition with another
  name, UUID, MAC, tap and files. Overlay, config drive and tap are made before by the plainest commands, and timed for themselves.

The ratio is A ÷ B of each pair; a second one counts the files and the tap to B, as somebody without a fabric would have to make them too.
The image is in the host's cache; guests are destroyed as soon as they are measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import shutil
import statistics
import subprocess
import threading
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import libvirt

from fabric.client import Client
from fabric.client.instances import Instance
from fabric.server.dev import bootstrap, topology
from fabric.store import keys
from hostd.core.tap_names import BRIDGE
from tests.bench.measure import Memory, Row, median, memory
from tests.e2e.running import Running, a_fabric, guest_images

BENCH: Final = "overhead"
PAIRS: Final = 15
PATIENCE_S: Final = 60.0
OWNER: Final = 1_900_065_000
"""A user id at the end of hostd's range, which it gives out from the beginning."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One create each way, in seconds. `files_s` is what the bare way takes for overlay, config drive and tap."""

    ours_s: float
    bare_s: float
    files_s: float


def run() -> list[Row]:
    """The whole benchmark, about two minutes."""
    with a_fabric() as fabric:
        images = guest_images()
        client = fabric.client()
        client.flavors.create(name="bench", vcpus=1, ram_mib=512, disk_gib=1)
        client.images.create(name="bench", file=images / "cellfabric-guest.qcow2", disk_format="qcow2")
        host = _Host(fabric)
        try:
            with _Changes(fabric) as changes:
                # The image is fetched, and libvirtd has seen a domain of its kind.
                _pair(client, host, changes, "warm-up")
                idle = _core_memory(fabric)
                pairs = [_pair(client, host, changes, f"pair-{number}") for number in range(PAIRS)]
        finally:
            host.close()
    return _rows(pairs, idle)


def _pair(client: Client, host: _Host, changes: _Changes, name: str) -> Pair:
    ours_s, definition = _ours(client, host, changes, name)
    bare_s, files_s = host.bare(definition)
    return Pair(ours_s, bare_s, files_s)


def _ours(client: Client, host: _Host, changes: _Changes, name: str) -> tuple[float, str]:
    """How long a create takes, and the definition that came of it."""
    began_s = time.perf_counter()
    server = client.instances.create(name=name, flavor="bench", image="bench")
    while (seen := client.instances.get(server.id)).status.state != "ACTIVE":
        _refuse_failure(seen, time.perf_counter() - began_s)
        changes.wait()
    took_s = time.perf_counter() - began_s
    definition = host.definition(server.id)
    client.instances.delete(server.id)
    client.instances.wait_until_gone(seen, timeout_s=PATIENCE_S)
    return took_s, definition


def _refuse_failure(seen: Instance, waited_s: float) -> None:
    if seen.status.state == "ERROR" or waited_s > PATIENCE_S:
        raise RuntimeError(f"{seen.name} is {seen.status.state} after {waited_s:.0f} s: {seen.status.fault}")


class _Changes:
    """Tells when the cell's store has something new of an instance."""

    def __init__(self, fabric: Running) -> None:
        self._topology = topology.load(fabric.state / "topology.json")
        self._heard: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._listening = self._loop.create_task(self._listen())
        self._thread = threading.Thread(target=self._run, name="changes")

    def __enter__(self) -> _Changes:
        self._thread.start()
        self.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._listening.cancel)
        self._thread.join()
        self._loop.close()

    def wait(self) -> None:
        """Until there is one that was not told yet. Raises queue.Empty when nothing comes for a minute."""
        self._heard.get(timeout=PATIENCE_S)

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._listening)

    async def _listen(self) -> None:
        (cell,) = self._topology.cells
        async with bootstrap.opened(self._topology) as stores:
            store = stores[cell.name]
            revision = (await store.get(keys.INSTANCE.under())).revision
            self._heard.put(None)
            async for batch in store.watch(keys.INSTANCE.under(), after=revision):
                if batch.events:
                    self._heard.put(None)


class _Host:
    """The bare way to the fabric's own libvirtd."""

    def __init__(self, fabric: Running) -> None:
        ((cell,),) = (fabric.topology["cells"],)
        (host,) = cell["hosts"]
        self._netns: str = host["link"]["netns"]
        self._state = fabric.state / "host" / host["name"]
        self._folder = self._state / "bench"
        self._connection = libvirt.open(f"qemu+unix:///system?socket={self._state}/lv/run/libvirt-sock")

    def close(self) -> None:
        self._connection.close()

    def definition(self, instance_id: str) -> str:
        """What the fabric has defined, as it is on disk."""
        text: str = self._connection.lookupByUUIDString(instance_id).XMLDesc(
            libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
        )
        return text

    def bare(self, definition: str) -> tuple[float, float]:
        """Seconds for defining and starting, and for making files and tap before that."""
        domain_id = str(uuid.uuid4())
        with self._made(domain_id) as (tap, files_s):
            document = self._adapted(definition, domain_id, tap)
            began_s = time.perf_counter()
            domain = self._connection.defineXML(document)
            domain.create()
            took_s = time.perf_counter() - began_s
            domain.destroy()
            domain.undefine()
        return took_s, files_s

    @contextlib.contextmanager
    def _made(self, domain_id: str) -> Iterator[tuple[str, float]]:
        """Overlay, config drive and tap; and how long they took."""
        tap = f"bench{domain_id[:6]}"
        (base,) = (each for each in (self._state / "hostd" / "images").iterdir() if each.suffix == ".raw")
        self._folder.mkdir(mode=0o711)
        self._folder.chmod(0o711)
        tree = self._folder / "tree" / "openstack" / "latest"
        tree.mkdir(parents=True)
        (tree / "meta_data.json").write_text("{}", encoding="ascii")
        overlay, drive, log = (self._folder / name for name in ("root.qcow2", "config.iso", "console.log"))
        began_s = time.perf_counter()
        try:
            for words in (
                ("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw", str(overlay), "1G"),
                (
                    "genisoimage",
                    "-quiet",
                    "-J",
                    "-r",
                    "-V",
                    "config-2",
                    "-o",
                    str(drive),
                    str(tree.parents[1]),
                ),
                (*self._ip(), "tuntap", "add", tap, "mode", "tap", "vnet_hdr"),
                (*self._ip(), "link", "set", tap, "master", BRIDGE, "up"),
            ):
                subprocess.run(words, check=True, capture_output=True)
            files_s = time.perf_counter() - began_s
            log.touch()
            for path in (overlay, drive):
                os.chown(path, OWNER, OWNER)
            yield tap, files_s
        finally:
            subprocess.run((*self._ip(), "link", "del", tap), check=False, capture_output=True)
            shutil.rmtree(self._folder)

    def _ip(self) -> tuple[str, ...]:
        return ("ip", "-n", self._netns)

    def _adapted(self, definition: str, domain_id: str, tap: str) -> str:
        """The same domain with a name, id, address and files of its own."""
        root = ET.fromstring(definition)  # noqa: S314 - from libvirt, which parsed it before us
        _found(root, "name").text = f"bench-{domain_id}"
        _found(root, "uuid").text = domain_id
        for entry in root.iterfind("sysinfo/system/entry"):
            if entry.get("name") in {"serial", "uuid"}:
                entry.text = domain_id
        root.remove(_found(root, "metadata"))
        names = iter(("root.qcow2", "config.iso"))
        for source in root.iterfind("devices/disk/source"):
            source.set("file", str(self._folder / next(names)))
        _found(root, "devices/interface/mac").set("address", f"52:54:00:{domain_id[:2]}:{domain_id[2:4]}:01")
        _found(root, "devices/interface/target").set("dev", tap)
        for element in root.iterfind("devices/*/log"):
            element.set("file", str(self._folder / "console.log"))
        for label in root.iterfind("seclabel[@model='dac']/label"):
            label.text = f"+{OWNER}:+{OWNER}"
        return ET.tostring(root, encoding="unicode")


def _found(root: ET.Element, path: str) -> ET.Element:
    element = root.find(path)
    assert element is not None, path
    return element


def _core_memory(fabric: Running) -> dict[str, Memory]:
    found: dict[str, dict[str, Any]] = fabric.processes()
    return {
        name: memory(int(each["pid"]))
        for name, each in found.items()
        if name.startswith(("api", "scheduler", "conductor", "hostd"))
    }


def _rows(pairs: list[Pair], idle: dict[str, Memory]) -> list[Row]:
    total = sum(idle.values(), Memory(0, 0))
    added_s = statistics.median(each.ours_s - each.bare_s - each.files_s for each in pairs)
    return [
        median(
            BENCH,
            "create, RPC to ACTIVE ÷ define and start by hand",
            [each.ours_s / each.bare_s for each in pairs],
            "ratio",
            goal="<= 1.3",
            note="by hand: defineXML and create only; overlay, config drive and tap were there",
        ),
        median(
            BENCH,
            "the same ÷ files and tap too by hand",
            [each.ours_s / (each.bare_s + each.files_s) for each in pairs],
            "ratio",
            note=f"median of what ours takes besides: {added_s * 1000:.0f} ms",
        ),
        median(BENCH, "ours: RPC to ACTIVE", [each.ours_s * 1000 for each in pairs], "ms"),
        median(BENCH, "by hand: define and start", [each.bare_s * 1000 for each in pairs], "ms"),
        median(BENCH, "by hand: overlay, config drive, tap", [each.files_s * 1000 for each in pairs], "ms"),
        Row(
            bench="memory",
            what="api + scheduler + conductor + hostd on libvirt, RSS",
            value=total.rss,
            unit="MiB",
            goal="<= 300",
            note=", ".join(f"{name} {each.rss:.0f}" for name, each in idle.items()),
        ),
        Row(
            bench="memory",
            what="the same, PSS",
            value=total.pss,
            unit="MiB",
            note=", ".join(f"{name} {each.pss:.0f}" for name, each in idle.items()),
        ),
    ]
