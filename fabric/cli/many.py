"""One verb on several things: each is tried, each failure is told, and the first one decides the exit code."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import click

from fabric.cli.exits import Failed, exit_code, explain
from fabric.cli.session import Session
from fabric.errors import FabricError


def each(session: Session, names: Iterable[str], act: Callable[[str], object]) -> None:
    """Call `act` with every name; end with the first failure's exit code, if there was one."""
    code = 0
    for name in names:
        try:
            act(name)
        except FabricError as error:
            text = explain(error)
            is_named = not name or re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None
            session.say(f"fabric: {text}" if is_named else f"fabric: {name}: {text}")
            code = code or exit_code(error)
        except Failed as failed:
            failed.show()
            code = code or failed.exit_code
    if code:
        click.get_current_context().exit(code)
