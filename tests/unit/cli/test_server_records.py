"""Looking back at servers, watching them, and changing what is only written down of them."""

from __future__ import annotations

import pytest

from fabric.errors import Unavailable
from fabric.pb.compute.v1 import instance_event_service_pb2 as pb
from fabric.pb.compute.v1 import instance_service_pb2 as instance_pb
from tests.unit.cli.shell import Shell

CREATE = ("server", "create", "--flavor", "m1.nebula_micro", "--image", "nebula_standard_os")


@pytest.fixture
def server(stocked: Shell) -> str:
    return str(stocked.json(*CREATE, "web")["id"])


def _event(server: str) -> pb.InstanceEvent:
    event = pb.InstanceEvent(instance_id=server, request_id="r1", action="stop", result="failed", user_id="u")
    event.start_time.FromMilliseconds(1_790_000_000_000)
    event.fault_code, event.message = "TASK_TIMEOUT", "too late"
    step = event.steps.add(name="cut_power", result="failed", fault_code="DISK_FULL", details="it is full")
    step.start_time.FromMilliseconds(1_790_000_001_000)
    step.finish_time.FromMilliseconds(1_790_000_003_500)
    return event


def test_actions_are_listed_in_the_words_of_openstack(stocked: Shell, server: str) -> None:
    stocked.api.events = [_event(server)]

    assert stocked.ok("server", "event", "list", "web", "-f", "value").split()[:3] == ["r1", server, "stop"]
    assert "too late" in stocked.ok("server", "event", "list", "--long", server)


def test_an_action_is_shown_with_its_steps(stocked: Shell, server: str) -> None:
    stocked.api.events = [_event(server)]

    shown = stocked.json("server", "event", "show", "web", "r1")

    assert (shown["action"], shown["instance_uuid"], shown["result"]) == ("stop", server, "failed")
    assert shown["events"][0]["event"] == "cut_power"
    text = stocked.ok("server", "event", "show", "web", "r1")
    assert "cut_power failed in 2.5 s: it is full" in text


def test_a_watch_prints_what_it_is_told_and_no_marks(stocked: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    instance = instance_pb.Instance(id="i", name="evil\x1b[2J")
    instance.status.state = "ACTIVE"
    stocked.api.news = [
        [
            pb.WatchInstancesResponse(
                change=pb.InstanceChange(kind=pb.CHANGE_KIND_PRESENT, instance=instance)
            ),
            pb.WatchInstancesResponse(mark=pb.WatchMark(resume_token="m")),
            pb.WatchInstancesResponse(cell_away=instance_pb.UnreachableCell(cell="c1", reason="gone")),
            pb.WatchInstancesResponse(cell_back=pb.CellBack(cell="c1")),
            pb.WatchInstancesResponse(resync=pb.WatchResync(reason="too long ago")),
        ]
    ]
    # As Ctrl-C while it waits for an API that is away.
    monkeypatch.setattr(stocked.time, "sleep", _interrupted)
    stocked.api.break_after["watch_instances"] = [5]
    stocked.api.news[0].append(pb.WatchInstancesResponse())
    stocked.api.fail["watch_instances.break"] = [Unavailable("away")]
    result = stocked.run("server", "watch")

    lines = [line.split("  ", 1)[1] for line in result.stdout.splitlines()]
    assert result.exit_code == 0
    assert lines[0].startswith("present  i  evil")
    assert "\x1b" not in result.stdout
    assert [line.split()[0] for line in lines] == ["present", "away", "back", "resync"]


def _interrupted(_seconds: float) -> None:
    raise KeyboardInterrupt


def test_set_asks_for_what_is_named_and_nothing_else(stocked: Shell, server: str) -> None:
    stocked.ok("server", "set", "--name", "db", "--property", "a=1", "--tag", "red", "web")

    (metadata,), (rename,) = (
        stocked.api.requests("set_instance_metadata"),
        stocked.api.requests("rename_instance"),
    )
    assert (metadata.instance, dict(metadata.set), list(metadata.add_tags)) == (server, {"a": "1"}, ["red"])
    assert (rename.instance, rename.name) == (server, "db")
    assert stocked.api.requests("reset_instance_state") == []


def test_unset_lock_and_unlock_say_what_they_are_told(stocked: Shell, server: str) -> None:
    stocked.ok("server", "unset", "--property", "a", "--tag", "red", server)
    stocked.ok("server", "lock", "--reason", "billing", server)
    stocked.ok("server", "unlock", server)
    stocked.ok("server", "set", "--state", "error", server)

    (unset,) = stocked.api.requests("set_instance_metadata")
    assert (list(unset.unset), list(unset.remove_tags)) == (["a"], ["red"])
    assert stocked.api.requests("lock_instance")[0].reason == "billing"
    assert len(stocked.api.requests("unlock_instance")) == 1
    assert stocked.api.requests("reset_instance_state")[0].state == instance_pb.RESET_TO_ERROR


def test_nothing_to_set_is_a_mistake(stocked: Shell, server: str) -> None:
    for verb in ("set", "unset"):
        assert stocked.run("server", verb, server).exit_code == 2


def test_a_delete_by_force_says_so(stocked: Shell, server: str) -> None:
    stocked.ok("server", "delete", "--force", server)

    assert stocked.api.requests("delete_instance")[0].force


def test_no_password_is_told_and_nothing_is_taken_for_done(stocked: Shell, server: str) -> None:
    result = stocked.run("server", "set", "--password", server, text="")

    assert result.exit_code == 2
    assert "no new password of root" in result.stderr
