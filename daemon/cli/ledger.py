"""`perdure ledger`: tail, show, event, search, export, rebuild, erase."""

from __future__ import annotations

import csv
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from perdure.daemon.cli.event_lines import event_json, event_line
from perdure.daemon.cli.invocation import Invocation, everywhere, with_invocation, with_json
from perdure.daemon.cli.spans import Span
from perdure.daemon.cli.terminal import exact, one_line
from perdure.daemon.cli.words import short
from perdure.errors import PerdureError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from perdure.state.events import Event
    from perdure.state.reading import LedgerReader

FOLLOW_SECONDS = 0.25
EXCERPT = 60


@click.group()
@everywhere
def ledger() -> None:
    """What happened: every event, in order, chained by hashes."""


@ledger.command()
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), default=30, show_default=True, help="How many of the last events."
)
@click.option("-f", "--follow", is_flag=True, help="Go on printing events as they come, until Ctrl-C.")
@click.option("--task", help="Only this task's.")
@click.option(
    "--type",
    "types",
    multiple=True,
    metavar="TYPE",
    help="Only events of this type, such as action.decided; repeatable.",
)
@with_json
@with_invocation
def tail(invocation: Invocation, lines: int, follow: bool, task: str | None, types: tuple[str, ...]) -> None:
    """Print the last events, a line each."""
    reader = invocation.ledger
    last = list(reader.events(task=task, types=types or None, newest_first=True, limit=lines)) if lines else []
    seen = reader.head().seq
    for event in reversed(last):
        _print_event(invocation, event)
    while follow:
        head = reader.head().seq
        for event in reader.events(after=seen, until=head, task=task, types=types or None):
            _print_event(invocation, event)
        seen = max(seen, head)
        sys.stdout.flush()
        time.sleep(FOLLOW_SECONDS)


def _print_event(invocation: Invocation, event: Event) -> None:
    if invocation.as_json:
        reader = invocation.ledger
        value = event_json(event, reader.payload(event.seq), erased=reader.erased(event.seq))
        click.echo(json.dumps(value, ensure_ascii=True))
    else:
        invocation.out.print(event_line(event, now=invocation.now(), zone=invocation.zone), soft_wrap=True)


@ledger.command()
@click.argument("session", required=False)
@click.option("--full", is_flag=True, help="Cut nothing: whole arguments, results and texts.")
@with_json
@with_invocation
def show(invocation: Invocation, session: str | None, full: bool) -> None:
    """Show one session from what it saw to what was proven (default: the last one).

    SESSION is its id, or the beginning or end of it.
    """
    from perdure.daemon.cli.account import account_of, public
    from perdure.daemon.cli.session_page import SessionPage

    account = account_of(invocation.ledger, session_id(invocation, session))
    if invocation.as_json:
        invocation.emit("session", public(account))
        return
    page = SessionPage(
        account,
        now=invocation.now(),
        zone=invocation.zone,
        full=full,
        root=str(invocation.workspace),
        command=invocation.command,
    )
    invocation.out.print(page)


def session_id(invocation: Invocation, given: str | None) -> str:
    """The full id of the session that a person means; the last one where none is named."""
    from perdure.state import projections

    if given is not None:
        return projections.resolve(invocation.ledger, "session", given)
    last = projections.sessions(invocation.ledger, limit=1)
    if not last:
        raise PerdureError(
            "show", "the last session", "there has been none yet", "`perdure session run TASK` runs one now"
        )
    return last[0].session


@ledger.command()
@click.argument("seq", type=click.IntRange(min=1))
@with_json
@with_invocation
def event(invocation: Invocation, seq: int) -> None:
    """Show one event whole, by its sequence number, payload included."""
    reader = invocation.ledger
    found = reader.event(seq)
    if found is None:
        head = reader.head().seq
        raise PerdureError(
            "show", f"event {seq}", f"the ledger ends at event {head}", "`perdure ledger tail` shows the last ones"
        )
    erased = reader.erased(seq)
    payload = reader.payload(seq)
    if invocation.as_json:
        click.echo(json.dumps(event_json(found, payload, erased=erased), ensure_ascii=True))
        return
    out = invocation.out
    out.print(event_line(found, now=invocation.now(), zone=invocation.zone), soft_wrap=True)
    invocation.say(("type          ", "faint"), found.type)
    invocation.say(("hash          ", "faint"), found.hash)
    if found.payload_hash:
        invocation.say(("payload hash  ", "faint"), found.payload_hash)
    for title, value in (("body", dict(found.body)), ("payload", payload)):
        if value is None:
            invocation.say((f"{title}  ", "heading"), ("erased" if erased else "none", "warn" if erased else "faint"))
            continue
        invocation.say((title, "heading"))
        for row in json.dumps(value, ensure_ascii=False, indent=2).splitlines():
            invocation.say("  ", row)


@ledger.command()
@click.argument("text")
@click.option("--task", help="Only this task's events.")
@click.option("--since", type=Span(), help="Only the last 30d, 12h, 45m …")
@click.option(
    "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many, newest first."
)
@with_json
@with_invocation
def search(invocation: Invocation, text: str, task: str | None, since: int | None, limit: int) -> None:
    """Find events that hold TEXT in body or payload, in any case, newest first."""
    found = 0
    oldest = None if since is None else invocation.now() - since
    for hit, where in _matches(invocation.ledger, text, task, oldest):
        found += 1
        _print_event(invocation, hit)
        if not invocation.as_json:
            start = where.lower().find(text.lower())
            before = where[max(0, start - EXCERPT) : start]
            hit_text = where[start : start + len(text)]
            after = where[start + len(text) : start + len(text) + EXCERPT]
            invocation.say("        ", ("…" + before, "faint"), (hit_text, "ask"), (after + "…", "faint"))
        if found >= limit:
            break
    if not found and not invocation.as_json:
        invocation.say((f"Nothing in the ledger holds {exact(text)}.", "faint"))
    if not found:
        click.get_current_context().exit(1)


def _matches(reader: LedgerReader, text: str, task: str | None, oldest: int | None) -> Iterator[tuple[Event, str]]:
    """Events that hold the text, with the text they hold it in."""
    wanted = text.lower()
    for candidate in reader.events(task=task, newest_first=True):
        if oldest is not None and candidate.at < oldest:
            return
        body = json.dumps(dict(candidate.body), ensure_ascii=False)
        if wanted in body.lower():
            yield candidate, body
        elif candidate.payload_hash is not None:
            payload = " ".join(_strings(reader.payload(candidate.seq)))
            if wanted in payload.lower():
                yield candidate, payload


def _strings(value: Any) -> Iterator[str]:
    """Every key and value in a JSON value as text, unescaped, so that people find what they saw."""
    if isinstance(value, dict):
        for key, held in value.items():
            yield f"{key}:"
            yield from _strings(held)
    elif isinstance(value, list):
        for held in value:
            yield from _strings(held)
    elif value is not None:
        yield value if isinstance(value, str) else json.dumps(value)


@ledger.command()
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write to this file, which must not exist yet.",
)
@click.option("--since", type=Span(), help="Only the last 30d, 12h, 45m …")
@click.option("--task", help="Only this task's events.")
@click.option("--session", help="Only this session's events.")
@click.option("--no-payloads", is_flag=True, help="Leave out arguments, results and texts; their hashes stay.")
@everywhere
@with_invocation
def export(
    invocation: Invocation,
    form: str,
    output: Path | None,
    since: int | None,
    task: str | None,
    session: str | None,
    no_payloads: bool,
) -> None:
    """Write events for other programs: JSON lines, or CSV with body and payload as JSON."""
    if session is not None:
        session = session_id(invocation, session)
    oldest = None if since is None else invocation.now() - since
    rows = _exported(invocation.ledger, oldest, task, session, payloads=not no_payloads)
    if output is None:
        _write(rows, form, sys.stdout)
        return
    try:
        with output.open("x", encoding="utf-8", newline="") as stream:
            written = _write(rows, form, stream)
    except FileExistsError:
        raise PerdureError(
            "write", str(output), "it exists already", "Name a new file: nothing is overwritten"
        ) from None
    except OSError as error:
        raise PerdureError(
            "write", str(output), error.strerror or str(error), "Name a place that can be written"
        ) from error
    invocation.say(f"{written:,} events written to {output}")


def _exported(
    reader: LedgerReader, oldest: int | None, task: str | None, session: str | None, *, payloads: bool
) -> Iterator[dict[str, Any]]:
    for found in reader.events(task=task, session=session):
        if oldest is not None and found.at < oldest:
            continue
        payload = reader.payload(found.seq) if payloads else None
        yield event_json(found, payload, erased=payloads and reader.erased(found.seq), with_payload=payloads)


def _write(rows: Iterator[dict[str, Any]], form: str, stream: Any) -> int:
    written = 0
    if form == "jsonl":
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=True) + "\n")
            written += 1
        return written
    columns = ("seq", "at", "type", "task", "session", "action", "body", "payload", "payload_hash", "hash")
    writer = csv.writer(stream)
    writer.writerow(columns)
    for row in rows:
        body = row["body"]
        values = {**row, **{name: body.get(name, "") for name in ("task", "session", "action")}}
        values["body"] = json.dumps(body, ensure_ascii=True)
        payload = row.get("payload")
        values["payload"] = "" if payload is None else json.dumps(payload, ensure_ascii=True)
        writer.writerow([_cell(values[name]) for name in columns])
        written += 1
    return written


def _cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    text = one_line(value) if isinstance(value, str) else value
    return "'" + text if isinstance(text, str) and text.startswith(("=", "+", "-", "@")) else text


@ledger.command()
@with_json
@with_invocation
def rebuild(invocation: Invocation) -> None:
    """Make the tables of sessions, slots, actions and questions anew from the events. The daemon must not be running."""
    from perdure.daemon.cli.progress import counting
    from perdure.state.backup import rebuild_projections
    from perdure.state.ownership import Owner

    with Owner.acquire(invocation.state_dir), counting(invocation, "replaying") as progress:
        replayed = rebuild_projections(invocation.state_dir, progress=progress)
    if invocation.as_json:
        invocation.emit("rebuilt", {"events": replayed})
        return
    invocation.say(
        ("✓ rebuilt", "good"), f" from {replayed:,} events; ", (f"{invocation.command} verify", "command"), " compares"
    )


@ledger.command()
@click.option("--yes", is_flag=True, help="Do not ask whether this is meant.")
@with_json
@with_invocation
def adopt(invocation: Invocation, yes: bool) -> None:
    """Make this workspace the ledger's own, where it lies elsewhere than before. The daemon must not be running.

    A ledger belongs to one workspace, and is refused to any other: two that share one would take each other's tasks, slots
    and questions for their own.
    """
    from perdure.daemon.config import load_config
    from perdure.daemon.opening import own_ledger

    config = load_config(invocation.workspace)
    if not yes:
        click.confirm(f"Make the ledger in {config.state_dir} that of {config.workspace}?", abort=True)
    with own_ledger(config, adopt=True):
        pass
    if invocation.as_json:
        invocation.emit("adopted", {"state": str(config.state_dir), "workspace": str(config.workspace)})
        return
    invocation.say(("✓ adopted", "good"), f": the ledger in {config.state_dir} is that of {config.workspace}")


@ledger.command()
@click.argument("seqs", type=click.IntRange(min=1), nargs=-1, required=True, metavar="SEQ...")
@click.option("--reason", required=True, help="Why; it stays in the ledger with your uid.")
@click.option("--yes", is_flag=True, help="Do not ask whether this is meant.")
@with_json
@with_invocation
def erase(invocation: Invocation, seqs: tuple[int, ...], reason: str, yes: bool) -> None:
    """Erase the payloads of these events for good: arguments, results, texts.

    A tombstone says who and why; the chain stays whole. Memory and index follow, and a model's summaries made from them are
    erased too. Contexts, requests and whatever else quotes them are events of their own: those that hold five words in a row, or a
    whole text of 8 characters or more, are listed, so that you can erase them too; look for what is shorter or put in other words
    with `ledger search`. Refused while the action is open.
    """
    from perdure.daemon.quoting import quoting

    quotes = quoting(invocation.ledger, seqs)
    if not yes:
        for seq in seqs:
            found = invocation.ledger.event(seq)
            if found is not None:
                invocation.out.print(event_line(found, now=invocation.now(), zone=invocation.zone), soft_wrap=True)
        _say_quotes(invocation, quotes, "also stands in")
        click.confirm("Erase what these events hold, for good?", abort=True)
    result = invocation.perform("ledger.erase", seqs=list(seqs), reason=reason)
    quotes = [event for event in quotes if not invocation.ledger.erased(event.seq)]
    if invocation.as_json:
        invocation.emit("erased", {**result, "quoted_by": [event.seq for event in quotes]})
        return
    invocation.say(("Erased", "warn"), f": the payloads of {', '.join(f'#{seq}' for seq in seqs)}")
    if result["summaries"]:
        invocation.say(
            f"        and the summaries made from them: {', '.join(f'#{seq}' for seq in result['summaries'])}"
        )
    for action in result["not_undoable"]:
        invocation.say(
            "        and what was kept to undo ", (short(str(action)), "id"), ": it cannot be undone any more"
        )
    invocation.say(
        ("Memory shows none of it from now on; its file is rid of it when the next session starts.", "faint")
    )
    _say_quotes(invocation, quotes, "still stands in")
    if quotes:
        numbers = " ".join(str(event.seq) for event in quotes)
        invocation.say(
            ("        which this erases too: ", "faint"),
            (f"{invocation.command} ledger erase {numbers} --reason …", "command"),
        )


def _say_quotes(invocation: Invocation, quotes: Sequence[Event], where: str) -> None:
    for event in quotes:
        shown = event_line(event, now=invocation.now(), zone=invocation.zone)
        invocation.out.print(Text(f"{where} ", "warn") + shown, soft_wrap=True)
