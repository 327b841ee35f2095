"""What every server of the control plane does alike: settings read, a log, stores and certificates, a signal, and an orderly end."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from fabric.clock import Clock
from fabric.config.settings import LogSettings, StoreSettings, TlsSettings
from fabric.errors import FabricError
from fabric.observability import lean, logging
from fabric.rpc.server import RpcServer
from fabric.rpc.tls import TlsFiles
from fabric.store.etcd.client import EtcdStore
from fabric.store.etcd.settings import EtcdSettings

log = structlog.get_logger()

Life = Coroutine[Any, Any, None]
"""Something that goes on for as long as the process does."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A process whose settings are right. `serve` is its whole life, which raises a FabricError where it has to end early."""

    log: LogSettings
    serve: Callable[[], Life]


def main(
    name: str,
    description: str,
    prepare: Callable[[Path | None], Prepared],
    arguments: Sequence[str] | None,
) -> int:
    """Be the server `fabric-<name>` until SIGTERM or SIGINT. Returns the exit code: 2 for settings that are wrong.

    Args:
        name: what the process is called in its log.
        description: what it is for, in its help.
        prepare: what it is by its settings file and the environment. Raises InvalidRequest, naming the setting.
        arguments: of the command line; None for this process's.
    """
    parser = argparse.ArgumentParser(prog=f"fabric-{name}", description=description)
    parser.add_argument("--config", type=Path, help="the settings, a TOML file")
    path = parser.parse_args(arguments).config
    try:
        prepared = prepare(path)
    except FabricError as wrong:
        sys.stderr.write(f"fabric-{name}: {wrong.message}\n")
        return 2
    # Before gRPC starts its threads: configuring later can deadlock with them.
    logging.configure(process=name, level=prepared.log.level, style=prepared.log.format)
    try:
        asyncio.run(prepared.serve())
    except FabricError as failed:
        log.error("process.failed", error=type(failed).__name__, why=failed.message)
        return 1
    return 0


async def until_stopped(*lives: Life, around: AbstractAsyncContextManager[object]) -> None:
    """Run these lives, with something around them, until a signal asks to stop or one of them breaks.

    What is around them, the ports that they are reached at, is entered when they have begun and left before they are cancelled: so calls
    under way have what they need to their end. Raises what broke a life, without the group that it comes in.
    """
    asked = _stop_signal()
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(life) for life in (*lives, lean.give_back())]
            async with around:
                try:
                    await asked.wait()
                finally:
                    log.info("process.stopping", is_asked=asked.is_set())
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as broken:
        raise _first(broken) from None


@asynccontextmanager
async def listening(server: RpcServer) -> AsyncIterator[None]:
    """A server's port while it is open. Raises Bug when its address cannot be had."""
    try:
        await server.start()
        yield
    finally:
        await server.stop()


def store_of(settings: StoreSettings, name: str, clock: Clock) -> EtcdStore:
    """The store that an operator wrote down. It connects when it is first used."""
    tls = settings.tls
    made = EtcdSettings(
        endpoints=settings.endpoints,
        ca_path=None if tls is None else tls.ca,
        cert_path=None if tls is None else tls.cert,
        key_path=None if tls is None else tls.key,
        prefix=settings.prefix,
    )
    return EtcdStore(made, name=name, clock=clock)


def tls_of(settings: TlsSettings | None) -> TlsFiles | None:
    """A server's certificate, where it has one."""
    if settings is None:
        return None
    return TlsFiles(ca_path=settings.ca, cert_path=settings.cert, key_path=settings.key)


def _stop_signal() -> asyncio.Event:
    asked = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, asked.set)
    return asked


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
