"""Compaction: new ledger events become records, claims, pins and summaries, in transactions that carry their watermark. It
reads only what is new, and gives the same whether it runs after every session or once over the whole ledger."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from perdure.errors import PerdureError
from perdure.memory import tokens
from perdure.memory.extraction import (
    Change,
    Erased,
    Extraction,
    Forgotten,
    ModelStopped,
    NotSummarised,
    SessionEnded,
    Summarised,
    Unpinned,
    Zoned,
)
from perdure.memory.rows import Level
from perdure.memory.store import Claim, Pin, Receipt, Record, Store, Summary
from perdure.memory.summaries import (
    PERIODS,
    TOKENS_MAX,
    Extractive,
    Summariser,
    period,
    period_id,
    session_id,
    summarised,
)
from perdure.state.reading import LedgerReader

EVENTS_AT_ONCE = 5_000  # events of one transaction: a rebuild that is killed goes on from the last one
COOLED_AT_ONCE = 5_000  # records whose text leaves memory in one transaction
PAGES_AT_ONCE = 2_000  # of the file that one compaction gives back to the disk (8 MB)
DETAIL_MAX = 200  # summaries that a receipt lists one by one: a rebuild makes thousands

# What memory keeps in its settings about the model that writes summaries.
VAIN = "asked_in_vain"  # sessions in a row whose calls gave nothing that passed the checks
VAIN_SESSION = "asked_in_vain_in"
MODEL_STOPPED = "model_stopped"


class CompactionUnsuccessful(PerdureError):
    """Memory could not be brought up to date; it stands where the last good compaction left it."""


@dataclass(slots=True)
class _Tally:
    events: int = 0
    records: int = 0
    facts: int = 0
    summaries: list[dict[str, str | int]] = field(default_factory=list)
    too_much: int = 0  # tokens of the sources that had more than their summaries may hold
    made_of_too_much: int = 0  # and what these summaries have

    def total(self, of: str) -> int:
        return sum(int(each[of]) for each in self.summaries)

    @property
    def ineffective(self) -> bool:
        """What was more than a summary may hold became no smaller; or the summaries tell of nothing. One of a few short records
        names and dates them, and has more tokens than they: that is no fault."""
        if not self.summaries:
            return False
        if self.total("records") == self.total("left_out"):
            return True
        return 0 < self.too_much <= self.made_of_too_much


class Compaction:
    """Brings one store up to one ledger. `now` gives microseconds, for the receipt's duration only; the text of records that
    are `keep_us` older than the newest event leaves memory (None: never)."""

    def __init__(
        self,
        store: Store,
        reader: LedgerReader,
        now: Callable[[], int],
        summariser: Summariser | None = None,
        keep_us: int | None = None,
    ) -> None:
        self._store = store
        self._reader = reader
        self._now = now
        self._summariser = summariser or Extractive()
        self._keep_us = keep_us
        self._zones = store.zones()
        self._days: dict[str, int] = {}  # when the current day ends, by zone
        self._extraction = Extraction(reader)

    def run(self, task: str, session: str | None, head: int) -> list[Receipt]:
        """Read everything up to ledger event `head`; one receipt for each transaction."""
        receipts: list[Receipt] = []
        while self._store.watermark < head:
            receipts.append(self._pass(task, session, head))
        self._store.give_back(PAGES_AT_ONCE)
        return receipts

    def _pass(self, task: str, session: str | None, head: int) -> Receipt:
        started = self._now()
        after = self._store.watermark
        until = min(head, after + EVENTS_AT_ONCE)
        tally = _Tally()
        with self._store.transaction():
            clock = int(self._store.setting("clock") or 0)
            for event in self._reader.events(after=after, until=until):
                if event.at > clock:
                    self._close_periods(clock, event.at, tally)
                    clock = event.at
                tally.events += 1
                for change in self._extraction.changes(event):
                    self._apply(change, tally)
            self._check(after, until, tally)
            if self._keep_us is not None:
                self._store.cool(clock - self._keep_us, COOLED_AT_ONCE)
            self._store.set_setting("clock", str(clock))
            self._store.set_setting("watermark", str(until))
            receipt = Receipt(
                task=task, session=session, after=after, until=until, events=tally.events, records=tally.records,
                facts=tally.facts, summaries=len(tally.summaries), tokens_before=tally.total("tokens_before"),
                tokens_after=tally.total("tokens_after"), duration_us=max(0, self._now() - started),
                left_out=tally.total("left_out"), ineffective=int(tally.ineffective),
                model_stopped=int(self._store.setting(MODEL_STOPPED) == "1"),
                detail=json.dumps(tally.summaries[-DETAIL_MAX:], ensure_ascii=False),
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
                self._erase(change.seq)
            case SessionEnded():
                self._end_session(change, tally)
            case Zoned():
                self._move_to_zone(change, tally)
            case Summarised():
                self._take_from_model(change)
            case NotSummarised():
                self._store.add_attempt(change.summary)
                if change.session is not None:
                    self._asked_in_vain(change.session)
            case ModelStopped():
                self._store.set_setting(MODEL_STOPPED, "1" if change.stopped else "0")
                self._store.set_setting(VAIN, "0")

    def _forget(self, id: str) -> None:
        """A record, or the fact that came with it: `f12` and `r12` are both of ledger event 12."""
        self._store.remove_pin(id)
        if id[1:].isdigit():
            record = f"r{id[1:]}"
            self._store.remove_claim(int(id[1:]))
            self._store.remove_pin_from(int(id[1:]))
            self._store.forget(record)
            self._remove([record])

    def _erase(self, seq: int) -> None:
        told = self._store.records_from(seq)
        # A fact has its result's number, and rests on its proposal too.
        for each in {seq, *(int(id[1:]) for id in told)}:
            self._store.remove_claim(each)
        self._store.remove_pin_from(seq)
        self._remove(told)
        if (summary := self._store.summary_from(seq)) is not None:
            self._remake(summary)

    def _remove(self, ids: Sequence[str]) -> None:
        """Take records out, and make the summaries again that would be others without them."""
        held = self._store.records(ids).values()
        stale = {summary.id: summary for record in held for summary in self._store.summaries_made_from(record)}
        self._store.remove_records(ids)
        for summary in stale.values():
            self._remake(summary)

    # -- summaries ----------------------------------------------------------------------------------------------------

    def _end_session(self, ended: SessionEnded, tally: _Tally) -> None:
        # What is told of a session later (an answer) is not in its summary: it was made once, when the session closed.
        records = [record for record in self._store.session_records(ended.session) if record.at <= ended.at]
        if records:
            start = min(record.at for record in records)
            self._summarise(session_id(ended.session), ended.task, "session", start, ended.at, records, tally)

    def _close_periods(self, before: int, at: int, tally: _Tally) -> None:
        """Summarise each period that held records and that ends between the last event's time and this one's."""
        if not before:
            return
        for zone in sorted({"UTC", *self._zones.values()}):
            if at < self._days.get(zone, 0):
                continue  # the day goes on, and every week and month ends with a day
            self._days[zone] = period("day", at, zone)[1]
            for level in PERIODS:
                start, end = period(level, before, zone)
                if end > at:
                    continue
                # Events come in order, so nothing happened in the periods between this one and the new event's.
                for task in self._store.tasks_between(start, end):
                    if self._zones.get(task, "UTC") == zone:
                        self._close(task, level, start, end, tally)

    def _move_to_zone(self, change: Zoned, tally: _Tally) -> None:
        """The days of a task begin elsewhere from now on: what of its open periods lies before the new current ones is told
        now, since no later day would."""
        old = self._zones.get(change.task, "UTC")
        if change.zone == old:
            return
        for level in PERIODS:
            start = period(level, change.at, old)[0]
            until = period(level, change.at, change.zone)[0]
            while start < until:
                end = period(level, start, change.zone)[1]
                self._close(change.task, level, start, end, tally, zone=change.zone)
                start = end
        self._zones[change.task] = change.zone
        self._store.set_zone(change.task, change.zone)

    def _close(self, task: str, level: Level, start: int, end: int, tally: _Tally, *, zone: str | None = None) -> None:
        id = name = period_id(task, level, start, zone or self._zones.get(task, "UTC"))
        number = 1
        while (there := self._store.summary(id)) is not None and there.start != start:
            number += 1  # the same date, by the calendar of another zone
            id = f"{name}~{number}"
        self._summarise(id, task, level, start, end, self._store.records_between(task, start, end), tally)

    def _summarise(
        self, id: str, task: str, level: Level, start: int, end: int, records: Sequence[Record], tally: _Tally
    ) -> None:
        records = self._warm(records)
        summary = summarised(id, task, level, start, end, records, self._summariser)
        if summary is None:
            return
        self._store.put_summary(summary)
        before = sum(record.tokens for record in records)
        if before > TOKENS_MAX[level]:
            tally.too_much += before
            tally.made_of_too_much += summary.tokens
        tally.summaries.append(
            {
                "summary": id, "records": len(records), "left_out": len(records) - len(summary.covers),
                "tokens_before": before, "tokens_after": summary.tokens, "made_by": summary.made_by,
            }
        )  # fmt: skip

    def _remake(self, summary: Summary) -> None:
        """Make a summary again, from the records that are left of its period."""
        self._store.remove_summaries([summary.id])
        records = self._warm(self.records_of(summary))
        start = min((record.at for record in records), default=0) if summary.level == "session" else summary.start
        again = summarised(summary.id, summary.task, summary.level, start, summary.end, records, self._summariser)
        if again is not None:
            self._store.put_summary(again)

    def records_of(self, summary: Summary) -> list[Record]:
        """The records of the period that a summary tells of."""
        if summary.level != "session":
            return self._store.records_between(summary.task, summary.start, summary.end)
        session = summary.id.removeprefix("session/")
        return [record for record in self._store.session_records(session) if record.at <= summary.end]

    def _warm(self, records: Sequence[Record]) -> list[Record]:
        """Records whose text has left memory, with the text that the ledger gives."""
        return [warm for record in records if (warm := self._as_told(record)) is not None]

    def _as_told(self, record: Record) -> Record | None:
        return record if not record.cold else record_from(self._extraction, self._reader, record.seq)

    # -- a model's summaries --------------------------------------------------------------------------------------------

    def _take_from_model(self, change: Summarised) -> None:
        """Put a model's summary in place of the extractive one, unless what it was made from is no longer all there."""
        self._store.add_attempt(change.summary)
        self._store.set_setting(VAIN, "0")
        self._store.set_setting(VAIN_SESSION, change.session)
        there = self._store.summary(change.summary)
        known = self._store.records(change.covers)
        if there is None or change.text is None or any(record not in known for record in change.covers):
            return
        told = replace(
            there, text=change.text, tokens=tokens.count(change.text), covers=change.covers, untrusted=change.untrusted,
            made_by=f"model {change.model}", seq=change.seq,
        )  # fmt: skip
        self._store.put_summary(told)

    def _asked_in_vain(self, session: str) -> None:
        if self._store.setting(VAIN_SESSION) != session:
            self._store.set_setting(VAIN_SESSION, session)
            self._store.set_setting(VAIN, str(int(self._store.setting(VAIN) or 0) + 1))


def record_from(extraction: Extraction, reader: LedgerReader, seq: int) -> Record | None:
    """The record that ledger event `seq` makes, as far as its payload was not erased."""
    event = reader.event(seq)
    changes = [] if event is None else extraction.changes(event)
    return next((change for change in changes if isinstance(change, Record)), None)
