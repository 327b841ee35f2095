"""What an operator writes, as the scheduler takes it."""

from __future__ import annotations

import pytest

from fabric.config.settings import SchedulerSettings, StoreSettings
from fabric.scheduler.settings import SPREAD, STACK
from fabric.server.scheduler import main, service_settings

STORE = StoreSettings(endpoints=("127.0.0.1:2379",))


def test_spread_is_what_nothing_said_means() -> None:
    settings = service_settings(SchedulerSettings(global_store=STORE, cells={}))

    assert settings.placement.weights == SPREAD
    assert settings.reread_s == 5.0


def test_stack_turns_every_weigher_round() -> None:
    settings = service_settings(SchedulerSettings(global_store=STORE, cells={}, strategy="stack"))

    assert settings.placement.weights == STACK


def test_weights_are_the_operators() -> None:
    written = SchedulerSettings(global_store=STORE, cells={}, ram_weight=2.0, vcpu_weight=0.0, relist_s=1.0)

    settings = service_settings(written)

    assert (settings.placement.weights["ram"], settings.placement.weights["vcpu"]) == (2.0, 0.0)
    assert settings.reread_s == 1.0


def test_settings_that_are_missing_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "global_store" in capsys.readouterr().err
