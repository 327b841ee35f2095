from __future__ import annotations

import pytest

from fabric.client.endpoint import Endpoint
from fabric.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "target", "tls"),
    [
        ("api.test:7443", "api.test:7443", True),
        ("https://api.test:7443/", "api.test:7443", True),
        ("[fd00::5]:7443", "[fd00::5]:7443", True),
        ("http://127.0.0.1:7443", "127.0.0.1:7443", False),
        ("http://localhost:7443", "localhost:7443", False),
        ("http://[::1]:7443", "[::1]:7443", False),
    ],
)
def test_an_endpoint_is_a_host_and_a_port(text: str, target: str, tls: bool) -> None:
    found = Endpoint.parse(text)

    assert (found.target, found.tls) == (target, tls)


@pytest.mark.parametrize(
    "text", ["", "api.test", ":7443", "api.test:", "api.test:0", "api.test:70000", "ftp://a:1"]
)
def test_anything_else_is_refused_by_its_field(text: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        Endpoint.parse(text)

    assert raised.value.field == "endpoint"


@pytest.mark.parametrize("host", ["10.0.0.5", "api.test", "127.evil.test", "[fd00::5]"])
def test_plain_text_leaves_this_machine_never(host: str) -> None:
    with pytest.raises(InvalidRequest, match="plain text"):
        Endpoint.parse(f"http://{host}:7443")
