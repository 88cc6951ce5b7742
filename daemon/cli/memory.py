"""`perdure memory`: search, why, facts, pins, stats; pin, unpin, correct, forget, resume.

Looking reads memory.db beside a running daemon; changing goes into the ledger, from which memory follows.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from perdure.daemon.cli import memory_sources
from perdure.daemon.cli.invocation import Invocation, everywhere, task_option, with_invocation, with_json
from perdure.daemon.cli.page_parts import who
from perdure.daemon.cli.terminal import exact, harmless, one_line
from perdure.daemon.cli.words import count, from_now, iso, short, size
from perdure.errors import PerdureError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from perdure.memory.store import Store

SESSIONS_THAT_TELL = 20  # with fewer, what empty files take would be told a thousandfold
STANDINGS: dict[str | None, tuple[str, str]] = {
    "superseded": ("  superseded: no longer so", "warn"),
    "disputed": ("  disputed: a person said otherwise", "ask"),
}


@click.group()
@everywhere
def memory() -> None:
    """What it remembers, why, and how to put it right. Everything here is derived from the ledger."""


@contextmanager
def _store(invocation: Invocation) -> Iterator[Store]:
    """memory.db, to be read only."""
    from perdure.memory.store import Store

    path = invocation.state_dir / "memory.db"
    if not path.exists():
        raise _absent(invocation, path)
    try:
        with closing(Store.open_to_read(path)) as store:
            yield store
    except sqlite3.Error as error:
        hint = "It is derived: stop the daemon and remove it, and the next session makes it again from the ledger"
        raise PerdureError("read", str(path), str(error), hint) from error


def _absent(invocation: Invocation, path: Path) -> PerdureError:
    if _last_read(invocation):
        cause = f"{path} is gone; the ledger, from which it was made, still has everything"
        hint = "The next session makes it again from the ledger, all of it: `perdure session run TASK` starts one"
    else:
        cause, hint = (
            f"there is no {path} yet: no session has read the ledger into it",
            "`perdure session run TASK` starts one, which makes it",
        )
    return PerdureError("read the memory of", str(invocation.workspace), cause, hint)


def _last_read(invocation: Invocation) -> int:
    """How far into the ledger memory had come, as its last receipt says; 0: there is none."""
    receipts = invocation.ledger.events(types=("compaction.finished",), newest_first=True, limit=1)
    return next((int(event.body["until"]) for event in receipts), 0)


def _say_what_is_missing(invocation: Invocation, store: Store) -> None:
    """Memory that was lost and begun again tells nothing until a session has read the ledger anew."""
    if store.watermark < _last_read(invocation):
        words = f"Memory was lost and begins again: it has read the ledger up to #{store.watermark} of "
        words += f"#{_last_read(invocation)} so far. The next session reads the rest."
        invocation.say((words, "warn"))


def _scope(task: str | None) -> str:
    from perdure.memory.store import WORKSPACE

    return WORKSPACE if task is None else task


# -- looking ------------------------------------------------------------------------------------------------------------


@memory.command()
@click.argument("text")
@task_option("Only what this task may recall; default: everything.")
@click.option("-n", "--limit", type=click.IntRange(1, 200), default=10, show_default=True)
@with_json
@with_invocation
def search(invocation: Invocation, text: str, task: str | None, limit: int) -> None:
    """Recall records that fit TEXT, by their words (sessions also search by meaning)."""
    from perdure.memory.catalogue import Catalogue
    from perdure.memory.recall import search as recall
    from perdure.memory.settled import Settled
    from perdure.memory.since import facts_now, gone

    with _store(invocation) as store:
        catalogue = Catalogue(store, with_vectors=False)
        catalogue.refresh()
        fitting = recall(
            catalogue, _scope(task), text, vector=None, candidates=catalogue.rows([]), now=invocation.now()
        )
        without = gone(store, invocation.ledger)
        found = [hit for hit in fitting if hit.record.seq not in without][:limit]
        if not invocation.as_json:
            _say_what_is_missing(invocation, store)
        with facts_now(Settled(store), store, invocation.ledger, _scope(task), without) as facts:
            standings = [facts.standing(hit.record.id) for hit in found]
    if invocation.as_json:
        records = [
            {**memory_sources.record_json(hit.record), "standing": standing, "score": hit.score, "why": hit.why}
            for hit, standing in zip(found, standings, strict=True)
        ]
        invocation.emit("recall", {"query": text, "records": records})
        return
    if not found:
        invocation.say((f"Nothing in memory fits {exact(text)}.", "faint"))
    for hit, standing in zip(found, standings, strict=True):
        heading = memory_sources.record_line(invocation, hit.record)
        heading.append(*STANDINGS.get(standing, ("",)))
        invocation.out.print(heading, soft_wrap=True)
        invocation.say("    ", hit.record.text)
        invocation.say(("    " + hit.why, "faint"))


@memory.command()
@click.argument("record")
@with_json
@with_invocation
def why(invocation: Invocation, record: str) -> None:
    """Follow RECORD, a fact or a summary back to the ledger events that it was made from."""
    with _store(invocation) as store:
        sources = memory_sources.find(invocation, store, record)
    if invocation.as_json:
        invocation.emit("why", memory_sources.sources_json(sources))
        return
    memory_sources.show(invocation, sources)


@memory.command()
@with_json
@with_invocation
def stats(invocation: Invocation) -> None:
    """Show what memory holds, how far it has read, and what it takes on disk, also per 1,000 sessions."""
    from perdure.state import projections

    with _store(invocation) as store:
        held: dict[str, Any] = store.sizes()
    sessions = projections.session_count(invocation.ledger)
    taken = {
        "memory.db": _bytes(invocation.state_dir, "memory.db*"),
        "index": _bytes(invocation.state_dir, "index/**/*"),
        "ledger.db": _bytes(invocation.state_dir, "ledger.db*"),
    }
    per_1000 = {name: round(size / sessions * 1_000) for name, size in taken.items()} if sessions else None
    told_per_1000 = per_1000 if sessions >= SESSIONS_THAT_TELL else None
    behind = invocation.ledger.head().seq - held.pop("read_up_to")
    facts = {**held, "events_not_read_yet": behind, "sessions": sessions, "bytes": taken}
    if invocation.as_json:
        invocation.emit("memory-stats", {**facts, "bytes_per_1000_sessions": per_1000})
        return
    cold = f", {held['cold_records']:,} of them told by the ledger alone" if held["cold_records"] else ""
    invocation.say(("holds     ", "heading"), f"{count(held['records'], 'record')}{cold}")
    invocation.say(
        f"          {count(held['claims'], 'claim')} behind facts, {count(held['pins'], 'standing instruction')}"
    )
    told = ", ".join(f"{number:,} of a {level}" for level, number in held["summaries"].items()) or "none"
    invocation.say(f"          summaries: {told}; {held['model_summaries']:,} by a model")
    invocation.say(f"          {held['vectors']:,} vectors; {count(behind, 'event')} of the ledger not read yet")
    for name, size_now in taken.items():
        each = f", {size(told_per_1000[name])} per 1,000 sessions" if told_per_1000 else ""
        invocation.say((f"{name:<10}", "heading"), f"{size(size_now)}{each}")
    invocation.say((f"          {count(sessions, 'session')} so far", "faint"))


def _bytes(directory: Path, pattern: str) -> int:
    """The disk that files take, in bytes."""
    return sum(path.stat().st_size for path in directory.glob(pattern) if path.is_file())


@memory.command()
@click.argument("subject", required=False)
@click.argument("attribute", required=False)
@task_option("Only what this task may know; default: everything.")
@click.option("--all", "everything", is_flag=True, help="Also what was superseded.")
@with_json
@with_invocation
def facts(
    invocation: Invocation, subject: str | None, attribute: str | None, task: str | None, everything: bool
) -> None:
    """List facts: what holds, since when, and which ledger event said so."""
    from perdure.memory.since import known_facts

    with _store(invocation) as store:
        if not invocation.as_json:
            _say_what_is_missing(invocation, store)
        settled = known_facts(store, invocation.ledger, _scope(task), subject, attribute)
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
    for title in ("subject", "attribute", "value", "since", "said by", "task", "from"):
        table.add_column(title, overflow="fold")
    style = {"disputed": "ask", "superseded": "faint"}
    for fact in held:
        value = Text(one_line(fact.value, 200), style.get(fact.standing, ""))
        value.append(f"  {fact.standing}" if fact.standing != "current" else "", "faint")
        cells = (one_line(fact.subject), one_line(fact.attribute), value, from_now(fact.valid_from, invocation.now()))
        table.add_row(*cells, one_line(fact.speaker), fact.task or "every", Text(one_line(fact.source), "place"))
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
@task_option("Only for this task; default: for every task.")
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
@task_option("Only for this task; default: for every task.")
@with_json
@with_invocation
def correct(invocation: Invocation, subject: str, attribute: str, value: str, task: str | None) -> None:
    """Put a fact right: from now on, ATTRIBUTE of SUBJECT is VALUE; what was said before is history."""
    result = invocation.perform("memory.correct", subject=subject, attribute=attribute, value=value, task=task)
    if invocation.as_json:
        invocation.emit("corrected", result)
        return
    invocation.say(
        ("Corrected", "good"), f": {attribute} of {subject} is {exact(value)}", (f"  #{result['seq']}", "place")
    )


@memory.command()
@with_json
@with_invocation
def resume(invocation: Invocation) -> None:
    """Let compaction, and asking a model for summaries, go on after two passes of no use stopped them."""
    result = invocation.perform("memory.resume")
    if invocation.as_json:
        invocation.emit("memory-resumed", result)
        return
    invocation.say(("Memory goes on", "good"), " with the next session", (f"  #{result['seq']}", "place"))


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
