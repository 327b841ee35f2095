"""The lifecycle as a page: `python -m fabric.lifecycle.docs`, kept at docs/generated/lifecycle.md.

Made from the table and nothing else, so that what people read is what the servers do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from fabric.lifecycle.table import HOST_WORDS, RULES, HostWord, Rule, shown
from fabric.model.states import TaskState, VmState


def page() -> str:
    """Markdown with a diagram of the states, a table of the actions, and a table of what a host may say."""
    return "\n".join((*_introduction(), *_diagram(), *_actions(), *_host_words())) + "\n"


def _introduction() -> Iterator[str]:
    yield "# The life of a server"
    yield ""
    yield "Source: `fabric/lifecycle/table.py`."
    yield ""
    yield "One action at a time is under way: its task is the lock. An action may start in the states named here while no"
    yield "task is under way, or by taking over one of the tasks named under *takes over*. What fails ends in the state"
    yield "named under *failed*; with none named, the server stays where it was and its fault says why."
    yield ""


def _diagram() -> Iterator[str]:
    yield "```mermaid"
    yield "stateDiagram-v2"
    for state in VmState:
        if state is not VmState.UNSPECIFIED:
            yield f"    state {shown(state, TaskState.NONE)}"
    yield f"    [*] --> {shown(VmState.BUILDING, TaskState.NONE)}: asked for"
    for rule in RULES:
        if rule.final is None:
            # It ends where it began, or, like a confirmed resize, where that is: the table below tells.
            continue
        starts = [state for state in VmState if state in rule.allowed] or [VmState.BUILDING]
        for state in starts:
            yield f"    {shown(state, TaskState.NONE)} --> {shown(rule.final, TaskState.NONE)}: {rule.action}"
            if rule.on_failure is not None and rule.on_failure is not state:
                yield (
                    f"    {shown(state, TaskState.NONE)} --> {shown(rule.on_failure, TaskState.NONE)}: "
                    f"{rule.action} failed"
                )
    yield f"    {shown(VmState.DELETED, TaskState.NONE)} --> [*]"
    yield "```"
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
