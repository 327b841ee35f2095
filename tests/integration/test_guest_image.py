"""The guest image, booted for real: what it does with a config drive, a metadata service, a reboot, a power button."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.integration.guest_machine import (
    CARD,
    Machine,
    config_drive,
    disk,
    new_key,
    overlay,
    public,
    write_metadata,
)

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "packages"
PROGRAMS = ("apt-get", "genisoimage", "qemu-img", "qemu-system-x86_64", "ssh", "ssh-keygen")

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        bool([name for name in PROGRAMS if not shutil.which(name)]),
        reason=f"needs {', '.join(PROGRAMS)}: run tools/setup",
    ),
]


def build(out: Path, *options: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.guest_image", "--out", str(out), "--cache", str(CACHE), *options]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
    )


@pytest.fixture(scope="module")
def image() -> Path:
    """The folder of the built image, as `make` leaves it."""
    out = ROOT / ".cache" / "guest-image"
    done = build(out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_key(tmp_path_factory.mktemp("key") / "owner")


@pytest.fixture(scope="module")
def guest(image: Path, key: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A guest with a config drive, booted; shared by tests that only look at it."""
    folder = tmp_path_factory.mktemp("guest")
    other = new_key(folder / "other")
    metadata = {
        "random_seed": "x" * 512,
        # A trap for whoever takes the first "hostname" or "uuid" of the text.
        "meta": {"hostname": "wrong", "uuid": 'also "wrong"', "note": "ключ ☃ \\ \n"},
        "uuid": "8d3e4c1f-0000-4000-8000-000000000001",
        "hostname": "nebula-web-01.fabric.example",
        "keys": [{"name": "other", "type": "ssh", "data": public(other)}],
        "public_keys": {"owner": public(key)},
    }
    user_data = "#!/bin/sh\necho user data says $(hostname)\nexit 3\n"
    drive = config_drive(folder, metadata, user_data)
    root = overlay(image / "cellfabric-guest.qcow2", folder / "disk.qcow2", size="3G")
    with Machine(*disk(root), *disk(drive, form="raw", read_only=True), *CARD, key=key) as machine:
        machine.ready()
        yield machine


def test_the_guest_takes_the_first_label_of_its_name(guest: Machine) -> None:
    assert guest.run("hostname").strip() == "nebula-web-01"


@pytest.mark.parametrize("user", ["root", "fabric"])
def test_the_owners_key_opens_both_accounts(guest: Machine, user: str) -> None:
    assert guest.run("id -un", user=user).strip() == user


def test_keys_of_both_lists_are_taken(guest: Machine) -> None:
    kept = guest.run("cat /root/.ssh/authorized_keys").splitlines()

    assert [line.split()[-1] for line in kept if line.startswith("ssh-ed25519 ")] in (
        ["owner", "other"],
        ["other", "owner"],
    )


def test_the_plain_user_reads_nothing_of_roots(guest: Machine) -> None:
    done = guest.ssh(
        "cat /run/cellfabric/data/user_data /etc/shadow /root/.ssh/authorized_keys", user="fabric"
    )

    assert done.returncode != 0
    assert done.stdout == ""


def test_a_key_that_was_not_given_is_refused(guest: Machine, tmp_path: Path) -> None:
    done = guest.ssh("true", key=new_key(tmp_path / "stranger"))

    assert done.returncode == 255
    assert "Permission denied (publickey)" in done.stderr


def test_the_console_shows_the_fingerprint_of_the_real_host_key(guest: Machine) -> None:
    done = subprocess.run(
        ["ssh-keygen", "-l", "-f", "-"], input=guest.host_key(), capture_output=True, text=True, check=True
    )
    _, _, after = guest.console.partition("-----BEGIN SSH HOST KEY FINGERPRINTS-----\n")

    assert after.split()[1] == done.stdout.split()[1]
    assert guest.run("true") == ""  # ssh() lets nothing but this key pass


def test_root_grows_to_the_disks_end(guest: Machine) -> None:
    size_mib = int(guest.run("df -m / | awk 'END { print $(NF-4) }'"))

    assert 2800 < size_mib <= 3072


def test_the_guest_describes_itself_to_people(guest: Machine) -> None:
    lines = guest.run("fabric-guest-info", user="fabric").splitlines()
    rows = {line[2:14].strip(): line[15:] for line in lines[1:]}

    assert rows["hostname"] == "nebula-web-01"
    assert rows["kernel"].startswith("Linux ")
    assert rows["vcpus"] == "1"
    assert rows["addresses"] == "eth0 10.0.2.15/24"
    assert rows["instance"] == "8d3e4c1f-0000-4000-8000-000000000001"
    assert rows["data from"] == "config drive"


def test_user_data_runs_after_the_name_is_set_and_its_failure_is_told(guest: Machine) -> None:
    assert "\nuser data says nebula-web-01\n" in guest.console
    assert "user data ended with status 3\n" in guest.console


def test_the_console_asks_for_a_login_and_nobody_has_a_password(guest: Machine) -> None:
    guest.run("until pidof getty > /dev/null; do sleep 1; done")
    passwords = [line.split(":")[1] for line in guest.run("cat /etc/shadow").splitlines()]

    assert set(passwords) == {"*"}


def test_the_root_file_system_is_clean_and_mounted_with_a_journal(guest: Machine) -> None:
    assert guest.run("ls -d /proc/fs/jbd2/*").startswith("/proc/fs/jbd2/vda2")
    assert "error" not in guest.run("dmesg | grep -i ext4").lower()


@pytest.mark.slow
def test_one_instance_runs_user_data_once_and_the_next_starts_anew(
    image: Path, key: Path, tmp_path: Path
) -> None:
    """Reboot, power button, and then the same disk as another instance: what stays and what must not."""
    root = overlay(image / "cellfabric-guest.qcow2", tmp_path / "disk.qcow2", size="512M")
    script = "#!/bin/sh\necho ran as $(cat /var/lib/cellfabric/instance-id) >> /root/runs\n"

    def instance(name: str, owner: Path) -> Machine:
        (tmp_path / name).mkdir()
        metadata = {"uuid": f"id-of-{name}", "hostname": name, "public_keys": {"k": public(owner)}}
        drive = config_drive(tmp_path / name, metadata, script)
        return Machine(*disk(root), *disk(drive, form="raw", read_only=True), *CARD, key=owner)

    with instance("first", key) as machine:
        machine.ready()
        first_key = machine.host_key()
        machine.run("echo '# mine' >> /root/.ssh/authorized_keys; echo kept > /root/kept; reboot")
        machine.ready()
        after_reboot = machine.host_key()
        kept = machine.run("cat /root/kept /root/runs /root/.ssh/authorized_keys")
        machine.press_power_button()
        status = machine.wait_off()
        going_down = machine.console

    assert after_reboot == first_key
    assert kept.splitlines()[:2] == ["kept", "ran as id-of-first"]
    assert kept.count("ran as") == 1
    assert kept.count("# mine") == kept.count("ssh-ed25519") == 1
    assert status == 0
    assert "Power down" in going_down

    owner = new_key(tmp_path / "second-owner")
    with instance("second", owner) as machine:
        name = machine.ready()
        second_key = machine.host_key()
        runs = machine.run("cat /root/runs").splitlines()
        old_owner = machine.ssh("true", key=key)

    assert name == "second"
    assert second_key != first_key
    assert runs == ["ran as id-of-first", "ran as id-of-second"]
    assert "Permission denied" in old_owner.stderr


def test_without_a_config_drive_the_metadata_service_is_asked(image: Path, key: Path, tmp_path: Path) -> None:
    metadata = {"uuid": "id-3", "hostname": "by-service", "public_keys": {"k": public(key)}}
    pages = write_metadata(tmp_path / "pages", metadata, "#!/bin/sh\necho served user data\n")
    root = overlay(image / "cellfabric-guest.qcow2", tmp_path / "disk.qcow2", size="512M")
    # One web server process per connection, its standard input and output being the connection.
    busybox = next(path for path in CACHE.glob("unpacked/*/bin/busybox") if b"\nhttpd\n" in applets(path))
    server = f"{busybox} httpd -i -h {pages}"
    network = f"net=169.254.0.0/16,dhcpstart=169.254.0.15,guestfwd=tcp:169.254.169.254:80-cmd:{server.replace(',', ',,')}"

    with Machine(*disk(root), *CARD, key=key, machine="q35").with_network(network) as machine:
        name = machine.ready()
        source = machine.run("cat /run/cellfabric/source").strip()
        console = machine.console

    assert (name, source) == ("by-service", "metadata service")
    assert "\nserved user data\n" in console


def test_kernel_and_ram_disk_boot_the_bare_root_file_system(image: Path, key: Path, tmp_path: Path) -> None:
    root = overlay(image / "cellfabric-guest-root.ext4", tmp_path / "root.qcow2", size="700M", form="raw")
    metadata = {"uuid": "id-4", "hostname": "ami", "public_keys": {"k": public(key)}}
    drive = config_drive(tmp_path, metadata, "#cloud-config\nhostname: not-understood\n")
    boot = ("-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initrd.img"))
    line = ("-append", "root=/dev/vda console=tty0 console=ttyS0 quiet")

    with Machine(
        *boot, *line, *disk(root), *disk(drive, form="raw", read_only=True), *CARD, key=key
    ) as machine:
        machine.wait_for(r"user data does not begin with #! and is left alone$")
        name = machine.ready()
        size_mib = int(machine.run("df -m / | awk 'END { print $(NF-4) }'"))

    assert name == "ami"
    assert 600 < size_mib <= 700


def test_with_nothing_to_go_by_the_guest_still_comes_up_and_says_so(
    image: Path, key: Path, tmp_path: Path
) -> None:
    root = overlay(image / "cellfabric-guest.qcow2", tmp_path / "disk.qcow2", size="512M")
    drive = config_drive(tmp_path, {}, None)
    content = drive.read_bytes()
    assert content.count(b"{}") == 1
    drive.write_bytes(content.replace(b"{}", b"{,"))

    with Machine(*disk(root), *disk(drive, form="raw", read_only=True), key=key) as machine:
        machine.wait_for(r"has no readable openstack/latest/meta_data.json$")
        machine.wait_for(r"no network card$")
        machine.wait_for(r"neither a config drive nor a metadata service")
        name = machine.ready()
        machine.wait_for(r"^guest login: ")

    assert name == "guest"


def test_what_was_built_is_not_built_again(image: Path) -> None:
    before = (image / "manifest.json").stat()

    done = build(image)

    assert "up to date" in done.stdout
    assert (image / "manifest.json").stat().st_mtime_ns == before.st_mtime_ns


def test_an_output_that_changed_is_noticed_by_the_check(image: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(image, copy)
    assert build(copy, "--check").returncode == 0

    with (copy / "initrd.img").open("r+b") as stream:
        stream.write(b"\0")
    done = build(copy, "--check")

    assert done.returncode == 1
    assert "initrd.img changed" in done.stdout


def test_the_same_packages_give_the_same_bytes(image: Path, tmp_path: Path) -> None:
    done = build(tmp_path / "again")

    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "again").iterdir() if p.name != ".lock") == [
        "cellfabric-guest-root.ext4",
        "cellfabric-guest.qcow2",
        "initrd.img",
        "manifest.json",
        "vmlinuz",
    ]
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (image, tmp_path / "again")]
    assert manifests[0]["files"] == manifests[1]["files"]


def test_a_missing_program_is_named_with_its_package_and_nothing_is_left(tmp_path: Path) -> None:
    done = build(tmp_path / "out", env={"PATH": str(tmp_path)})

    assert done.returncode == 1
    assert "apt-get install apt" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_old_package_lists_are_told_with_their_remedy(tmp_path: Path) -> None:
    (tmp_path / "lists" / "partial").mkdir(parents=True)
    settings = tmp_path / "apt.conf"
    settings.write_text(f'Dir::State::Lists "{tmp_path}/lists";\nDir::Cache "{tmp_path}";\n')

    done = build(tmp_path / "out", env={"APT_CONFIG": str(settings)})

    assert done.returncode == 1
    assert "apt does not know" in done.stderr
    assert "run 'apt-get update'" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def applets(busybox: Path) -> bytes:
    return subprocess.run([str(busybox), "--list"], capture_output=True, check=True).stdout
