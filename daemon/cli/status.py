"""`perdure status`: is it running, what comes next, what waits for a person, how did the last sessions end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from perdure.daemon.cli.inbox import questions_table, row_json
from perdure.daemon.cli.invocation import Invocation, with_invocation, with_json
from perdure.daemon.cli.page_parts import status_text
from perdure.daemon.cli.terminal import WIDE, line, one_line
from perdure.daemon.cli.words import count, dollars, duration, from_now, iso, moment, short, shorten
from perdure.daemon.layout import STOP_FILE
from perdure.errors import PerdureError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from perdure.state.projections import EscalationRow, SessionRow
    from perdure.state.reading import LedgerReader


@dataclass(frozen=True, slots=True)
class Daemon:
    """What is known of the daemon: the pid of the workspace's owner (None: nobody is at work), since when it is a daemon (None:
    another command, or one that is not on record yet), its own words where it answered, and whether it hangs."""

    pid: int | None
    since: int | None
    problems: dict[str, str]
    answers: bool = False
    stopping: bool = False
    silent: bool = False


@dataclass(frozen=True, slots=True)
class Firing:
    """A task's next slot. `due` None: not by the clock (`words` says when)."""

    task: str
    due: int | None
    words: str
    paused: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """All that `perdure status` tells. `memory` holds why memory was stopped, by what stopped; `paused` why everything is."""

    daemon: Daemon
    stop_file: bool
    paused: str | None
    memory: dict[str, str]
    firings: list[Firing]
    questions: list[EscalationRow]
    sessions: list[SessionRow]
    head: int


@click.command()
@click.option(
    "-n",
    "--sessions",
    "sessions_max",
    type=click.IntRange(min=0),
    default=8,
    show_default=True,
    help="How many of the last sessions.",
)
@with_json
@with_invocation
def status(invocation: Invocation, sessions_max: int) -> None:
    """Show the daemon, the next slots, the open questions and the last sessions."""
    if not invocation.has_ledger():
        _nothing_yet(invocation)
        return
    seen = _overview(invocation, sessions_max)
    if invocation.as_json:
        invocation.emit("status", {"workspace": str(invocation.workspace), **_overview_json(seen, invocation.now())})
        return
    _print_daemon(invocation, seen)
    _print_stops(invocation, seen)
    _print_firings(invocation, seen.firings)
    _print_questions(invocation, seen.questions)
    _print_sessions(invocation, seen.sessions)


def _overview(invocation: Invocation, sessions_max: int) -> Overview:
    from perdure.state import projections

    reader = invocation.ledger
    return Overview(
        daemon=find_daemon(invocation, reader),
        stop_file=(invocation.workspace / STOP_FILE).exists(),
        paused=projections.paused(reader, ""),
        memory=memory_stops(reader),
        firings=next_firings(reader, invocation.now()),
        questions=projections.escalations(reader, open_only=True),
        sessions=projections.sessions(reader, limit=sessions_max),
        head=reader.head().seq,
    )


def _overview_json(seen: Overview, now: int) -> dict[str, Any]:
    daemon = seen.daemon
    return {
        "daemon": {
            "running": daemon.pid is not None,
            "pid": daemon.pid,
            "since": None if daemon.since is None else iso(daemon.since),
            "stopping": daemon.stopping,
            "answers": daemon.answers,
        },
        "stop_file": seen.stop_file,
        "memory_stopped": seen.memory,
        "paused": seen.paused,
        "broken_edits": daemon.problems,
        "next": [
            {
                "task": firing.task,
                "due_at": None if firing.due is None else iso(firing.due),
                "schedule": firing.words,
                "paused": firing.paused,
            }
            for firing in seen.firings
        ],
        "questions": [row_json(row, now) for row in seen.questions],
        "sessions": [session_json(row) for row in seen.sessions],
        "head": seen.head,
    }


def _nothing_yet(invocation: Invocation) -> None:
    if invocation.as_json:
        nothing: dict[str, Any] = {"next": [], "questions": [], "sessions": [], "head": 0, "broken_edits": {}}
        daemon = {"running": False, "pid": None, "since": None, "stopping": False, "answers": False}
        invocation.emit("status", {"workspace": str(invocation.workspace), "daemon": daemon, **nothing})
        return
    invocation.say(("○ not running", "warn"), f", and nothing has run in {invocation.workspace} yet")
    invocation.say(
        (f"{invocation.command} check", "command"),
        (" tests the workspace, ", "faint"),
        (f"{invocation.command} run", "command"),
        (" starts the daemon", "faint"),
    )


def find_daemon(invocation: Invocation, reader: LedgerReader) -> Daemon:
    """Ask the kernel who holds the lock; since when, the ledger knows; what is wrong, the daemon itself says."""
    from perdure.state.ownership import holder

    pid = holder(invocation.state_dir)
    if pid is None:
        return Daemon(None, None, {})
    since = None
    for event in reader.events(types=("daemon.started",), newest_first=True, limit=1):
        since = event.at if event.body["pid"] == pid else None
    from perdure.daemon.control import Silent, ask

    try:
        facts = ask(invocation.state_dir, "status", {})
    except Silent:
        return Daemon(pid, since, broken_edits(reader), silent=True)
    except PerdureError:  # starting, stopping, another command, or somebody else's: what the ledger says must do
        return Daemon(pid, since, broken_edits(reader))
    return Daemon(pid, since, dict(facts["problems"]), answers=True, stopping=bool(facts["stopping"]))


def broken_edits(reader: LedgerReader) -> dict[str, str]:
    """The last edit of the configuration where it was refused, with its problems as recorded. Only where the daemon itself
    cannot be asked: an edit that was taken back leaves no event."""
    types = ("configuration.loaded", "configuration.rejected", "daemon.started")
    for event in reader.events(types=types, newest_first=True, limit=1):
        if event.type == "configuration.rejected":
            payload = reader.payload(event.seq)
            return {str(event.body["kind"]): str(payload.get("text", "")) if isinstance(payload, dict) else ""}
    return {}


def memory_stops(reader: LedgerReader) -> dict[str, str]:
    """What of memory has stopped itself and waits for a person: `compaction`, `model-summaries`."""
    from perdure.memory.passes import stopped

    if (stop := stopped(reader)) is not None:
        return {"compaction": f"no longer compacted since #{stop.seq}: {stop.body['reason']}"}
    types = ("compaction.stopped", "compaction.finished", "compaction.resumed")
    for event in reader.events(types=types, newest_first=True, limit=1):
        if event.body.get("model_stopped") or event.type == "compaction.stopped":
            return {"model-summaries": "no model is asked for summaries any more; its answers were of no use"}
    return {}


def next_firings(reader: LedgerReader, now: int) -> list[Firing]:
    """Each task's next slot, soonest first, from the schedules that the ledger saw in force."""
    from perdure.daemon.schedule import schedule_from_text
    from perdure.daemon.scheduler import next_firing
    from perdure.state import projections

    firings = []
    for task in projections.tasks(reader):
        if task.removed_at is not None:
            continue
        paused = projections.paused(reader, task.task)
        if task.schedule is None:
            firings.append(Firing(task.task, None, "only when asked for", paused))
            continue
        schedule = schedule_from_text(task.schedule, task.first_loaded)
        firings.append(Firing(task.task, next_firing(reader, task.task, schedule, now), schedule.words, paused))
    return sorted(firings, key=lambda firing: (firing.due is None, firing.due or 0, firing.task))


def _print_daemon(invocation: Invocation, seen: Overview) -> None:
    daemon, where = seen.daemon, (f"  {invocation.workspace}", "faint")
    if daemon.pid is None:
        invocation.say(("○ not running", "warn"), where)
        return
    seconds = None if daemon.since is None else (invocation.now() - daemon.since) // 1_000_000
    up = "" if seconds is None else f", up {duration(seconds * 1_000_000)}"
    if daemon.silent:
        hint = (f"{invocation.command} doctor", "command")
        invocation.say(("● does not answer", "bad"), f" pid {daemon.pid}{up}", where, "; ", hint, " says what to do")
        return
    if not daemon.answers:
        what = "starting or stopping" if daemon.since is not None else "busy: a command is at work, or a daemon starts"
        invocation.say((f"◌ {what}", "warn"), f" pid {daemon.pid}{up}", where)
        return
    invocation.say(("● running", "good"), f" pid {daemon.pid}{up}", where)


def _print_stops(invocation: Invocation, seen: Overview) -> None:
    """What keeps something from running, each with what lets it go on."""
    if seen.stop_file:
        invocation.say(
            ("■ STOP", "bad"), f": the file {STOP_FILE} lies in the workspace; nothing runs until it is removed"
        )
    if seen.paused is not None:
        goes_on = (f"{invocation.command} resume", "command")
        invocation.say(("■ paused", "warn"), f": everything ({seen.paused}); ", goes_on, " goes on")
    for kind, text in seen.daemon.problems.items():
        if kind == "edit":
            words = line(("✗ a broken edit changes nothing", "bad"), ": the last good version stays in force; ")
            invocation.say(words, (f"{invocation.command} check", "command"))
        for row in text.splitlines()[:6]:
            invocation.say("    ", row)
    for text in seen.memory.values():
        goes_on = (f"{invocation.command} memory resume", "command")
        invocation.say(("■ memory", "bad"), f": {text}; ", goes_on, " lets it go on")


def _print_firings(invocation: Invocation, firings: list[Firing]) -> None:
    if not firings:
        return
    invocation.say()
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="faint", show_edge=False)
    for title in ("task", "next", "", "schedule"):
        table.add_column(title, overflow="fold")
    now = invocation.now()
    for firing in firings:
        when = "" if firing.due is None else moment(firing.due, invocation.zone, now)
        distance = "" if firing.due is None else from_now(firing.due, now)
        if firing.paused is not None:
            table.add_row(
                Text(one_line(firing.task), "name"), Text("paused", "warn"), "", line((firing.paused, "faint"))
            )
        else:
            table.add_row(
                Text(one_line(firing.task), "name"), when, Text(distance), Text(one_line(firing.words), "faint")
            )
    invocation.out.print(table)


def _print_questions(invocation: Invocation, questions: list[EscalationRow]) -> None:
    invocation.say()
    if not questions:
        invocation.say(("No questions are open.", "good"))
        return
    invocation.say((count(len(questions), "question waits", "questions wait") + " for a person", "ask"))
    invocation.out.print(questions_table(invocation, questions))
    command = invocation.command
    shows, answers = (f"{command} inbox show ID", "command"), (f"{command} approve ID", "command")
    invocation.say(shows, (" shows one, ", "faint"), answers, (" answers it", "faint"))


def _print_sessions(invocation: Invocation, sessions: list[SessionRow]) -> None:
    if not sessions:
        return
    invocation.say()
    invocation.say(("Last sessions", "heading"))
    invocation.out.print(sessions_table(invocation, sessions))
    last = (f"{invocation.command} ledger show {short(sessions[0].session)}", "command")
    invocation.say(last, (" shows the last one", "faint"))


def session_json(row: SessionRow) -> dict[str, Any]:
    """A session as JSON, in brief (`ledger show` has the rest)."""
    return {
        "session": row.session,
        "task": row.task,
        "slot": row.slot,
        "planner": row.planner,
        "status": row.status or "open",
        "reason": row.reason,
        "steps": row.steps,
        "tokens": row.tokens,
        "cost_usd": row.cost_usd,
        "duration_us": row.duration_us,
        "opened_at": iso(row.opened_at),
        "closed_at": None if row.closed_at is None else iso(row.closed_at),
        "resumes": row.resumes,
        "seq": row.seq_opened,
    }


def sessions_table(invocation: Invocation, rows: list[SessionRow]) -> Table:
    """One row for each session, newest first."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="faint", show_edge=False)
    table.add_column("session", no_wrap=True)
    table.add_column("task", no_wrap=True)
    table.add_column("began", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("steps", justify="right")
    table.add_column("tokens", justify="right")
    table.add_column("cost", justify="right")
    table.add_column("took", justify="right", no_wrap=True)
    wide = invocation.out.width >= WIDE
    if wide:  # it takes what the other columns leave
        table.expand = True
        table.add_column("why", overflow="ellipsis", no_wrap=True, ratio=1)
    now = invocation.now()
    for row in rows:
        cells: list[RenderableType] = [
            Text(short(row.session), "id"),
            Text(one_line(row.task), "name"),
            moment(row.opened_at, invocation.zone, now),
            status_text(row.status or "open"),
            "" if row.steps is None else f"{row.steps}",
            "" if row.tokens is None else f"{row.tokens:,}",
            "" if row.cost_usd is None else dollars(row.cost_usd),
            "" if row.duration_us is None else duration(row.duration_us),
        ]
        if wide:
            cells.append(Text(one_line(shorten(row.reason or "")), "faint"))
        table.add_row(*cells)
    return table
