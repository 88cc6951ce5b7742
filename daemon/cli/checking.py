"""`perdure check`: load and test everything in the workspace; say what each task may cost. Exit codes for CI."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from perdure.daemon.cli.invocation import Invocation, with_invocation, with_json
from perdure.daemon.cli.terminal import line, one_line
from perdure.daemon.cli.words import count, dollars

if TYPE_CHECKING:
    from perdure.daemon.config import Config
    from perdure.daemon.tasks import Task


@dataclass(frozen=True, slots=True)
class Worth:
    """How many steps a task's tokens pay for: `full` where every call is as large as its context bound allows; None where
    steps cost no tokens."""

    full: int | None
    call_tokens: int


def worth(task: Task, config: Config) -> Worth:
    """What the task's token bound buys: a call reserves its prompt (at most `context`) and the longest completion."""
    if task.planner != "model" or config.model is None:
        return Worth(None, 0)
    call = task.bounds.context + config.model.completion_tokens
    return Worth(task.bounds.tokens // call, call)


@click.command()
@with_json
@with_invocation
def check(invocation: Invocation) -> None:
    """Load and test everything: perdure.toml, tasks, policies with their own tests.

    Lists every mistake with file, line and column and exits 2; exits 0 where all is well. Starts nothing, changes nothing.
    """
    from perdure.daemon.workspace import load_workspace

    loaded = load_workspace(invocation.workspace)
    files = sorted(loaded.policies.files)
    tasks = [_task_json(task, loaded.config) for task in loaded.tasks.values()]
    if invocation.as_json:
        invocation.emit(
            "check",
            {
                "ok": True,
                "workspace": str(invocation.workspace),
                "tasks": tasks,
                "policies": {"digest": loaded.policies.digest, "files": files},
                "tools": sorted(loaded.specs),
            },
        )
        return
    good = ("✓ ", "good")
    invocation.say(
        good, ("perdure.toml", "name"), f"  {count(len(loaded.specs), 'tool')}, zone {loaded.config.timezone}"
    )
    invocation.say(
        good, ("policies", "name"), f"  {', '.join(files) or 'none: every action is asked about'}; their tests pass"
    )
    words = count(len(tasks), "task") if tasks else "none yet: put one into tasks/NAME.md"
    invocation.say(good if tasks else ("• ", "warn"), ("tasks", "name"), f"  {words}")
    if tasks:
        invocation.say()
        invocation.out.print(_table(tasks))
    for task in tasks:
        if task["steps_paid"] is not None and task["steps_paid"] < task["bounds"]["steps"]:
            full = f"{task['steps_paid']} full ones ({task['call_tokens']:,} tokens each)"
            words = f": the bound is {count(task['bounds']['steps'], 'step')}, but its tokens pay for {full}"
            invocation.say(("• ", "warn"), (task["task"], "name"), words)


def _task_json(task: Task, config: Config) -> dict[str, Any]:
    value = worth(task, config)
    return {
        "task": task.name,
        "file": str(task.path),
        "planner": task.planner,
        "schedule": None if task.schedule is None else task.schedule.words,
        "bounds": task.bounds.model_dump(),
        "steps_paid": value.full,
        "call_tokens": value.call_tokens or None,
        "postconditions": len(task.postconditions),
        "tools": list(task.tools),
    }


def _table(tasks: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="faint", show_edge=False)
    for title in ("task", "planner", "runs", "steps", "tokens pay for", "costs at most", "postconditions"):
        folds = title in ("runs", "tokens pay for", "costs at most")  # so that names stay whole in 80 columns
        table.add_column(title, overflow="fold", no_wrap=not folds)
    for task in tasks:
        bounds = task["bounds"]
        paid, proofs = task["steps_paid"], task["postconditions"]
        if paid is None:
            pays = Text("needs none", "faint")
        else:
            pays = line(
                (count(paid, "full step"), "warn" if paid < bounds["steps"] else "good"),
                (f" of {task['call_tokens']:,}", "faint"),
            )
        cost = "nothing" if paid is None else f"{bounds['tokens']:,} tokens, {dollars(bounds['cost_usd'])}"
        table.add_row(
            Text(one_line(task["task"]), "name"),
            task["planner"],
            one_line(task["schedule"] or "only when asked for"),
            str(bounds["steps"]),
            pays,
            cost,
            f"{proofs}" if proofs else Text("none: unverified", "warn"),
        )
    return table
