"""The page is only worth generating if nothing of the table is missing from it."""

from __future__ import annotations

from fabric.lifecycle.docs import page
from fabric.lifecycle.table import BY_TASK, HOST_WORDS, RULES, TIMERS, shown
from fabric.model.states import TaskState, VmState


def _lines(start: str) -> list[str]:
    return [line for line in page().splitlines() if line.startswith(start)]


def test_every_action_has_its_line() -> None:
    for rule in RULES:
        (line,) = _lines(f"| `{rule.action}` |")
        assert rule.summary in line
        assert all(shown(state, TaskState.NONE) in line for state in rule.allowed)


def test_every_word_of_a_host_has_its_line() -> None:
    for word in HOST_WORDS:
        assert len(_lines(f"| `{word.name.lower()}` |")) == 1


def test_the_diagram_leads_to_every_state_and_from_it() -> None:
    arrows = [line.split(":")[0].split() for line in page().splitlines() if "-->" in line]
    states = {shown(state, TaskState.NONE) for state in VmState if state is not VmState.UNSPECIFIED}

    assert states == {before for before, _, _ in arrows} - {"[*]"}
    assert states == {after for _, _, after in arrows} - {"[*]"}


def test_every_task_and_every_timer_has_its_line() -> None:
    for task in BY_TASK:
        (line,) = _lines(f"| {task.name.lower()} |")
        assert "``" not in line
    for timer in TIMERS:
        (line,) = [each for each in _lines("| ") if f"`{timer.setting or timer.at}`" in each]
        assert shown(timer.state, TaskState.NONE) in line


def test_an_arrow_is_drawn_once() -> None:
    arrows = [line.split(":")[0] for line in page().splitlines() if "-->" in line]

    assert len(arrows) == len(set(arrows))
