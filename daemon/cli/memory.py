"""`perdure memory`: search, why, facts, pins; pin, unpin, correct, forget.

Looking reads memory.db beside a running daemon; changing goes into the ledger, from which memory follows.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from perdure.daemon.cli.event_lines import event_line
from perdure.daemon.cli.invocation import Invocation, everywhere, with_invocation, with_json
from perdure.daemon.cli.page_parts import who
from perdure.daemon.cli.terminal import exact, harmless, line, one_line
from perdure.daemon.cli.words import count, from_now, full_moment, iso, short
from perdure.errors import PerdureError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from perdure.memory.store import Record, Store, Summary

COVERED_SHOWN = 20


@click.group()
@everywhere
def memory() -> None:
    """What it remembers, why, and how to put it right. Everything here is derived from the ledger."""


@contextmanager
def _store(invocation: Invocation) -> Iterator[Store]:
    """memory.db, to be read only."""
    from perdure.memory.schema import TOKENIZER
    from perdure.memory.store import Store

    path = invocation.state_dir / "memory.db"
    if not path.exists():
        cause = f"{path} does not exist: no session has compacted anything yet"
        raise PerdureError(
            "read the memory of",
            str(invocation.workspace),
            cause,
            "It is made by the next session, or again from the ledger",
        )
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)) as connection:
            # The full-text index is asked with stemmed words, which these two tables make; they are this connection's own.
            connection.execute(f"CREATE VIRTUAL TABLE temp.query USING fts5(text, tokenize='{TOKENIZER}')")
            connection.execute("CREATE VIRTUAL TABLE temp.query_words USING fts5vocab('temp', 'query', 'instance')")
            yield Store(connection, path)
    except sqlite3.Error as error:
        hint = "It is derived: stop the daemon and remove it, and the next session makes it again from the ledger"
        raise PerdureError("read", str(path), str(error), hint) from error


def _scope(task: str | None) -> str:
    from perdure.memory.store import WORKSPACE

    return WORKSPACE if task is None else task


# -- looking ------------------------------------------------------------------------------------------------------------


@memory.command()
@click.argument("text")
@click.option("--task", help="Only what this task may recall; default: everything.")
@click.option("-n", "--limit", type=click.IntRange(1, 200), default=10, show_default=True)
@with_json
@with_invocation
def search(invocation: Invocation, text: str, task: str | None, limit: int) -> None:
    """Recall records that fit TEXT, by their words (sessions also search by meaning)."""
    from perdure.memory.recall import search as recall

    with _store(invocation) as store:
        found = recall(store, _scope(task), text, vector=None, candidates=(), now=invocation.now())[:limit]
    if invocation.as_json:
        invocation.emit(
            "recall",
            {"query": text, "records": [{**_record_json(f.record), "score": f.score, "why": f.why} for f in found]},
        )
        return
    if not found:
        invocation.say((f"Nothing in memory fits {exact(text)}.", "faint"))
    for hit in found:
        invocation.out.print(_record_line(invocation, hit.record), soft_wrap=True)
        invocation.say("    ", hit.record.text)
        invocation.say(("    " + hit.why, "faint"))


@memory.command()
@click.argument("record")
@with_json
@with_invocation
def why(invocation: Invocation, record: str) -> None:
    """Follow RECORD (or a summary) back to the ledger events that it was made from."""
    with _store(invocation) as store:
        summary = store.summary(record)
        records = list(store.records(summary.covers if summary is not None else [record]).values())
        above = store.summaries_of(record) if summary is None else []
    if summary is None and not records:
        raise PerdureError(
            "find",
            f"the memory record {record}",
            "there is none of this id",
            "`perdure memory search TEXT` and `perdure context show` name them",
        )
    if invocation.as_json:
        value = {
            "summary": None if summary is None else _summary_json(summary),
            "records": [_record_json(each) for each in records],
        }
        invocation.emit("why", value | {"in_summaries": [each.id for each in above]})
        return
    if summary is not None:
        _print_summary(invocation, summary)
    for each in records[:COVERED_SHOWN]:
        _print_record(invocation, each)
    if len(records) > COVERED_SHOWN:
        invocation.say((f"… and {len(records) - COVERED_SHOWN:,} more records (--json lists all)", "faint"))
    for higher in above:
        invocation.say(("covered by summary ", "faint"), (higher.id, "id"), (f" ({higher.level})", "faint"))


def _print_summary(invocation: Invocation, summary: Summary) -> None:
    period = f"{full_moment(summary.start, invocation.zone)} to {full_moment(summary.end, invocation.zone)}"
    invocation.say(
        ("summary ", "heading"),
        (summary.id, "id"),
        f"  {summary.task}, one {summary.level}: {period}, made by {summary.made_by}",
    )
    invocation.out.print(Text(harmless(summary.text)), soft_wrap=True)
    invocation.say((f"made from {count(len(summary.covers), 'record')}:", "heading"))


def _print_record(invocation: Invocation, record: Record) -> None:
    invocation.out.print(_record_line(invocation, record), soft_wrap=True)
    invocation.say("    ", record.text)
    for seq in record.sources:
        event = invocation.ledger.event(seq)
        if event is None:
            invocation.say((f"    #{seq} is not in the ledger", "bad"))
            continue
        shown = event_line(event, now=invocation.now(), zone=invocation.zone)
        invocation.out.print(Text("    from ", "faint") + shown, soft_wrap=True)
        if invocation.ledger.erased(seq):
            invocation.say(("    its payload was erased", "warn"))


def _record_line(invocation: Invocation, record: Record) -> Text:
    words = line(
        (record.id, "id"),
        f"  {record.kind}",
        (f", {from_now(record.at, invocation.now())}", "faint"),
        f", by {record.speaker}",
    )
    words.append_text(line((f", task {record.task}" if record.task else ", for every task", "faint")))
    if record.untrusted:
        words.append("  a tool's words: untrusted", "ask")
    return words


def _record_json(record: Record) -> dict[str, Any]:
    return {
        "record": record.id,
        "kind": record.kind,
        "task": record.task,
        "session": record.session,
        "at": iso(record.at),
        "speaker": record.speaker,
        "untrusted": record.untrusted,
        "text": record.text,
        "tokens": record.tokens,
        "sources": list(record.sources),
    }


def _summary_json(summary: Summary) -> dict[str, Any]:
    return {
        "summary": summary.id,
        "task": summary.task,
        "level": summary.level,
        "start": iso(summary.start),
        "end": iso(summary.end),
        "text": summary.text,
        "tokens": summary.tokens,
        "covers": list(summary.covers),
        "untrusted": summary.untrusted,
        "made_by": summary.made_by,
    }


@memory.command()
@click.argument("subject", required=False)
@click.argument("attribute", required=False)
@click.option("--task", help="Only what this task may know; default: everything.")
@click.option("--all", "everything", is_flag=True, help="Also what was superseded.")
@with_json
@with_invocation
def facts(
    invocation: Invocation, subject: str | None, attribute: str | None, task: str | None, everything: bool
) -> None:
    """List facts: what holds, since when, and which ledger event said so."""
    from perdure.memory.facts import settle

    with _store(invocation) as store:
        settled = settle(store.claims(_scope(task), subject, attribute))
    held = [fact for fact in settled if everything or fact.standing != "superseded"]
    if invocation.as_json:
        keys = ("subject", "attribute", "value", "task", "speaker", "standing", "source", "confirmed")
        times = [(iso(fact.valid_from), None if fact.valid_to is None else iso(fact.valid_to)) for fact in held]
        values = [
            {key: getattr(fact, key) for key in keys} | {"valid_from": begin, "valid_to": end}
            for fact, (begin, end) in zip(held, times, strict=True)
        ]
        invocation.emit("facts", {"facts": values})
        return
    if not held:
        invocation.say(("No facts.", "faint"))
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="faint", show_edge=False)
    for title in ("subject", "attribute", "value", "since", "said by", "from"):
        table.add_column(title, overflow="fold")
    style = {"disputed": "ask", "superseded": "faint"}
    for fact in held:
        value = Text(one_line(fact.value, 200), style.get(fact.standing, ""))
        value.append(f"  {fact.standing}" if fact.standing != "current" else "", "faint")
        cells = (one_line(fact.subject), one_line(fact.attribute), value, from_now(fact.valid_from, invocation.now()))
        table.add_row(*cells, one_line(fact.speaker), Text(one_line(fact.source), "place"))
    invocation.out.print(table)


@memory.command("pins")
@with_json
@with_invocation
def list_pins(invocation: Invocation) -> None:
    """List people's standing instructions in force."""
    from perdure.daemon.corrections import pins

    held = pins(invocation.ledger)
    texts = {name: _pinned_text(invocation, seq) for name, (_, seq, _) in held.items()}
    if invocation.as_json:
        values = [
            {"pin": name, "task": task, "text": texts[name], "at": iso(at), "seq": seq}
            for name, (task, seq, at) in held.items()
        ]
        invocation.emit("pins", {"pins": values})
        return
    if not held:
        invocation.say(
            ("No standing instructions. ", "faint"),
            (f"{invocation.command} memory pin TEXT", "command"),
            (" gives one.", "faint"),
        )
    for name, (task, seq, at) in held.items():
        event = invocation.ledger.event(seq)
        by = who(event.body["uid"]) if event is not None else "?"
        invocation.say(
            (short(name), "id"),
            f"  for {task or 'every task'}, by {by}, {from_now(at, invocation.now())}",
            (f"  #{seq}", "place"),
        )
        invocation.out.print(Text("    " + harmless(texts[name] or "(erased)")), soft_wrap=True)


def _pinned_text(invocation: Invocation, seq: int) -> str | None:
    payload = invocation.ledger.payload(seq)
    return str(payload["text"]) if isinstance(payload, dict) and "text" in payload else None


# -- changing -----------------------------------------------------------------------------------------------------------


@memory.command()
@click.argument("text")
@click.option("--task", help="Only for this task; default: for every task.")
@with_json
@with_invocation
def pin(invocation: Invocation, text: str, task: str | None) -> None:
    """Give a standing instruction: TEXT stands word for word in every later context, and is never summarised away."""
    result = invocation.perform("memory.pin", text=text, task=task)
    if invocation.as_json:
        invocation.emit("pinned", result)
        return
    invocation.say(("Pinned", "good"), " as ", (short(str(result["pin"])), "id"), f" for {task or 'every task'}")


@memory.command()
@click.argument("pin")
@with_json
@with_invocation
def unpin(invocation: Invocation, pin: str) -> None:
    """Take a standing instruction back."""
    result = invocation.perform("memory.unpin", pin=pin)
    if invocation.as_json:
        invocation.emit("unpinned", result)
        return
    invocation.say(("Unpinned", "warn"), " ", (short(str(result["pin"])), "id"))


@memory.command()
@click.argument("subject")
@click.argument("attribute")
@click.argument("value")
@click.option("--task", help="Only for this task; default: for every task.")
@with_json
@with_invocation
def correct(invocation: Invocation, subject: str, attribute: str, value: str, task: str | None) -> None:
    """Put a fact right: from the next session on, ATTRIBUTE of SUBJECT is VALUE; what was said before is history."""
    result = invocation.perform("memory.correct", subject=subject, attribute=attribute, value=value, task=task)
    if invocation.as_json:
        invocation.emit("corrected", result)
        return
    invocation.say(
        ("Corrected", "good"), f": {attribute} of {subject} is {exact(value)}", (f"  #{result['seq']}", "place")
    )


@memory.command()
@click.argument("record")
@with_json
@with_invocation
def forget(invocation: Invocation, record: str) -> None:
    """Never recall RECORD again, also after a rebuild. The ledger keeps what it says; `ledger erase` takes that away."""
    result = invocation.perform("memory.forget", record=record)
    if invocation.as_json:
        invocation.emit("forgotten", result)
        return
    invocation.say(("Forgotten", "warn"), ": ", (record, "id"), (f"  #{result['seq']}", "place"))
