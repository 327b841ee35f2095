"""A person at a server's screen, in a browser, with nothing but the address that `fabric console url show` prints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.chromium import Page, a_page, novnc
from tests.e2e.running import Running, guest_images, until

pytestmark = [pytest.mark.owns_machine, pytest.mark.slow, pytest.mark.timeout(900)]

SERVER = "screen_web"
PASSWORD = "screen-test-7"
PATIENCE_S = 180.0
TYPING_PAUSE_S = 2.0
"""A person waits for the prompt: `login` forgets what was typed before it asks for a password."""

WORD = "document.getElementById('word')?.textContent ?? ''"
LIT = """(() => {
    const canvas = document.querySelector('#screen canvas');
    if (!canvas || !canvas.width) return 0;
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    let lit = 0;
    for (let at = 0; at < data.length; at += 4) lit += (data[at] | data[at + 1] | data[at + 2]) > 40;
    return lit;
})()"""
"""How many points of the screen are not black."""


@pytest.fixture(scope="module")
def fabric(running_fabric: Running) -> Iterator[Running]:
    """With a server that asks for a password at its screen, and noVNC for browsers."""
    folder = novnc()
    running_fabric.dev("restart", "api", "--env", f"FABRIC_API__CONSOLE__NOVNC_PATH={folder}")
    running_fabric.cli(
        *("flavor", "create", "--id", "auto", "--ram", "128", "--disk", "1", "--vcpus", "1", "m1.screen")
    )
    image = guest_images() / "cellfabric-guest.qcow2"
    running_fabric.cli("image", "create", "--disk-format", "qcow2", "screen_os", "--file", str(image))
    words = ("--flavor", "m1.screen", "--image", "screen_os", "--network", "default", "--wait", SERVER)
    running_fabric.cli("server", "create", *words, timeout_s=240)
    yield running_fabric
    running_fabric.cli("server", "delete", "--wait", SERVER)
    running_fabric.cli("image", "delete", "screen_os")
    running_fabric.cli("flavor", "delete", "m1.screen")
    running_fabric.dev("restart", "api")


@pytest.fixture
def page(fabric: Running, tmp_path: Path) -> Iterator[Page]:
    with a_page(tmp_path / "profile", trusted=fabric.state / "pki" / "api.pem") as made:
        yield made


@pytest.fixture(scope="module")
def password(fabric: Running) -> str:
    """Set through the agent, which starts last; until then it is said to be missing."""

    def is_set() -> bool:
        return fabric.run("server", "set", "--password", SERVER, stdin=f"{PASSWORD}\n").returncode == 0

    until(is_set, "the password is set", timeout_s=PATIENCE_S, every_s=1.0)
    return PASSWORD


def test_a_person_sees_the_screen_and_types_at_it(fabric: Running, password: str, page: Page) -> None:
    url = fabric.shown("console", "url", "show", SERVER)["url"]

    page.open(url)
    until(
        lambda: page.value(WORD) == "Connected.",
        f"the page says that it is connected: {page.errors}",
        timeout_s=PATIENCE_S,
        every_s=0.5,
    )
    lit = until(lambda: page.value(LIT), "the screen shows something", timeout_s=PATIENCE_S, every_s=0.5)

    assert page.value("document.title").startswith("QEMU")
    assert "ticket" not in page.value("location.href")

    # What is typed goes into the guest: somebody logs in on its screen, and says so on its serial port.
    page.value("document.querySelector('#screen canvas').focus()")

    def is_done() -> bool:
        for words in ("\nroot\n", f"{password}\n", "echo typed-$((6*7)) > /dev/ttyS0\n"):
            page.types(words)
            time.sleep(TYPING_PAUSE_S)
        return "typed-42" in fabric.cli("console", "log", "show", SERVER)

    until(is_done, "the guest has done what was typed", timeout_s=PATIENCE_S, every_s=1.0)
    assert page.value(LIT) != lit
    assert "\n".join(page.errors) == ""


def test_an_address_is_good_once(fabric: Running, page: Page) -> None:
    url = fabric.shown("console", "url", "show", SERVER)["url"]
    page.open(url)
    until(lambda: page.value(WORD) == "Connected.", "the page is connected", timeout_s=PATIENCE_S)

    page.open("about:blank")
    page.open(url)

    until(lambda: "a ticket is good once" in page.value(WORD), "the page says why", timeout_s=PATIENCE_S)
