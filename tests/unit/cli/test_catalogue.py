from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from tests.unit.cli.shell import Shell


def test_a_flavor_is_made_listed_shown_and_deleted(shell: Shell) -> None:
    shell.ok(
        "flavor", "create", "--id", "auto", "--ram", "512", "--disk", "1", "--vcpus", "1", "m1.nebula_micro"
    )

    assert shell.json("flavor", "list")[0] | {"ID": ""} == {
        "ID": "",
        "Name": "m1.nebula_micro",
        "RAM": 512,
        "Disk": 1,
        "VCPUs": 1,
    }
    assert shell.json("flavor", "show", "m1.nebula_micro", "-c", "ram") == {"ram": 512}
    shell.ok("flavor", "delete", "m1.nebula_micro")
    assert shell.json("flavor", "list") == []


def test_flavor_properties_are_pairs(shell: Shell) -> None:
    assert shell.json("flavor", "create", "--ram", "64", "--property", "trait:GPU=required", "g1")[
        "properties"
    ] == {"trait:GPU": "required"}
    assert shell.run("flavor", "create", "--ram", "64", "--property", "GPU", "g2").exit_code == 2


def test_a_keypair_is_made_here_and_its_private_half_printed_alone(shell: Shell) -> None:
    result = shell.run("keypair", "create", "nebula_key")
    private = load_ssh_private_key(result.stdout.encode(), None)
    (sent,) = shell.api.requests("create_keypair")

    assert result.exit_code == 0
    assert "chmod 600" in result.stderr
    assert private.public_key() == load_ssh_public_key(sent.keypair.public_key.encode())
    assert "PRIVATE" not in str(shell.api.seen)


def test_a_private_key_file_is_new_and_for_its_owner(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "nebula_key.pem"
    assert shell.json("keypair", "create", "--private-key", str(path), "nebula_key")["type"] == "ssh-ed25519"

    assert path.stat().st_mode & 0o777 == 0o600
    assert isinstance(load_ssh_private_key(path.read_bytes(), None), Ed25519PrivateKey)
    assert shell.run("keypair", "create", "--private-key", str(path), "other").exit_code == 2
    assert list(shell.api.keypairs) == ["nebula_key"]


def test_a_key_that_was_not_registered_leaves_no_file(shell: Shell, tmp_path: Path) -> None:
    shell.ok("keypair", "create", "nebula_key")

    assert shell.run("keypair", "create", "--private-key", str(tmp_path / "k"), "nebula_key").exit_code == 5
    assert not (tmp_path / "k").exists()


def test_a_public_key_is_registered_as_it_is(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "id.pub").write_text("# mine\nssh-ed25519 AAAA ann@laptop\n")
    shell.ok("keypair", "create", "--public-key", str(tmp_path / "id.pub"), "laptop")

    assert shell.ok("keypair", "show", "--public-key", "laptop") == "ssh-ed25519 AAAA ann@laptop\n"
    assert shell.json("keypair", "list")[0]["Name"] == "laptop"
    shell.ok("keypair", "delete", "laptop")


@pytest.mark.parametrize(
    "text", ["-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n", "", "one\n", "ssh-rsa A\nssh-rsa B\n"]
)
def test_what_is_no_public_key_stays_here(shell: Shell, tmp_path: Path, text: str) -> None:
    (tmp_path / "id").write_text(text)

    assert shell.run("keypair", "create", "--public-key", str(tmp_path / "id"), "laptop").exit_code == 2
    assert shell.api.seen == []


def test_an_image_goes_up_and_comes_down_again(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "root.raw").write_bytes(b"root" * 1000)
    (tmp_path / "vmlinuz").write_bytes(b"kernel")
    kernel = shell.json(
        "image", "create", "--file", str(tmp_path / "vmlinuz"), "--disk-format", "kernel", "linux"
    )
    made = shell.json(
        *(
            "image",
            "create",
            "--file",
            str(tmp_path / "root.raw"),
            "--disk-format",
            "raw",
            "--kernel-id",
            "linux",
        ),
        *("--public", "--min-disk", "2", "--property", "os_admin_user=root", "debian"),
    )

    assert (made["status"], made["size"], made["visibility"], made["disk_format"]) == (
        "active",
        4000,
        "public",
        "raw",
    )
    assert made["kernel_id"] == kernel["id"]
    assert [it["Name"] for it in shell.json("image", "list", "--sort-column", "size")] == ["linux", "debian"]
    shell.ok("image", "save", "--file", str(tmp_path / "copy"), "debian")
    assert (tmp_path / "copy").read_bytes() == b"root" * 1000
    shell.ok("image", "delete", "debian", "linux")
    assert shell.json("image", "list") == []


def test_an_image_is_private_unless_it_is_said(stocked: Shell) -> None:
    assert stocked.json("image", "show", "nebula_standard_os")["visibility"] == "private"


def test_networks_are_listed_and_shown(shell: Shell) -> None:
    assert shell.json("network", "list")[0]["Name"] == "nebula_net"
    assert shell.json("network", "show", "nebula_net")["mtu"] == 1450


def test_a_host_is_approved_and_taken_out_of_scheduling(shell: Shell) -> None:
    shell.ok(
        *(
            "host",
            "create",
            "--cell",
            "cell1",
            "--availability-zone",
            "nova",
            "--vcpus",
            "8",
            "--ram",
            "4096",
        ),
        *("--disk", "100", "--guest-cidr", "10.64.3.0/24", "--trait", "GPU", "host-3"),
    )
    shell.ok("host", "set", "--disable", "--disable-reason", "disk", "host-3")
    shown = shell.json("host", "show", "host-3")

    assert (shown["enabled"], shown["disabled_reason"], shown["traits"]) == (False, "disk", ["GPU"])
    assert shown["ram_mib"] == {"claimed": 0, "total": 4096}
    shell.ok("host", "set", "--enable", "host-3")
    assert shell.json("host", "show", "host-3")["disabled_reason"] == ""
    assert shell.run("host", "set", "--enable", "--disable-reason", "x", "host-3").exit_code == 2
    assert shell.run("host", "set", "host-3").exit_code == 2
    shell.ok("host", "set", "--trait", "VOLUMES_NFS1", "--no-trait", "GPU", "host-3")
    assert shell.json("host", "show", "host-3")["traits"] == ["VOLUMES_NFS1"]


def test_where_a_hosts_networks_are_is_said_without_touching_the_rest(shell: Shell) -> None:
    shell.ok(
        *(
            "host",
            "create",
            "--cell",
            "cell1",
            "--availability-zone",
            "nova",
            "--vcpus",
            "8",
            "--ram",
            "4096",
        ),
        *("--disk", "100", "--guest-cidr", "10.64.4.0/24", "--physical-network", "external", "host-4"),
    )
    shell.ok("host", "set", "--tunnel-address", "192.0.2.14", "host-4")
    shown = shell.json("host", "show", "host-4")

    assert (shown["enabled"], shown["tunnel_address"]) == (True, "192.0.2.14")
    assert shown["physical_networks"] == ["external"]
    shell.ok("host", "set", "--no-physical-network", "host-4")
    assert shell.json("host", "show", "host-4")["physical_networks"] == []
    both = ("--physical-network", "x", "--no-physical-network")
    assert shell.run("host", "set", *both, "host-4").exit_code == 2


def test_cells_whose_hosts_are_missing_are_named_beside_the_list(shell: Shell) -> None:
    result = shell.run("host", "list", "-f", "json")

    assert result.stdout == "[]\n"
    assert "cell2" in result.stderr


def test_a_project_has_its_quota(shell: Shell) -> None:
    made = shell.json("project", "create", "--instances", "5", "--cores", "8", "--ram", "4096", "nebula_prod")

    assert (made["quota_instances"], made["quota_cores"], made["quota_ram"]) == (5, 8, 4096)
    assert shell.json("project", "list")[0]["Name"] == "nebula_prod"
    assert shell.json("project", "show", "nebula_prod")["id"] == made["id"]
    assert shell.run("project", "create", "--cores", "8", "half").exit_code == 2
    assert shell.run("project", "create", "--volumes", "8", "half").exit_code == 2


def test_a_projects_limits_are_changed_one_by_one(shell: Shell) -> None:
    words = ("--instances", "5", "--cores", "8", "--ram", "4096", "--volumes", "3", "--gigabytes", "30")
    made = shell.json("project", "create", *words, "nebula_prod")

    shell.ok("project", "set", "--volumes", "0", "--description", "Nebula Inc.", "nebula_prod")
    after = shell.json("project", "show", "nebula_prod")

    assert (made["quota_volumes"], made["quota_gigabytes"]) == (3, 30)
    assert {name for name in after if after[name] != made[name]} == {"quota_volumes", "description"}
    assert (after["quota_volumes"], after["description"]) == (0, "Nebula Inc.")
    assert shell.run("project", "set", "nebula_prod").exit_code == 2


def test_a_user_is_made_with_a_password_typed_twice(shell: Shell) -> None:
    result = shell.run(
        *("user", "create", "--project", "nebula_prod", "--password-prompt", "nebula_admin", "-f", "json"),
        text="correct horse\ncorrect horse\n",
    )
    (sent,) = shell.api.requests("create_user")

    assert result.exit_code == 0
    assert "correct horse" not in result.output
    assert (sent.password, sent.project, sent.role) == ("correct horse", "nebula_prod", "member")
    assert shell.json("user", "show", "nebula_admin")["system_admin"] is False
    assert len(shell.json("user", "list")) == 1


@pytest.mark.parametrize(
    "options",
    [(), ("--password", "x", "--password-prompt"), ("--password", "x", "--role", "admin")],
)
def test_a_user_needs_one_password_and_a_role_its_project(shell: Shell, options: tuple[str, ...]) -> None:
    assert shell.run("user", "create", *options, "ann").exit_code == 2


def test_a_role_is_added_and_taken_back(shell: Shell) -> None:
    shell.ok("role", "add", "--user", "ann", "--project", "nebula_prod", "admin")
    assert shell.api.roles == [("ann", "nebula_prod", "admin")]

    shell.ok("role", "remove", "--user", "ann", "--project", "nebula_prod", "admin")

    assert shell.api.roles == []


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        (("--disable",), {"disabled": True}),
        (("--enable", "--no-system-admin"), {"disabled": False, "system_admin": False}),
        (("--password", "correct horse"), {"password": "correct horse"}),
        (("--password-prompt",), {"password": "battery staple"}),
        (("--project", ""), {"default_project": ""}),
    ],
)
def test_what_is_said_of_a_user_is_changed(
    shell: Shell, options: tuple[str, ...], changed: dict[str, object]
) -> None:
    shell.ok("user", "create", "--password", "correct horse", "ann")

    result = shell.run("user", "set", *options, "ann", text="battery staple\nbattery staple\n")
    (sent,) = shell.api.requests("update_user")

    assert result.exit_code == 0
    assert "staple" not in result.output
    assert {path: getattr(sent, path) for path in sent.update_mask.paths} == changed
    assert shell.json("user", "show", "ann")["enabled"] is not changed.get("disabled", False)


@pytest.mark.parametrize("options", [(), ("--password", "correct horse", "--password-prompt")])
def test_a_user_is_changed_in_something_and_to_one_password(shell: Shell, options: tuple[str, ...]) -> None:
    assert shell.run("user", "set", *options, "ann").exit_code == 2
