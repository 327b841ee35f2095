from __future__ import annotations

import pytest

from tests.unit.cli.shell import Shell

CREATE = ("server", "create", "--flavor", "m1.nebula_micro")


def test_a_server_is_booted_from_a_volume_or_from_a_new_one(stocked: Shell) -> None:
    made = stocked.json(*CREATE, "--volume", "nebula_root", "--delete-volume-on-termination", "web-1")
    stocked.ok(*CREATE, "--image", "nebula_standard_os", "--boot-from-volume", "10", "web-2")
    named, new = stocked.api.requests("create_instance")

    assert made["image"]["name"] == "N/A (booted from volume)"
    assert [each["bootable"] for each in made["volumes_attached"]] == [True]
    assert (named.image, named.volume, named.delete_volume_on_termination) == ("", "nebula_root", True)
    assert (new.image, new.boot_volume_gib, new.delete_volume_on_termination) == (
        "nebula_standard_os",
        10,
        False,
    )


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--image", "nebula_standard_os", "--volume", "nebula_root"),
        ("--volume", "nebula_root", "--boot-from-volume", "10"),
        ("--image", "nebula_standard_os", "--boot-from-volume", "0"),
    ],
)
def test_what_a_server_boots_from_is_said_once(stocked: Shell, words: tuple[str, ...]) -> None:
    assert stocked.run(*CREATE, *words, "web").exit_code == 2
    assert stocked.api.requests("create_instance") == []


def test_a_volume_is_made_of_an_image_in_a_directory(stocked: Shell) -> None:
    made = stocked.json(
        *("volume", "create", "--image", "nebula_standard_os", "--directory", "nfs1", "--size", "4", "root")
    )
    (sent,) = stocked.api.requests("create_volume")

    assert (sent.volume.image, sent.volume.directory, sent.volume.size_gib) == (
        "nebula_standard_os",
        "nfs1",
        4,
    )
    assert (made["directory"], made["size"]) == ("nfs1", 4)
