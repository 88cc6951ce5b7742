"""Compaction: new ledger events become records, claims, pins and summaries, in transactions that carry their watermark. It
reads only what is new, and gives the same whether it runs after every session or once over the whole ledger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from perdure.errors import PerdureError
from perdure.memory.extraction import Change, Erased, Events, Extraction, Forgotten, SessionEnded, Unpinned
from perdure.memory.rows import Level
from perdure.memory.store import Claim, Pin, Receipt, Record, Store
from perdure.memory.summaries import PERIODS, Extractive, Summariser, period, period_summary, session_summary

EVENTS_AT_ONCE = 5_000  # events of one transaction: a rebuild that is killed goes on from the last one


class CompactionUnsuccessful(PerdureError):
    """Memory could not be brought up to date; it stands where the last good compaction left it."""


@dataclass(slots=True)
class _Tally:
    events: int = 0
    records: int = 0
    facts: int = 0
    summaries: int = 0
    tokens_before: int = 0
    tokens_after: int = 0
    periods: dict[str, int] = field(default_factory=dict)


class Compaction:
    """Brings one store up to one ledger. `now` gives microseconds, for the receipt's duration only."""

    def __init__(
        self, store: Store, events: Events, now: Callable[[], int], summariser: Summariser | None = None
    ) -> None:
        self._store = store
        self._events = events
        self._now = now
        self._summariser = summariser or Extractive()

    def run(self, task: str, session: str | None, head: int) -> list[Receipt]:
        """Read everything up to ledger event `head`; one receipt for each transaction."""
        receipts: list[Receipt] = []
        while self._store.watermark < head:
            receipts.append(self._pass(task, session, head))
        return receipts

    def _pass(self, task: str, session: str | None, head: int) -> Receipt:
        started = self._now()
        after = self._store.watermark
        until = min(head, after + EVENTS_AT_ONCE)
        tally = _Tally()
        extraction = Extraction(self._events)
        with self._store.transaction():
            clock = int(self._store.setting("clock") or 0)
            for event in self._events.events(after=after, until=until):
                if event.at > clock:
                    self._close_periods(clock, event.at, tally)
                    clock = event.at
                tally.events += 1
                for change in extraction.changes(event):
                    self._apply(change, tally)
            self._check(after, until, tally)
            self._store.set_setting("clock", str(clock))
            self._store.set_setting("watermark", str(until))
            receipt = Receipt(
                task=task, session=session, after=after, until=until, events=tally.events, records=tally.records,
                facts=tally.facts, summaries=tally.summaries, tokens_before=tally.tokens_before,
                tokens_after=tally.tokens_after, duration_us=max(0, self._now() - started),
            )  # fmt: skip
            self._store.add_receipt(receipt)
        return receipt

    def _check(self, after: int, until: int, tally: _Tally) -> None:
        """Before the watermark moves: the ledger gave every event of the range, none missing, none twice."""
        if tally.events != until - after:
            cause = f"the ledger gave {tally.events} events between {after} and {until}"
            raise CompactionUnsuccessful("compact", "the ledger", cause, "Run `perdure verify`: events are missing")

    # -- changes ------------------------------------------------------------------------------------------------------

    def _apply(self, change: Change, tally: _Tally) -> None:
        match change:
            case Record():
                self._store.add_record(change)
                tally.records += 1
                tally.tokens_before += change.tokens
            case Claim():
                self._store.add_claim(change)
                tally.facts += 1
            case Pin():
                self._store.add_pin(change)
            case Unpinned():
                self._store.remove_pin(change.pin)
            case Forgotten():
                self._forget(change.record)
            case Erased():
                self._store.remove_claim(change.seq)
                self._store.remove_pin_from(change.seq)
                self._remove(self._store.records_from(change.seq))
            case SessionEnded():
                self._end_session(change, tally)

    def _forget(self, id: str) -> None:
        """A record, or the fact that came with it: `f12` and `r12` are both of ledger event 12."""
        if id[1:].isdigit():
            self._store.remove_claim(int(id[1:]))
            self._store.remove_pin_from(int(id[1:]))
            self._remove([f"r{id[1:]}"])
        self._store.remove_pin(id)

    def _remove(self, ids: list[str]) -> None:
        """Take records out, and make the summaries again that told of them."""
        stale = {summary.id: summary for id in ids for summary in self._store.summaries_of(id)}
        self._store.remove_records(ids)
        for summary in stale.values():
            self._store.remove_summaries([summary.id])
            if summary.level == "session":
                session = summary.id.removeprefix("session/")
                self._summarise_session(session, summary.task, summary.end)
            else:
                self._summarise_period(summary.task, summary.level, summary.start, summary.end)

    # -- summaries ----------------------------------------------------------------------------------------------------

    def _end_session(self, ended: SessionEnded, tally: _Tally) -> None:
        tokens = self._summarise_session(ended.session, ended.task, ended.at)
        if tokens is not None:
            tally.summaries += 1
            tally.tokens_after += tokens

    def _summarise_session(self, session: str, task: str, end: int) -> int | None:
        # What is told of a session later (an answer) is not in its summary: it was made once, when the session closed.
        records = [record for record in self._store.session_records(session) if record.at <= end]
        summary = session_summary(session, task, records, end, self._summariser)
        if summary is None:
            return None
        self._store.put_summary(summary)
        return summary.tokens

    def _close_periods(self, before: int, at: int, tally: _Tally) -> None:
        """Summarise each period that held records and that ends between the last event's time and this one's."""
        if not before:
            return
        for level in PERIODS:
            start, end = period(level, before)
            if end > at:
                continue
            # Events come in order, so nothing happened in the periods between this one and the new event's.
            for task in self._store.tasks_between(start, end):
                tokens = self._summarise_period(task, level, start, end)
                if tokens is not None:
                    tally.summaries += 1
                    tally.tokens_after += tokens

    def _summarise_period(self, task: str, level: Level, start: int, end: int) -> int | None:
        records = self._store.records_between(task, start, end)
        summary = period_summary(task, level, start, end, records, self._summariser)
        if summary is None:
            return None
        self._store.put_summary(summary)
        return summary.tokens


def without_duration(receipt: Receipt) -> Receipt:
    """A receipt as two runs over the same events must agree on it."""
    return replace(receipt, duration_us=0)
