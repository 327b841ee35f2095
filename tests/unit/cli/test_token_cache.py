from __future__ import annotations

import stat
from pathlib import Path

import pytest

from fabric.cli.profiles import Login
from fabric.cli.token_cache import Cached, TokenCache

LOGIN = Login(endpoint="a:1", username="ann", project="p")


@pytest.fixture
def cache(tmp_path: Path) -> TokenCache:
    return TokenCache(tmp_path / "deep" / "tokens")


def test_a_token_is_kept_until_shortly_before_it_ends(cache: TokenCache) -> None:
    cache.put(LOGIN, Cached("hush", 1000))

    assert cache.get(LOGIN, now_s=900.0) == "hush"
    assert cache.get(LOGIN, now_s=941.0) == ""


@pytest.mark.parametrize(
    "other",
    [
        Login(endpoint="b:1", username="ann", project="p"),
        Login(endpoint="a:1", username="bob", project="p"),
        Login(endpoint="a:1", username="ann", project="q"),
    ],
)
def test_a_token_is_for_one_api_one_user_and_one_project(cache: TokenCache, other: Login) -> None:
    cache.put(LOGIN, Cached("hush", 1000))

    assert cache.get(other, now_s=0.0) == ""


def test_nobody_else_can_read_it(cache: TokenCache, tmp_path: Path) -> None:
    cache.put(LOGIN, Cached("hush", 1000))
    (file,) = (tmp_path / "deep" / "tokens").iterdir()

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("text", ["", "{", "[]", '{"token": "x"}', '{"token": "x", "expire_s": "soon"}'])
def test_a_damaged_file_is_no_token(cache: TokenCache, tmp_path: Path, text: str) -> None:
    cache.put(LOGIN, Cached("hush", 1000))
    (file,) = (tmp_path / "deep" / "tokens").iterdir()
    file.write_text(text)

    assert cache.get(LOGIN, now_s=0.0) == ""


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    cache = TokenCache(tmp_path / "file" / "tokens")
    cache.put(LOGIN, Cached("hush", 1000))

    assert cache.get(LOGIN, now_s=0.0) == ""


def test_what_is_dropped_is_gone(cache: TokenCache) -> None:
    cache.put(LOGIN, Cached("hush", 1000))
    cache.drop(LOGIN)

    assert cache.get(LOGIN, now_s=0.0) == ""
