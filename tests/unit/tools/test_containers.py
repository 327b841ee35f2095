"""What the containers are given agrees with what runs in them, and nobody is given more than is theirs."""

from __future__ import annotations

import json
import os
import re
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from fabric.config.load import load
from fabric.config.settings import PROCESSES
from fabric.model.host import Resources
from tools.containers import debian, site
from tools.containers.engine import ROOT

COMPOSE = (ROOT / "tools/containers/compose.yaml").read_text(encoding="utf-8")
SERVICES = {*site.MEMBERS, "api", "scheduler", "conductor", *site.HOSTS, "operator"}
SIZE = Resources(vcpus=8, ram_mib=4096, disk_gib=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("site") / "site"
    site.write(made, site.plans(SIZE), now_ms=1_000_000, owner=(os.getuid(), os.getgid()))
    return made


def test_every_service_has_a_folder_and_is_shown_no_other(folder: Path) -> None:
    shown = re.findall(r"\$\{CELLFABRIC_SITE:\?\}/([a-z0-9-]+):/etc/cellfabric:ro", COMPOSE)

    assert sorted(shown) == sorted(SERVICES)
    assert {path.name for path in folder.iterdir()} == SERVICES


@pytest.mark.parametrize(
    ("service", "process"),
    [
        ("api", "api"),
        ("scheduler", "scheduler"),
        ("conductor", "conductor"),
        *((host, "hostd") for host in site.HOSTS),
    ],
)
def test_every_process_can_read_its_settings(folder: Path, service: str, process: str) -> None:
    load(PROCESSES[process], process, path=folder / service / "settings.toml", environment={})


def test_a_host_has_its_own_key_and_no_way_into_a_store(folder: Path) -> None:
    for host in site.HOSTS:
        assert {path.name for path in (folder / host).rglob("*")} == {
            "ca.pem",
            "own.pem",
            "own.key",
            "settings.toml",
        }


def test_no_authority_is_kept_where_a_service_could_read_it(folder: Path) -> None:
    """Whoever has an authority's key can be anybody."""
    assert list(folder.rglob("ca.key")) == []


def test_keys_are_readable_by_their_owner_alone(folder: Path) -> None:
    secrets = [path for path in folder.rglob("*") if path.suffix == ".key" or path.name == "admin-password"]

    assert len(secrets) > len(SERVICES)
    assert {path.stat().st_mode & 0o777 for path in secrets} == {0o600}


def test_the_operator_knows_the_certificate_of_each_host(folder: Path) -> None:
    plan = json.loads((folder / "operator" / "plan.json").read_text())

    assert [host["name"] for host in plan["hosts"]] == list(site.HOSTS)
    assert (
        len({host["cert_serial"] for host in plan["hosts"]} | {host["guest_cidr"] for host in plan["hosts"]})
        == 4
    )


def test_the_tunnel_address_of_each_host_is_the_one_that_it_has_in_the_underlay(folder: Path) -> None:
    plan = json.loads((folder / "operator" / "plan.json").read_text())
    (underlay,) = re.findall(r"^  underlay:.*?subnet: ([0-9./]+)", COMPOSE, re.MULTILINE | re.DOTALL)
    given = dict(
        re.findall(r"^  (host-\d+):(?:\n    .*)*?underlay: \{ipv4_address: ([0-9.]+)", COMPOSE, re.MULTILINE)
    )

    assert {host["name"]: host["tunnel_address"] for host in plan["hosts"]} == given
    assert all(ip_address(each) in ip_network(underlay) for each in given.values())
    assert not any(ip_network(host["guest_cidr"]).overlaps(ip_network(underlay)) for host in plan["hosts"])


def test_a_root_file_system_is_named_by_all_that_shapes_it() -> None:
    one = debian.RootFs("one", ("a", "b"))

    assert one.digest == debian.RootFs("two", ("a", "b")).digest
    assert one.digest != debian.RootFs("one", ("a", "b", "c")).digest


def test_the_wheels_are_for_the_python_that_the_images_have() -> None:
    assert f"/lib/python{debian.PYTHON}/site-packages" in (ROOT / "tools/containers/Dockerfile").read_text()
