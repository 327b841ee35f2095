"""The bare way to a fabric's own libvirtd: the same domains by hand, as a script would make them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import libvirt

from hostd.core.tap_names import BRIDGE
from tests.e2e.running import Running

OWNER: Final = 1_900_065_000
"""A user id at the end of hostd's range, which it gives out from the beginning."""


class BareHost:
    """The bare way to the fabric's own libvirtd."""

    def __init__(self, fabric: Running) -> None:
        ((cell,),) = (fabric.topology["cells"],)
        (host,) = cell["hosts"]
        self._netns: str = host["link"]["netns"]
        self._state = fabric.state / "host" / host["name"]
        self._folder = self._state / "bench"
        self._connection = libvirt.open(self.uri)

    def close(self) -> None:
        self._connection.close()

    def definition(self, instance_id: str) -> str:
        """What the fabric has defined, as it is on disk."""
        text: str = self._connection.lookupByUUIDString(instance_id).XMLDesc(
            libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
        )
        return text

    @contextlib.contextmanager
    def twin(self, definition: str) -> Iterator[libvirt.virDomain]:
        """A domain like the fabric's, defined and started by hand, for as long as the block lasts."""
        domain_id = str(uuid.uuid4())
        with self._made(domain_id) as (tap, _):
            domain = self._connection.defineXML(self._adapted(definition, domain_id, tap))
            domain.create()
            try:
                yield domain
            finally:
                if domain.isActive():
                    domain.destroy()
                domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)

    @property
    def uri(self) -> str:
        """Where a script by hand connects to."""
        return f"qemu+unix:///system?socket={self._state}/lv/run/libvirt-sock"

    @property
    def twin_console(self) -> Path:
        """What the twin writes to its console."""
        return self._folder / "console.log"

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
