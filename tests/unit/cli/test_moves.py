"""Putting servers away, and sending them to other hosts, in OpenStack's words."""

from __future__ import annotations

from tests.unit.cli.shell import Shell
from tests.unit.client.fake_api import Step

CREATE = ("server", "create", "--flavor", "m1.nebula_micro", "--image", "nebula_standard_os")


def _made(stocked: Shell) -> None:
    stocked.ok(*CREATE, "--network", "nebula_net", "web")


def test_the_first_word_of_a_resize_may_be_left_out(stocked: Shell) -> None:
    _made(stocked)
    stocked.ok("server", "resize", "--flavor", "m1.nebula_small", "web")
    stocked.ok("server", "resize", "begin", "--flavor", "m1.nebula_small", "web")

    assert [it.flavor for it in stocked.api.requests("resize_instance")] == ["m1.nebula_small"] * 2


def test_a_resize_is_confirmed_and_reverted_by_words_of_its_own(stocked: Shell) -> None:
    _made(stocked)
    stocked.ok("server", "resize", "confirm", "web")
    stocked.ok("server", "resize", "revert", "web")

    assert [it.instance for it in stocked.api.requests("confirm_resize")] == ["web"]
    assert [it.instance for it in stocked.api.requests("revert_resize")] == ["web"]


def test_waiting_for_a_resize_ends_where_it_is_to_be_confirmed(stocked: Shell) -> None:
    _made(stocked)
    stocked.api.plan["resize_instance"] = [Step("RESIZE", "resize_migrating"), Step("VERIFY_RESIZE")]
    result = stocked.run("server", "resize", "--flavor", "m1.nebula_small", "--wait", "web")

    assert (result.exit_code, result.stderr.splitlines()[-1]) == (0, "web: VERIFY_RESIZE")


def test_a_resize_that_found_no_host_is_a_failure_though_the_server_is_active(stocked: Shell) -> None:
    _made(stocked)
    stocked.api.plan["resize_instance"] = [
        Step("RESIZE", "resize_prep"),
        Step("ACTIVE", fault="NO_VALID_HOST"),
    ]

    assert stocked.run("server", "resize", "--flavor", "m1.nebula_small", "--wait", "web").exit_code != 0


def test_shelving_is_over_when_the_host_is_freed_or_not_to_be(stocked: Shell) -> None:
    _made(stocked)
    stocked.api.plan["shelve_instance"] = [Step("ACTIVE", "shelving"), Step("SHELVED")]

    assert stocked.run("server", "shelve", "--wait", "web").exit_code == 0


def test_offloading_shelves_first_what_is_not_shelved(stocked: Shell) -> None:
    _made(stocked)
    stocked.api.plan["shelve_instance"] = [Step("ACTIVE", "shelving"), Step("SHELVED")]
    stocked.ok("server", "shelve", "--offload", "web")

    assert len(stocked.api.requests("shelve_instance")) == 1
    assert len(stocked.api.requests("offload_instance")) == 1


def test_a_migration_may_name_its_host(stocked: Shell) -> None:
    _made(stocked)
    stocked.ok("server", "migrate", "--host", "n2", "web")

    assert [it.host for it in stocked.api.requests("migrate_instance")] == ["n2"]
