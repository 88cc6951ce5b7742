"""`perdure pause`, `resume`, `undo`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from perdure.daemon.cli.invocation import Invocation, task_argument, with_invocation, with_json
from perdure.daemon.cli.terminal import exact, one_line
from perdure.daemon.cli.words import short
from perdure.daemon.layout import STOP_FILE

if TYPE_CHECKING:
    from perdure.state.events import JSON


@click.command()
@task_argument
@click.option("--reason", default="", help="Why; it goes into the ledger and is shown by `perdure status`.")
@with_json
@with_invocation
def pause(invocation: Invocation, task: str | None, reason: str) -> None:
    """Start no more sessions of TASK, or of any task, until resumed. What runs now runs on."""
    result = invocation.perform("pause", task=task, reason=reason)
    if invocation.as_json:
        invocation.emit("paused", result)
        return
    invocation.say(
        ("Paused", "warn"),
        f": {task or 'everything'}. ",
        (f"{invocation.command} resume{' ' + task if task else ''}", "command"),
        " goes on.",
    )


@click.command()
@task_argument
@with_json
@with_invocation
def resume(invocation: Invocation, task: str | None) -> None:
    """Let TASK, or all tasks, run again."""
    result = invocation.perform("resume", task=task)
    if invocation.as_json:
        invocation.emit("resumed", result)
        return
    invocation.say(("Resumed", "good"), f": {task or 'everything'}.")
    if (invocation.workspace / STOP_FILE).exists():
        invocation.say((f"But the file {STOP_FILE} lies in the workspace: nothing runs until it is removed.", "warn"))


@click.command()
@click.argument("action")
@with_json
@with_invocation
def undo(invocation: Invocation, action: str) -> None:
    """Bring back what ACTION overwrote, moved or deleted. Undoing is an action of its own, with intent and outcome."""
    from perdure.state import projections

    result = invocation.perform("undo", action=projections.resolve(invocation.ledger, "action", action))
    if invocation.as_json:
        invocation.emit("undone", result)
        return
    invocation.say(("Undone", "good"), f": {short(action)}. ", undone_words(result))


def undone_words(answer: JSON) -> str:
    """Each file that was brought back and what it is now; all of the answer, where it has another shape."""
    match answer:
        case {"result": {"restored": [*files]}} if files:
            return "; ".join(f"{one_line(str(f['path']))} is {f['is']}" for f in files if isinstance(f, dict))
    return exact(answer)
