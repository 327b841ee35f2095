"""The lifecycle as a page: `python -m fabric.lifecycle.docs`, kept at docs/generated/lifecycle.md.

Made from the table and nothing else, so that what people read is what the servers do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Final

from fabric.lifecycle.table import BY_ACTION, BY_TASK, HOST_WORDS, RULES, TIMERS, HostWord, Rule, shown
from fabric.model.states import TaskState, VmState

MANY: Final = 5
"""A row that may start in more states than this is drawn from ACTIVE only: its arrows would hide the others."""


def page() -> str:
    """Markdown with a diagram of the states, and tables: of the states, the actions, the tasks, the timers, what a host may say."""
    return (
        "\n".join(
            (
                *_introduction(),
                *_diagram(),
                *_actions(),
                *_task_words(),
                *_timers(),
                *_host_words(),
            )
        )
        + "\n"
    )


def _introduction() -> Iterator[str]:
    yield "# The life of a server"
    yield ""
    yield "Source: `fabric/lifecycle/table.py`. What the words mean is in [its concept](../concepts/lifecycle.md)."
    yield ""
    yield "One action at a time is under way: its task is the lock. An action may start in the states named here while no"
    yield "task is under way, or by taking over one of the tasks named under *takes over*. What fails ends in the state"
    yield "named under *failed*; with none named, the server stays where it was and its fault says why."
    yield ""


def _diagram() -> Iterator[str]:
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield f"    [*] --> {_word(VmState.BUILDING)}: asked for"
    labels: dict[tuple[VmState, VmState], list[str]] = {}
    for rule in RULES:
        for state in _starts(rule):
            is_drawn = len(rule.allowed) <= MANY or state is VmState.ACTIVE
            if rule.final not in {None, state} and is_drawn:
                labels.setdefault((state, rule.final or state), []).append(rule.action)
    for timer in TIMERS:
        final = BY_ACTION[timer.action].final
        if final is not None:
            labels.setdefault((timer.state, final), []).append(
                f"after {timer.setting}" if timer.setting else f"at {timer.at}"
            )
    for (state, final), words in sorted(labels.items()):
        yield f"    {_word(state)} --> {_word(final)}: {', '.join(dict.fromkeys(words))}"
    yield f"    {_word(VmState.RESIZED)} --> {_word(VmState.ACTIVE)}: confirm-resize, revert-resize"
    yield f"    {_word(VmState.BUILDING)} --> {_word(VmState.ERROR)}: create failed"
    yield f"    {_word(VmState.DELETED)} --> [*]"
    yield "```"
    yield ""
    yield "Drawn from ACTIVE only, because they start nearly everywhere:"
    yield ""
    for rule in RULES:
        if len(rule.allowed) > MANY and rule.final is not None:
            yield f"- `{rule.action}`, to {_word(rule.final)}, from {_states(rule.allowed)}"
    yield ""
    yield "Not drawn are arrows from a state to itself (a reboot, an image of the disk), and those of what failed: the table has them."
    yield ""


def _starts(rule: Rule) -> list[VmState]:
    return [state for state in VmState if state in rule.allowed] or [VmState.BUILDING]


def _word(state: VmState) -> str:
    return shown(state, TaskState.NONE)


def _task_words() -> Iterator[str]:
    yield "## What is under way"
    yield ""
    yield "A task is shown beside the state; with some of them the state itself has another word meanwhile."
    yield ""
    yield "| task | of | while it runs, people see |"
    yield "| --- | --- | --- |"
    for task in sorted(BY_TASK):
        asked = ", ".join(f"`{rule.action}`" for rule in RULES if task in {rule.task, *rule.passes})
        states = sorted({_word(each) for each in VmState if each in BY_TASK[task].allowed})
        words = {shown(each, task) for each in BY_TASK[task].allowed}
        others = sorted(words - set(states))
        yield f"| {task.name.lower()} | {asked or '`create`'} | {', '.join(others) or 'the state it was in'} |"
    yield ""


def _timers() -> Iterator[str]:
    yield "## What begins by itself"
    yield ""
    yield "When a server has been in a state for as long as the conductors' setting says, or until the time in its record, with"
    yield "nothing under way:"
    yield ""
    yield "| in | begins | when | not at all with |"
    yield "| --- | --- | --- | --- |"
    for timer in TIMERS:
        when = f"after `{timer.setting}`" if timer.setting else f"at `{timer.at}`"
        yield f"| {_word(timer.state)} | `{timer.action}` | {when} | {timer.never:g} |"
    yield ""


def _states(states: Iterable[VmState]) -> str:
    return ", ".join(shown(state, TaskState.NONE) for state in sorted(states))


def _tasks(tasks: Iterable[TaskState]) -> str:
    return ", ".join(task.name.lower() for task in sorted(tasks))


def _actions() -> Iterator[str]:
    yield "## What may be asked for"
    yield ""
    yield "| action | may start in | takes over | task | done | failed | deadline | what it does |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for rule in RULES:
        yield "| " + " | ".join(_action_cells(rule)) + " |"
    yield ""
    yield "The deadline is when the conductor must look; what the guest itself may take to shut down is added to it."
    yield ""


def _action_cells(rule: Rule) -> tuple[str, ...]:
    return (
        f"`{rule.action}`",
        _states(rule.allowed) or "(a new server)",
        _tasks(rule.preempts),
        _passed(rule),
        "as it was" if rule.final is None else shown(rule.final, TaskState.NONE),
        "" if rule.on_failure is None else shown(rule.on_failure, TaskState.NONE),
        f"{rule.deadline_s} s" if rule.deadline_s else "",
        rule.summary,
    )


def _passed(rule: Rule) -> str:
    """The words a task is shown by, in order; with none, the action is done when it is written."""
    tasks = () if rule.task is TaskState.NONE else (rule.task, *rule.passes)
    return " → ".join(task.name.lower() for task in tasks)


def _host_words() -> Iterator[str]:
    yield "## What a host may say of a server placed on it"
    yield ""
    yield "Everything else it says is refused and counted, and changes nothing."
    yield ""
    yield "| word | while the server is | and wanted | with the guest seen |"
    yield "| --- | --- | --- | --- |"
    for row in HOST_WORDS.values():
        yield "| " + " | ".join(_word_cells(row)) + " |"


def _word_cells(row: HostWord) -> tuple[str, ...]:
    return (
        f"`{row.word.name.lower()}`",
        _states(row.from_states),
        ", ".join(want.name.lower() for want in sorted(row.wants)),
        ", ".join(power.name.lower() for power in sorted(row.powers)),
    )


if __name__ == "__main__":
    sys.stdout.write(page())
