from __future__ import annotations

from pathlib import Path

import pytest

from fabric.cli.instance_views import line
from fabric.errors import NoCapacity, WrongState
from fabric.pb.compute.v1.instance_service_pb2 import Instance, UnreachableCell
from tests.unit.cli.shell import Shell
from tests.unit.client.fake_api import Step

CREATE = ("server", "create", "--flavor", "m1.nebula_micro", "--image", "nebula_standard_os")
SPAWNED = [Step("BUILD", "spawning"), Step("BUILD", "spawning", "image 40 %"), Step("ACTIVE")]


def test_a_create_returns_as_soon_as_it_is_accepted(stocked: Shell) -> None:
    made = stocked.json(*CREATE, "--network", "nebula_net", "--key-name", "k", "nebula_web_01")

    assert (made["status"], made["task_state"]) == ("BUILD", "scheduling")
    assert made["flavor"]["ram"] == 512
    assert stocked.time.slept == []


def test_what_was_asked_for_is_what_is_sent(stocked: Shell, tmp_path: Path) -> None:
    (tmp_path / "setup.sh").write_bytes(b"#!/bin/sh\n")
    stocked.ok(
        *(*CREATE, "--network", "nebula_net", "--key-name", "k", "--availability-zone", "az1"),
        *(
            "--user-data",
            str(tmp_path / "setup.sh"),
            "--property",
            "a=b",
            "--no-config-drive",
            "--dry-run",
            "web",
        ),
    )
    (sent,) = stocked.api.requests("create_instance")

    assert (sent.key_name, sent.availability_zone) == ("k", "az1")
    assert [(each.network, each.port) for each in sent.networks] == [("nebula_net", "")]
    assert (sent.user_data, dict(sent.metadata)) == (b"#!/bin/sh\n", {"a": "b"})
    assert (sent.no_config_drive, sent.validate_only) == (True, True)


def test_waiting_shows_progress_beside_the_output(stocked: Shell) -> None:
    stocked.api.plan["create_instance"] = list(SPAWNED)
    result = stocked.run(*CREATE, "--wait", "web", "-f", "value", "-c", "status")

    assert result.exit_code == 0
    assert result.stdout == "ACTIVE\n"
    assert result.stderr.splitlines() == [
        "web: BUILD spawning",
        "web: BUILD spawning image 40 %",
        "web: ACTIVE",
    ]


def test_a_server_that_ends_in_error_ends_the_command_with_its_fault(stocked: Shell) -> None:
    stocked.api.plan["create_instance"] = [Step("BUILD", "spawning"), Step("ERROR", fault="NO_VALID_HOST")]
    result = stocked.run(*CREATE, "--wait", "web")

    assert result.exit_code == 1
    assert result.stdout == ""
    assert "web is ERROR, not ACTIVE: NO_VALID_HOST: it was NO_VALID_HOST" in result.stderr


def test_a_server_that_takes_too_long_is_told_and_left_to_go_on(stocked: Shell) -> None:
    stocked.api.plan["create_instance"] = [Step("BUILD", "spawning")]
    result = stocked.run(*CREATE, "--wait", "--wait-timeout", "30", "web")

    assert result.exit_code == 7
    assert "goes on without us" in result.stderr
    assert "web" in stocked.api.instances


def test_interfaces_are_asked_for_in_openstacks_words(stocked: Shell) -> None:
    stocked.ok(
        *(*CREATE, "--nic", "net-id=blue,v4-fixed-ip=10.0.0.9,v6-fixed-ip=fd00::9", "--nic", "port-id=p2"),
        *("--port", "p1", "--network", "red", "--network", "green"),
        *("--security-group", "one", "--security-group", "two", "web"),
    )
    (sent,) = stocked.api.requests("create_instance")

    assert [
        (each.network, each.port, [it.ip_address for it in each.fixed_ips]) for each in sent.networks
    ] == [
        ("red", "", []),
        ("green", "", []),
        ("", "p1", []),
        ("blue", "", ["10.0.0.9", "fd00::9"]),
        ("", "p2", []),
    ]
    assert list(sent.security_groups) == ["one", "two"]


def test_an_interface_of_unknown_words_is_refused(stocked: Shell) -> None:
    result = stocked.run(*CREATE, "--nic", "net=red", "web")

    assert result.exit_code == 2
    assert "net-id=NET-ID" in result.stderr
    assert stocked.api.instances == {}


def test_no_room_is_an_exit_code_of_its_own(stocked: Shell) -> None:
    stocked.api.fail["create_instance"] = [NoCapacity("0 of 40 hosts fit: 40 short of memory")]
    result = stocked.run(*CREATE, "web")

    assert result.exit_code == 6
    assert "40 short of memory" in result.stderr


def test_a_list_has_openstacks_columns(stocked: Shell) -> None:
    stocked.api.put_instance("db")
    stocked.ok(*CREATE, "web")

    assert stocked.json("server", "list", "--name", "db") == [
        {
            "ID": stocked.api.instances["db"].id,
            "Name": "db",
            "Status": "ACTIVE",
            "Networks": {"nebula_net": ["10.0.0.5"]},
            "Image": "",
            "Flavor": "",
        }
    ]
    assert "Power State" in stocked.json("server", "list", "--long")[0]


def test_filters_are_the_servers_business(stocked: Shell) -> None:
    stocked.ok("server", "list", "--all-projects", "--status", "error")
    (sent,) = stocked.api.requests("list_instances")

    assert (sent.all_projects, sent.state) == (True, "ERROR")


def test_cells_that_cannot_be_reached_are_named_beside_the_list(stocked: Shell) -> None:
    stocked.api.unreachable = [UnreachableCell(cell="cell2", reason="its store does not answer")]
    result = stocked.run("server", "list", "-f", "json")

    assert result.stdout == "[]\n"
    assert "cell cell2 cannot be reached, its servers are UNKNOWN: its store does not answer" in result.stderr


def test_show_tells_the_fault_and_what_each_filter_had_against_how_many_hosts(stocked: Shell) -> None:
    found = stocked.api.put_instance("web", "ERROR")
    found.status.fault.code, found.status.fault.message = "NO_VALID_HOST", "0 of 40 hosts fit"
    found.status.placement.explanation = "0 of 40 hosts fit"
    found.status.placement.suggestion = "512 MiB less would fit"
    found.status.placement.refusals.add(filter="ram", reason="short of memory", hosts=39)
    found.status.placement.refusals.add(filter="zone", reason="in another zone", hosts=1)

    text = stocked.ok("server", "show", "web")
    assert "NO_VALID_HOST: 0 of 40 hosts fit" in text
    assert "39 hosts: short of memory (ram)" in text
    assert "1 host: in another zone (zone)" in text
    assert stocked.json("server", "show", "web")["placement_refusals"][0] == {
        "filter": "ram",
        "reason": "short of memory",
        "hosts": 39,
    }


@pytest.mark.parametrize(
    ("verb", "method", "before", "after"),
    [
        ("start", "start_instance", "SHUTOFF", "ACTIVE"),
        ("stop", "stop_instance", "ACTIVE", "SHUTOFF"),
        ("reboot", "reboot_instance", "ACTIVE", "ACTIVE"),
    ],
)
def test_every_server_is_begun_with_before_any_is_waited_for(
    stocked: Shell, verb: str, method: str, before: str, after: str
) -> None:
    for name in ("a", "b"):
        stocked.api.put_instance(name, before)
    stocked.api.plan[method] = [Step(before, "busy"), Step(after)]
    stocked.ok("server", verb, "--wait", "a", "b")
    order = [name for name, _ in stocked.api.seen if name in {method, "get_instance"}]

    assert order == [method, method, "get_instance", "get_instance", "get_instance", "get_instance"]


def test_one_servers_failure_does_not_stop_the_others(stocked: Shell) -> None:
    stocked.api.put_instance("a")
    stocked.api.put_instance("b")
    stocked.api.plan["stop_instance"] = [Step("SHUTOFF")]
    stocked.api.fail["stop_instance"] = [WrongState("cannot stop while SHUTOFF; allowed now: start")]
    result = stocked.run("server", "stop", "--wait", "a", "b")

    assert result.exit_code == 5
    assert "a: cannot stop while SHUTOFF; allowed now: start" in result.stderr
    assert stocked.api.instances["b"].status.state == "SHUTOFF"


def test_reboots_are_soft_unless_hard_is_said(stocked: Shell) -> None:
    stocked.api.put_instance("web")
    stocked.ok("server", "reboot", "web")
    stocked.ok("server", "reboot", "--soft", "web")
    stocked.ok("server", "reboot", "--hard", "web")

    assert [it.kind for it in stocked.api.requests("reboot_instance")] == [1, 1, 2]


def test_a_failed_reboot_is_a_failure_though_the_server_is_active(stocked: Shell) -> None:
    stocked.api.put_instance("web")
    stocked.api.plan["reboot_instance"] = [Step("ACTIVE", fault="TASK_TIMEOUT")]

    assert stocked.run("server", "reboot", "--wait", "web").exit_code == 1


def test_a_guest_is_given_the_time_it_was_promised(stocked: Shell) -> None:
    stocked.api.put_instance("web")
    stocked.api.plan["stop_instance"] = [Step("ACTIVE", "powering_off")] * 150 + [Step("SHUTOFF")]
    stocked.ok("server", "stop", "--shutdown-timeout", "600", "--wait", "web")

    assert stocked.api.requests("stop_instance")[0].timeout_s == 600


def test_no_time_for_a_guest_is_not_taken_for_the_default(stocked: Shell) -> None:
    stocked.api.put_instance("web")

    assert stocked.run("server", "stop", "--shutdown-timeout", "0", "web").exit_code == 2
    assert stocked.api.requests("stop_instance") == []


def test_a_delete_is_by_id_and_waits_until_it_is_gone(stocked: Shell) -> None:
    made = stocked.api.put_instance("web")
    stocked.api.plan["delete_instance"] = [Step("ACTIVE", "deleting"), Step("GONE")]
    stocked.ok("server", "delete", "--wait", "web")

    assert stocked.api.requests("delete_instance")[0].instance == made.id
    assert stocked.api.instances == {}


def test_a_delete_that_fails_is_told_with_its_fault(stocked: Shell) -> None:
    stocked.api.put_instance("web")
    stocked.api.plan["delete_instance"] = [Step("ACTIVE", "deleting"), Step("ERROR", fault="DISK_BUSY")]
    result = stocked.run("server", "delete", "--wait", "web")

    assert result.exit_code == 1
    assert "DISK_BUSY" in result.stderr


def test_ssh_goes_to_the_servers_address_and_remembers_its_key_by_its_id(
    stocked: Shell, tmp_path: Path
) -> None:
    made = stocked.api.put_instance("web")
    (tmp_path / "key.pem").touch()
    stocked.ok("server", "ssh", "-i", str(tmp_path / "key.pem"), "web", "--", "uptime", "-p")

    assert stocked.became[0] == "ssh"
    assert f"HostKeyAlias=cellfabric-{made.id}" in stocked.became
    assert stocked.became[-5:] == ["-l", "root", "10.0.0.5", "uptime", "-p"]


def test_ssh_goes_to_the_floating_ip_where_there_is_one(stocked: Shell) -> None:
    """It went to the first address there was, which on a project's own network nobody outside can reach."""
    made = stocked.api.put_instance("web")
    made.status.addresses.add(network_name="nebula_net", address="203.0.113.7", kind="FLOATING")

    stocked.ok("server", "ssh", "web")

    assert stocked.became[-1] == "203.0.113.7"


def test_ssh_logs_in_as_whom_the_image_says(stocked: Shell, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"x")
    image = stocked.json(
        *("image", "create", "--file", str(tmp_path / "disk"), "--disk-format", "raw"),
        *("--property", "os_admin_user=cirros", "cirros"),
    )
    stocked.api.put_instance("web").spec.image_id = image["id"]
    stocked.ok("server", "ssh", "web")
    assert stocked.became[-2] == "cirros"

    stocked.ok("server", "ssh", "--login", "ann", "web")
    assert stocked.became[-2] == "ann"


@pytest.mark.parametrize("login", ["-oProxyCommand=x", "ann@elsewhere"])
def test_a_login_is_a_name_and_nothing_else(stocked: Shell, login: str) -> None:
    stocked.api.put_instance("web")

    assert stocked.run("server", "ssh", f"--login={login}", "web").exit_code == 2
    assert stocked.became == []


def test_a_server_that_is_off_lets_nobody_in(stocked: Shell) -> None:
    stocked.api.put_instance("web", "SHUTOFF")

    assert stocked.run("server", "ssh", "web").exit_code == 5


def test_a_console_log_is_piped_as_the_guest_wrote_it(stocked: Shell) -> None:
    stocked.api.put_instance("web")
    stocked.api.console = b"boot\r\n\x1b[2Jlogin: "

    assert (
        stocked.run("console", "log", "show", "--lines", "5", "web").stdout_bytes == b"boot\r\n\x1b[2Jlogin: "
    )
    assert stocked.api.requests("get_console_log")[0].lines == 5


def test_progress_tells_no_fault_of_an_earlier_action() -> None:
    before = Instance(name="web")
    before.status.fault.message = "0 of 1 hosts fit"
    seen = Instance()
    seen.CopyFrom(before)
    seen.status.state, seen.status.task_state = "ACTIVE", "powering_off"
    failed = Instance()
    failed.CopyFrom(seen)
    failed.status.fault.time.seconds = 1

    assert line(seen, before) == "web: ACTIVE powering_off"
    assert line(failed, before) == "web: ACTIVE powering_off (0 of 1 hosts fit)"


def test_who_interrupts_a_wait_hears_that_the_action_goes_on(
    stocked: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    stocked.api.put_instance("web")
    stocked.api.plan["stop_instance"] = [Step("ACTIVE", "powering_off"), Step("SHUTOFF")]
    monkeypatch.setattr(stocked.time, "sleep", interrupt)
    result = stocked.run("server", "stop", "--wait", "web")

    assert result.exit_code == 1
    assert "goes on" in result.stderr
    assert "Aborted" not in result.stderr


def test_properties_are_in_the_same_order_each_time(stocked: Shell) -> None:
    words = [word for name in "kcxbazq" for word in ("--property", f"{name}={name}")]
    shown = stocked.json(*CREATE, *words, "web")["properties"]

    assert list(shown) == sorted(shown)
