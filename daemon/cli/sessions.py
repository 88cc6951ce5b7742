"""`perdure session`: list, run one now, retry a slot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from perdure.daemon.cli.invocation import Invocation, everywhere, task_option, with_invocation, with_json
from perdure.daemon.cli.page_parts import status_text
from perdure.daemon.cli.status import session_json, sessions_table
from perdure.daemon.cli.terminal import line
from perdure.daemon.cli.words import short, shorten

if TYPE_CHECKING:
    from perdure.daemon.cli.live import LiveView

# A session's end as an exit code, for scripts: 0 proven or finished, 1 failed, 3 waits for a person.
EXIT_CODES = {"succeeded": 0, "unverified": 0, "parked": 3}


@click.group()
@everywhere
def session() -> None:
    """Bounded runs of tasks."""


@session.command("list")
@task_option("Only this task's.")
@click.option(
    "-n", "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many, newest first."
)
@with_json
@with_invocation
def list_sessions(invocation: Invocation, task: str | None, limit: int) -> None:
    """List the last sessions and how they ended."""
    from perdure.state import projections

    rows = projections.sessions(invocation.ledger, task=task, limit=limit)
    if invocation.as_json:
        invocation.emit("sessions", {"sessions": [session_json(row) for row in rows]})
    elif not rows:
        invocation.say(("There has been no session yet.", "faint"))
    else:
        invocation.out.print(sessions_table(invocation, rows))


@session.command()
@click.argument("task")
@click.option("--dry-run", is_flag=True, help="Real reads; every effect is only decided, none is done.")
@with_json
@with_invocation
def run(invocation: Invocation, task: str, dry_run: bool) -> None:
    """Run one session of TASK now and wait for its end.

    Exits 0 where it succeeded or finished unverified, 3 where it waits for a person, 1 otherwise.
    """
    with _view(invocation) as on_event:
        ending = invocation.perform("session.run", on_event=on_event, task=task, dry_run=dry_run)
    _finish(invocation, ending)


@session.command()
@click.argument("slot")
@with_json
@with_invocation
def retry(invocation: Invocation, slot: str) -> None:
    """Run a session for the task of SLOT, which has ended, once more."""
    with _view(invocation) as on_event:
        ending = invocation.perform("session.retry", on_event=on_event, slot=slot)
    _finish(invocation, ending)


@contextmanager
def _view(invocation: Invocation) -> Iterator[LiveView | None]:
    """The live view of a session that runs in this process; None where a program reads what is printed."""
    if invocation.as_json:
        yield None
        return
    from perdure.daemon.cli.live import LiveView
    from perdure.daemon.cli.running import payload_reader

    view = LiveView(
        invocation.out, zone=invocation.zone, payload=payload_reader(invocation), command=invocation.command
    )
    try:
        yield view
    finally:
        view.close()


def _finish(invocation: Invocation, ending: dict[str, Any]) -> None:
    invocation.verdict = EXIT_CODES.get(str(ending.get("status")), 1)
    if invocation.as_json:
        invocation.emit("ending", ending)
    elif ending.get("session") is None:
        invocation.say(
            ("No session ran", "warn"),
            f": the slot ended as {ending.get('outcome')}",
            f" ({shorten(str(ending['rule']))})" if ending.get("rule") else "",
        )
    else:
        name = short(str(ending["session"]))
        words = status_text(str(ending["status"]))
        words.append_text(line(f": {shorten(str(ending['reason']))}"))
        invocation.out.print(words, soft_wrap=True)
        invocation.say((f"{invocation.command} ledger show {name}", "command"), (" shows all of it", "faint"))
    invocation.conclude()
