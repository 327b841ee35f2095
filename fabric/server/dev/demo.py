"""The first path, walked for somebody who watches: from nothing to a shell in a guest, by the commands that a person would type.

Each step looks at what is there and adds what is missing, so that it may be run again after any interruption. Only `fabric` commands
are used, each shown as it is run.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import subprocess
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fabric.errors import InvalidRequest, Unavailable, WrongState
from fabric.model.host import Resources
from fabric.server.dev import machine, profile, starting
from fabric.server.dev.topology import DEFAULT_STATE, Options, Topology

PROJECT: Final = "nebula_prod"
USER: Final = "nebula_admin"
FLAVOR: Final = "m1.nebula_micro"
KEY: Final = "nebula_key"
IMAGE: Final = "nebula_standard_os"
NETWORK: Final = "default"
SERVER: Final = "nebula_web_01"
PROFILE: Final = "nebula"

IMAGE_FILE: Final = "cellfabric-guest.qcow2"
GUEST_COMMAND: Final = "fabric-guest-info"

ROOM_RAM_MIB: Final = 1536
ROOM_DISK_GIB: Final = 6
"""What each of two hosts must have: the demo's server, and one that is twice as large."""

BUILD_TIMEOUT_S: Final = 300
LOGIN_TIMEOUT_S: Final = 240.0
_TRY_S: Final = 20.0
_ABSENT: Final = 4
"""The exit code of `fabric … show` for what is not there."""

Say = Callable[[str], None]


def run(state: Path, say: Say) -> None:
    """Walk it. A fabric that runs on `state` is used, else one is started.

    Raises:
        InvalidRequest: something is missing on this machine; the message says what brings it.
        Unavailable: the fabric does not start, or the guest does not answer.
        WrongState: a command failed; its words are in the message.
    """
    begun_s = time.monotonic()
    image = machine.guest_image_folder() / IMAGE_FILE
    if not image.exists():
        raise InvalidRequest(f"the guest image {image} is not there: `make image` builds it", field="image")
    topology = _fabric(state, say)
    walk = Walk(topology, say)
    walk.administrator()
    walk.tenant(image)
    walk.server()
    words = walk.log_in()
    say("")
    say(words.rstrip())
    say("")
    say(f"{SERVER} runs, and lets {USER} in: {time.monotonic() - begun_s:.0f} s for all of it.")
    for line in _how_to_go_on(topology):
        say(line)


def _fabric(state: Path, say: Say) -> Topology:
    found = starting.running(state)
    if found is not None:
        say(f"a fabric is running on {state}")
        return found[0]
    options = options_for(state, _share(state))
    say(f"starting a fabric: one cell, {'two hosts' if options.hosts > 1 else 'one host'}")
    topology, lock = starting.prepare(options, say)
    starting.launch(topology, lock)
    starting.await_ready(topology, say)
    return topology


def options_for(state: Path, share: Resources | None) -> Options:
    """Two hosts, so that servers can be resized and migrated, which takes another host than theirs; one where two are too small.

    Args:
        state: the folder.
        share: what each of two hosts would have; None where the machine has not even that.
    """
    if share is None or share.ram_mib < ROOM_RAM_MIB or share.disk_gib < ROOM_DISK_GIB:
        return Options(state=state)
    return Options(state=state, hosts=2)


def _share(state: Path) -> Resources | None:
    try:
        return machine.share_out(Options(state=state, hosts=2))[0]
    except InvalidRequest:
        return None


class Walk:
    """The steps."""

    def __init__(self, topology: Topology, say: Say) -> None:
        self._topology = topology
        self._say = say
        self._fabric = Path(sysconfig.get_path("scripts")) / "fabric"
        self._key = topology.paths.client / f"{KEY}.pem"

    def administrator(self) -> None:
        """What only the system's administrator may do: the tenant and the menu."""
        if not self._is_there(profile.ADMIN, "project", PROJECT):
            self._do(profile.ADMIN, "project", "create", PROJECT)
        if not profile.has(self._topology, PROFILE):
            # Kept before it is given, so that nobody is made whose password is lost.
            profile.add(
                self._topology, PROFILE, username=USER, project=PROJECT, password=secrets.token_urlsafe(18)
            )
        if not self._is_there(profile.ADMIN, "user", USER):
            password = (self._topology.paths.client / f"{PROFILE}-password").read_text(encoding="ascii")
            words = ("user", "create", "--project", PROJECT, "--role", "admin", "--password-prompt", USER)
            self._do(profile.ADMIN, *words, stdin=password * 2)
        if not self._is_there(profile.ADMIN, "flavor", FLAVOR):
            size = ("--ram", "512", "--disk", "1", "--vcpus", "1")
            self._do(profile.ADMIN, "flavor", "create", "--id", "auto", *size, FLAVOR)

    def tenant(self, image: Path) -> None:
        """What the tenant brings along: a key and an image."""
        if not self._is_there(PROFILE, "keypair", KEY):
            # The half that is here is of no use without the other.
            self._key.unlink(missing_ok=True)
            self._do(PROFILE, "keypair", "create", "--private-key", str(self._key), KEY)
            os.chown(self._key, *profile.owner())
        if not self._key.exists():
            raise WrongState(
                f"{self._key} is gone, and is kept nowhere else: `fabric dev down`, and begin anew"
            )
        if not self._is_there(PROFILE, "image", IMAGE):
            self._do(PROFILE, "image", "create", "--file", str(image), "--disk-format", "qcow2", IMAGE)

    def server(self) -> None:
        """The server, ACTIVE: made, started, or found so."""
        status = self._status()
        if status == "BUILD":
            self._say(f"{SERVER} is being built")
            until_s = time.monotonic() + BUILD_TIMEOUT_S
            while (status := self._status()) == "BUILD" and time.monotonic() < until_s:
                time.sleep(1)
        if status == "ERROR":
            self._do(PROFILE, "server", "delete", "--wait", SERVER)
            status = ""
        if status == "SHUTOFF":
            self._do(PROFILE, "server", "start", "--wait", SERVER)
        elif not status:
            what = ("--flavor", FLAVOR, "--image", IMAGE, "--network", NETWORK, "--key-name", KEY)
            patience = ("--wait", "--wait-timeout", str(BUILD_TIMEOUT_S))
            self._do(PROFILE, "server", "create", *what, *patience, SERVER)
        self._do(PROFILE, "server", "list", shows=True)

    def log_in(self) -> str:
        """What the guest says over SSH, once it lets us in."""
        words = ("server", "ssh", "-i", str(self._key), SERVER, "--", GUEST_COMMAND)
        self._say(shown(PROFILE, words))
        until_s = time.monotonic() + LOGIN_TIMEOUT_S
        while True:
            try:
                done = self._run(PROFILE, *words, timeout_s=_TRY_S)
            except subprocess.TimeoutExpired:
                done = None
            if done is not None and done.returncode == 0:
                return done.stdout
            if time.monotonic() > until_s:
                last = "no answer" if done is None else done.stderr.strip()
                raise Unavailable(
                    f"{SERVER} lets nobody in after {LOGIN_TIMEOUT_S:.0f} s: {last}\n"
                    f"what it says: fabric console log show {SERVER}"
                )
            self._say("    the guest is booting …")
            time.sleep(2)

    def _status(self) -> str:
        """The server's state; empty when there is none."""
        done = self._run(PROFILE, "server", "show", SERVER, "-f", "json", timeout_s=60)
        if done.returncode == _ABSENT:
            return ""
        self._check(done)
        return str(json.loads(done.stdout)["status"])

    def _is_there(self, cloud: str, noun: str, name: str) -> bool:
        done = self._run(cloud, noun, "show", name, timeout_s=60)
        if done.returncode == _ABSENT:
            return False
        self._check(done)
        self._say(f"{noun} {name} is there")
        return True

    def _do(self, cloud: str, *words: str, stdin: str = "", shows: bool = False) -> None:
        self._say(shown(cloud, words))
        done = self._run(cloud, *words, stdin=stdin, timeout_s=BUILD_TIMEOUT_S + 60)
        self._check(done)
        if shows:
            self._say(done.stdout.rstrip())

    def _check(self, done: subprocess.CompletedProcess[str]) -> None:
        if done.returncode != 0:
            words = done.stderr.strip() or done.stdout.strip()
            raise WrongState(f"`fabric {shlex.join(done.args[1:])}` ended with {done.returncode}:\n{words}")

    def _run(
        self, cloud: str, *words: str, timeout_s: float, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FABRIC_")},
            "FABRIC_CLOUDS_FILE": str(profile.clouds_file(self._topology)),
            "FABRIC_CLOUD": cloud,
            # Tokens and host keys of this fabric end with it.
            "XDG_CACHE_HOME": str(self._topology.paths.client / "cache"),
            "COLUMNS": "160",
        }
        return subprocess.run(
            (str(self._fabric), *words),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            env=environment,
            # Without a terminal nothing can ask the person, and a password that is wanted is taken from stdin.
            start_new_session=True,
        )


def shown(cloud: str, words: tuple[str, ...]) -> str:
    """A command as somebody types it for whom `fabric dev env` has set the tenant's profile."""
    return f"$ fabric {shlex.join(words if cloud == PROFILE else ('--cloud', cloud, *words))}"


def _how_to_go_on(topology: Topology) -> list[str]:
    where = "" if topology.state == DEFAULT_STATE else f" --state {topology.state}"
    fabric = Path(sysconfig.get_path("scripts")) / "fabric"
    key = topology.paths.client / f"{KEY}.pem"
    return [
        "To go on:",
        f'    eval "$({fabric} dev env{where})"',
        f"    fabric server ssh -i {key} {SERVER}",
        f"    fabric console log show {SERVER}",
        f"    fabric server stop --wait {SERVER}",
        f"    fabric --cloud {profile.ADMIN} host list                # as the system's administrator",
        "To end it all:",
        f"    {'make down' if not where else f'fabric dev down{where}'}",
    ]
