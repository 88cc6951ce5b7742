"""Whether the ledger is whole and true: chain, anchor, payloads, projections. Streams: constant memory at any length."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from perdure.errors import PerdureError
from perdure.state import chain, places
from perdure.state.anchor import NAME, Anchored, anchors
from perdure.state.events import Event
from perdure.state.opening import DAMAGE, OLDER_HINT, connect_to_read, is_older, older_in_words
from perdure.state.parity import Replay, differences, schema_differences
from perdure.state.reading import Head, LedgerReader

PAGE_ROWS: Final = 1000
FINDINGS_MAX: Final = 100  # of one kind; a cut in the middle would otherwise name every later event
SIGNATURES_CHECKED: Final = 100  # of the anchor, from its end
_SEARCHES_MAX: Final = 3  # how often a displaced event is looked for: each search reads the whole ledger


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it was written. `kind` is a stable word, `seq` the event (0: the file as a whole). A finding
    that is not `grave` is a fact to know, such as a tail that a crash left unanchored."""

    seq: int
    kind: str
    detail: str
    grave: bool = True

    def __str__(self) -> str:
        return f"{f'event {self.seq}: ' if self.seq else ''}{self.kind}: {self.detail}"


@dataclass(slots=True)
class Report:
    """What verification found. `anchored` is the last event that the anchor vouches for."""

    findings: list[Finding] = field(default_factory=list)
    events: int = 0
    payloads: int = 0
    erased: int = 0
    head: Head = field(default_factory=lambda: Head(0, "", 0))
    epoch: int = 0
    anchored: int = 0

    @property
    def ok(self) -> bool:
        """Nothing grave was found."""
        return not any(finding.grave for finding in self.findings)

    def add(self, seq: int, kind: str, detail: str, *, grave: bool = True) -> None:
        """Note one finding, unless there are plenty of its kind."""
        if sum(1 for finding in self.findings if finding.kind == kind) < FINDINGS_MAX:
            self.findings.append(Finding(seq, kind, detail, grave))


def verify(
    state_dir: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
    parity: bool = True,
    heads: Iterable[Anchored] = (),
    public_key: str | None = None,
) -> Report:
    """Check the ledger under `state_dir` from its first event to its last, also while a daemon writes it.

    `heads` are anchors kept elsewhere (the journal, another machine). `parity` replays all events and compares the
    projections. With `public_key`, or one that the ledger records, anchored heads from then on must be signed with it.
    Raises nothing for a damaged ledger: what is wrong is a finding.
    """
    path = state_dir / "ledger.db"
    report = Report()
    # Lines that are there before the snapshot is taken speak of events that the snapshot must hold.
    anchor_bytes = _size(state_dir / NAME)
    try:
        connection = connect_to_read(path)
    except PerdureError as error:
        report.add(0, "unreadable", f"{error.cause}. {error.hint}")
        return report
    with contextlib.closing(connection), contextlib.ExitStack() as stack:
        replay = stack.enter_context(Replay()) if parity else None
        try:
            connection.execute("BEGIN")
            if older := is_older(connection):
                report.add(0, "older-schema", f"{older_in_words(connection)}. {OLDER_HINT}")
            for (text,) in connection.execute("PRAGMA quick_check(20)"):
                if text != "ok":
                    report.add(0, "corrupt", str(text))
            for text in () if older else schema_differences(connection):
                report.add(0, "schema-changed", text)
            reader = LedgerReader(connection)
            openings = _check_chain(reader, report, replay, progress)
            _check_anchor(reader, report, anchors(state_dir, anchor_bytes), openings, grave_when_missing=True)
            _check_anchor(reader, report, heads, openings, grave_when_missing=False)
            _check_signatures(reader, report, _last(anchors(state_dir, anchor_bytes)), public_key)
            _check_payloads(connection, report)
            if replay is not None and not older:
                for difference in differences(connection, replay.connection):
                    report.add(0, "projection-differs", str(difference))
                for seq, words in places.discrepancies(connection, report.head.seq):
                    report.add(seq, "place-differs", words)
        except DAMAGE as error:
            report.add(0, "corrupt", f"{error}. Put a backup in its place with `perdure restore FILE`")
    return report


def _check_chain(
    reader: LedgerReader, report: Report, replay: Replay | None, progress: Callable[[int, int], None] | None
) -> list[tuple[int, int]]:
    """Follow the chain. Returns (epoch, seq of its ledger.opened) for every epoch."""
    total = reader.rows("SELECT COALESCE(MAX(seq), 0) FROM events")[0][0]
    link, parse = chain.link, chain.parse_object
    previous, last, at, searches, count = None, 0, 0, 0, 0
    openings: list[tuple[int, int]] = []
    for page in _pages(reader.connection):
        for seq, at, type_, body, payload_hash, hash_, session, task, action in page:
            if seq != last + 1:
                gone = seq - last - 1
                report.add(last + 1, "deleted", f"{gone} event{'s' * (gone > 1)} before event {seq} are gone")
            elif link(seq, at, type_, body, payload_hash, previous) != hash_:
                place = None
                if searches < _SEARCHES_MAX:
                    searches += 1
                    place = _place_of(reader.connection, seq, previous)
                if place is not None:
                    there, hash_ = place  # what follows is held against the one that belongs here
                    report.add(seq, "reordered", f"the event that belongs here stands at {there}")
                else:
                    report.add(seq, "edited", f"its hash does not fit what it says ({type_})")
            value = parse(body)
            if value is None:
                report.add(seq, "edited", "its body is not a JSON object")
            else:
                said = value.get
                if said("session") != session or said("task") != task or said("action") != action:
                    report.add(seq, "column-changed", "session, task or action beside the body are not the body's")
                if type_ == "ledger.opened":
                    openings.append((int(value.get("epoch", 0)), seq))
                if replay is not None and (why := replay.feed(Event(seq, at, type_, value, payload_hash, hash_))):
                    report.add(seq, "impossible", why)
            previous, last = hash_, seq
        count += len(page)
        if progress is not None:
            progress(last, total)
    report.events = count
    if previous is not None:
        report.head = Head(last, previous, at)
    if report.events == 0:
        report.add(0, "deleted", "there is no event at all")
    report.epoch = openings[-1][0] if openings else 0
    return openings


def _check_anchor(
    reader: LedgerReader,
    report: Report,
    lines: Iterable[Anchored],
    openings: list[tuple[int, int]],
    *,
    grave_when_missing: bool,
) -> None:
    """Compare heads that were noted outside the file with the events that are in it."""
    given_up: dict[int, int] = {}  # first event after a restore -> last event that it gave up
    last: Anchored | None = None
    epochs = {epoch for epoch, _ in openings}
    seen = lost = 0
    replaced: list[int] = []  # the first and the last
    for line in lines:
        seen += 1
        if last is not None and grave_when_missing and (line.epoch, line.seq) < (last.epoch, last.seq):
            report.add(
                line.seq,
                "anchor-disordered",
                f"the anchor goes back from {last.seq} to {line.seq} in epoch {line.epoch}",
            )
        last = line
        restart = next((seq for epoch, seq in openings if epoch > line.epoch), None)
        # An epoch that the ledger never had is a branch that a restore gave up whole.
        if restart is not None and (line.seq >= restart or line.epoch not in epochs):
            given_up[restart] = max(given_up.get(restart, 0), line.seq)
            continue
        found = reader.rows("SELECT hash FROM events WHERE seq = ?", line.seq)
        if not found:  # deleted in the middle, which the chain told, or with the tail
            lost = max(lost, line.seq) if line.seq > report.head.seq else lost
        elif found[0][0] != line.hash:
            replaced = [min([line.seq, *replaced]), max([line.seq, *replaced])]
        elif line.epoch == report.epoch:
            report.anchored = max(report.anchored, line.seq)
    if replaced:
        first, others = replaced[0], f" to {replaced[1]}" if replaced[1] > replaced[0] else ""
        gone = f"; and what was anchored up to event {lost} is not in it" if lost else ""
        detail = f"other events were anchored as {first}{others}: the file was replaced, or its chain rebuilt{gone}"
        report.add(first, "replaced", detail)
    elif lost:
        _report_lost_tail(reader, report, lost)
    for restart, seq in given_up.items():
        detail = f"a restore gave up what was anchored before, up to event {seq}"
        report.add(restart, "restored", detail, grave=False)
    if not grave_when_missing:
        return
    if seen == 0:
        report.add(0, "no-anchor", "the anchor is missing or empty: a deleted tail would not show")
    elif not lost and not replaced and report.anchored < report.head.seq:
        count = report.head.seq - report.anchored
        detail = f"the last {count} events are not anchored yet (a crash, or a commit going on)"
        report.add(report.anchored + 1, "not-anchored", detail, grave=False)


def _report_lost_tail(reader: LedgerReader, report: Report, lost: int) -> None:
    """The anchor knows events that the file does not have. Its own projections tell which way they went."""
    seq = report.head.seq
    marks = reader.rows(
        "SELECT MAX(seq) FROM (SELECT MAX(seq) AS seq FROM ledger UNION ALL SELECT MAX(seq_opened) FROM sessions"
        " UNION ALL SELECT MAX(seq_closed) FROM sessions UNION ALL SELECT MAX(seq_opened) FROM slots"
        " UNION ALL SELECT MAX(seq_closed) FROM slots UNION ALL SELECT MAX(seq_proposed) FROM actions"
        " UNION ALL SELECT MAX(seq_intended) FROM actions UNION ALL SELECT MAX(seq_ended) FROM actions"
        " UNION ALL SELECT MAX(seq) FROM escalations UNION ALL SELECT MAX(seq) FROM calls"
        " UNION ALL SELECT MAX(seq) FROM grants UNION ALL SELECT MAX(seq) FROM payloads)"
    )[0][0]
    if (marks or 0) > seq:
        report.add(seq + 1, "tail-deleted", f"events {seq + 1}..{lost} were anchored and are gone from the file")
    else:
        detail = f"the file ends at event {seq}, but events up to {lost} were anchored: its tail was cut off or it is an older file"
        report.add(seq + 1, "older-file", detail)


def _check_payloads(db: sqlite3.Connection, report: Report) -> None:
    """Every payload is the one that its event vouches for, or was erased by a later event."""
    rows = db.execute(
        "SELECT e.seq, e.payload_hash, p.encoding, p.salt, p.data, x.seq FROM events e LEFT JOIN payloads p ON p.seq = e.seq"
        " LEFT JOIN erasures x ON x.erased = e.seq WHERE e.payload_hash IS NOT NULL ORDER BY e.seq"
    )
    salted_hash, unpack = chain.salted_hash, chain.unpack
    while page := rows.fetchmany(PAGE_ROWS):
        for seq, payload_hash, encoding, salt, data, erasure in page:
            erased = erasure is not None and _erases(db, erasure, seq)
            if encoding is None:
                if erased:
                    report.erased += 1
                else:
                    report.add(seq, "payload-deleted", "its payload is gone, and no tombstone says why")
                continue
            try:
                fits = salted_hash(salt, unpack(encoding, data)) == payload_hash
            except (ValueError, TypeError):
                fits = False
            if not fits:
                report.add(seq, "payload-changed", "its payload is not the one that was recorded")
            if erased:
                report.add(seq, "payload-returned", "it was erased, and a payload is there again")
            report.payloads += 1
    strays = "SELECT p.seq FROM payloads p LEFT JOIN events e USING (seq) WHERE e.payload_hash IS NULL ORDER BY p.seq LIMIT 20"
    for (seq,) in db.execute(strays):
        report.add(seq, "payload-stray", "a payload that no event vouches for")


def _last(lines: Iterable[Anchored]) -> list[Anchored]:
    """The last few lines: what the last one signs covers, through the chain, everything before it."""
    return list(deque(lines, maxlen=SIGNATURES_CHECKED))


def _check_signatures(reader: LedgerReader, report: Report, lines: list[Anchored], public_key: str | None) -> None:
    known = [event for event in reader.events(types=("configuration.loaded",)) if event.body["kind"] == "signing-key"]
    if public_key is None and not known:
        return
    from perdure.state.signing import checker, named

    key = str(known[-1].body["digest"]) if public_key is None else named(public_key)
    first = next((event.seq for event in known if event.body["digest"] == key), None)
    if first is None:
        report.add(0, "key-differs", "the ledger does not record the signing key that was given to check with")
        first = 1
    check = checker(key)
    for line in lines:
        if line.seq < first:
            continue
        if line.signature is None:
            report.add(line.seq, "not-signed", "its anchored head has no signature, and the ledger had a key by then")
        elif not check(line.signed(), line.signature):
            report.add(line.seq, "signature-wrong", "its anchored head was not signed with this key")


def _erases(db: sqlite3.Connection, erasure: int, seq: int) -> bool:
    """Whether the event `erasure` says that this payload was erased: the projection alone might lie."""
    row = db.execute("SELECT body FROM events WHERE seq = ? AND type = 'payload.erased'", (erasure,)).fetchone()
    value = chain.parse_object(row[0]) if row is not None else None
    return value is not None and value.get("erased") == seq


def _pages(db: sqlite3.Connection) -> Iterator[list[tuple[Any, ...]]]:
    cursor = db.execute(
        "SELECT seq, at, type, body, payload_hash, hash, session, task, action FROM events ORDER BY seq"
    )
    while page := cursor.fetchmany(PAGE_ROWS):
        yield page


def _place_of(db: sqlite3.Connection, seq: int, previous: str | None) -> tuple[int, str] | None:
    """Where the event stands that follows `previous` as number `seq`, if it is still in the file, and its hash."""
    for other, at, type_, body, payload_hash, hash_, *_ in itertools.chain.from_iterable(_pages(db)):
        if other != seq and chain.link(seq, at, type_, body, payload_hash, previous) == hash_:
            return int(other), str(hash_)
    return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
