"""`perdure memory why`: from a sentence of a summary, a record or a fact back to the ledger, also where its text left memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.text import Text

from perdure.daemon.cli.event_lines import event_line
from perdure.daemon.cli.page_parts import who
from perdure.daemon.cli.terminal import harmless, line
from perdure.daemon.cli.words import count, from_now, full_moment, iso
from perdure.errors import PerdureError

if TYPE_CHECKING:
    from perdure.daemon.cli.invocation import Invocation
    from perdure.memory.store import Record, Store, Summary

COVERED_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Sources:
    """What a name stands for: a summary with the records it was made from, or one record and the summaries that tell of it. A
    `stale` summary tells of what was forgotten or erased since: its text is not shown."""

    summary: Summary | None
    records: list[Record]
    above: list[Summary]
    stale: bool = False


def find(invocation: Invocation, store: Store, name: str) -> Sources:
    """What memory and the ledger know of `name`. A record whose text has left memory is told by the ledger. Raises
    PerdureError, saying who forgot it where somebody did."""
    from perdure.memory.rows import event_number
    from perdure.memory.since import gone, tells_of

    without = gone(store, invocation.ledger)
    summary = store.summary(name)
    if summary is not None:
        left = tuple(id for id in summary.covers if event_number(id) not in without)
        records = store.records(left)
        ordered = [_as_told(invocation, records[id]) for id in left if id in records]
        return Sources(replace(summary, covers=left), ordered, [], stale=tells_of(summary, without))
    number = event_number(name)  # f12 is the fact of record r12
    held = None if number in without else store.records([f"r{number}"]).get(f"r{number}")
    if held is not None:
        return Sources(None, [_as_told(invocation, held)], store.summaries_of(held.id))
    hint = "`perdure memory search TEXT` and `perdure context show` name them"
    if not number:
        raise PerdureError("find", f"the memory record {name}", "there is none of this id", hint)
    if store.forgotten(f"r{number}") or number in without:
        raise PerdureError("find", f"the memory record {name}", _forgotten(invocation, name), _event_hint(number))
    if (told := _from_ledger(invocation, number)) is None:
        raise PerdureError("find", f"the memory record {name}", "there is none of this id", hint)
    return Sources(None, [told], [])  # the next compaction will read it


def _as_told(invocation: Invocation, record: Record) -> Record:
    """The record with its text, which for a cold one the ledger has, if it was not erased."""
    if not record.cold:
        return record
    told = _from_ledger(invocation, record.seq)
    return replace(record, text="(erased)") if told is None else replace(told, cold=True)


def _from_ledger(invocation: Invocation, seq: int) -> Record | None:
    from perdure.memory.compaction import record_from
    from perdure.memory.extraction import Extraction

    return record_from(Extraction(invocation.ledger), invocation.ledger, seq)


def _forgotten(invocation: Invocation, name: str) -> str:
    for event in invocation.ledger.events(types=("memory.forgotten",)):
        if event.body["record"][1:] == name[1:]:
            return (
                f"{who(event.body['uid'])} had it forgotten on {full_moment(event.at, invocation.zone)} (#{event.seq})"
            )
    return "what it was made from was erased"


def _event_hint(number: int) -> str:
    return f"The ledger still has what happened: perdure ledger show {number}"


# -- for people -----------------------------------------------------------------------------------------------------------


def show(invocation: Invocation, sources: Sources) -> None:
    """Print it."""
    if sources.summary is not None:
        _print_summary(invocation, sources.summary, sources.stale)
    for each in sources.records[:COVERED_SHOWN]:
        _print_record(invocation, each)
    if len(sources.records) > COVERED_SHOWN:
        more = len(sources.records) - COVERED_SHOWN
        invocation.say((f"… and {more:,} more records (--json lists all)", "faint"))
    for higher in sources.above:
        invocation.say(("covered by summary ", "faint"), (higher.id, "id"), (f" ({higher.level})", "faint"))


def _print_summary(invocation: Invocation, summary: Summary, stale: bool) -> None:
    period = f"{full_moment(summary.start, invocation.zone)} to {full_moment(summary.end, invocation.zone)}"
    invocation.say(
        ("summary ", "heading"),
        (summary.id, "id"),
        f"  {summary.task}, one {summary.level}: {period}, made by {summary.made_by}",
        (f"  #{summary.seq}" if summary.seq is not None else "", "place"),
        ("  tools' words: untrusted" if summary.untrusted else "", "ask"),
    )
    if stale:
        why = "it tells of what was forgotten or erased since; the next session makes it again without"
        invocation.say((f"(its text is not shown: {why})", "warn"))
    else:
        invocation.out.print(Text(harmless(summary.text)), soft_wrap=True)
    invocation.say((f"made from {count(len(summary.covers), 'record')}:", "heading"))


def _print_record(invocation: Invocation, record: Record) -> None:
    invocation.out.print(record_line(invocation, record), soft_wrap=True)
    invocation.say("    ", record.text)
    if record.cold:
        invocation.say(("    its text has left memory (memory.keep); this is the ledger's", "faint"))
    for seq in record.sources:
        event = invocation.ledger.event(seq)
        if event is None:
            invocation.say((f"    #{seq} is not in the ledger", "bad"))
            continue
        shown = event_line(event, now=invocation.now(), zone=invocation.zone)
        invocation.out.print(Text("    from ", "faint") + shown, soft_wrap=True)
        if invocation.ledger.erased(seq):
            invocation.say(("    its payload was erased", "warn"))


def record_line(invocation: Invocation, record: Record) -> Text:
    """Its id, kind, age, speaker, task and mark in one line."""
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


# -- for programs ---------------------------------------------------------------------------------------------------------


def sources_json(sources: Sources) -> dict[str, Any]:
    """`why` as JSON."""
    return {
        "summary": None if sources.summary is None else _summary_json(sources.summary, sources.stale),
        "records": [record_json(each) for each in sources.records],
        "in_summaries": [each.id for each in sources.above],
    }


def record_json(record: Record) -> dict[str, Any]:
    """A record as JSON."""
    return {
        "record": record.id,
        "kind": record.kind,
        "task": record.task,
        "session": record.session,
        "at": iso(record.at),
        "speaker": record.speaker,
        "untrusted": record.untrusted,
        "text": record.text,
        "text_in": "ledger" if record.cold else "memory",
        "tokens": record.tokens,
        "sources": list(record.sources),
    }


def _summary_json(summary: Summary, stale: bool) -> dict[str, Any]:
    return {
        "summary": summary.id,
        "task": summary.task,
        "level": summary.level,
        "start": iso(summary.start),
        "end": iso(summary.end),
        "text": None if stale else summary.text,
        "tokens": summary.tokens,
        "covers": list(summary.covers),
        "untrusted": summary.untrusted,
        "made_by": summary.made_by,
        "seq": summary.seq,
    }
