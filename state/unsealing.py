"""Reading a backup directory of sealed segments: whether it holds what was sealed, and a ledger made of it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from perdure.errors import PerdureError
from perdure.state import chain, places
from perdure.state.anchor import NAME as ANCHOR_NAME
from perdure.state.anchor import Anchored
from perdure.state.events import Event
from perdure.state.migrations import migrate
from perdure.state.parity import Replay
from perdure.state.projections import apply
from perdure.state.reading import Head
from perdure.state.refusals import LedgerRefused
from perdure.state.segments import (
    ANOTHER_COPY,
    MANIFEST,
    Manifest,
    SealedEvent,
    Segment,
    Unreadable,
    digest_of,
    leftovers,
    read_manifest,
    read_segment,
)
from perdure.state.signing import KIND as SIGNING_KEY
from perdure.state.signing import checker, named
from perdure.state.verification import Report

_TABLE: Final = "CREATE TEMP TABLE without_payload (seq INTEGER PRIMARY KEY)"
Progress = Callable[[int, int], None]


def verify_segments(directory: Path, *, progress: Progress | None = None, public_key: str | None = None) -> Report:
    """Check a backup directory by itself: each file's SHA-256, the chain from the first event through all segments to the
    last, every payload, every anchored head and its signature, and that the events can be replayed.

    Constant memory. Raises PerdureError where there is no manifest to go by; anything else that is wrong is a finding.
    """
    report, keys = Report(), list[tuple[int, str]]()
    manifest = _manifest(directory)
    with Replay() as replay:
        replay.connection.execute(_TABLE)
        for sealed in _checked(directory, manifest, report, progress):
            event = _as_event(sealed)
            if event is None:
                report.add(sealed.seq, "edited", "its body is not a JSON object")
                continue
            # After a gap most events would look impossible; what was erased is to be known all the same.
            if (report.ok or event.type == "payload.erased") and (why := replay.feed(event)) is not None:
                report.add(sealed.seq, "impossible", why)
            if event.type == "configuration.loaded" and event.body.get("kind") == SIGNING_KEY:
                keys.append((event.seq, str(event.body.get("digest"))))
            if sealed.payload is not None:
                report.payloads += 1
            elif sealed.payload_hash is not None:
                replay.connection.execute("INSERT INTO without_payload VALUES (?)", (sealed.seq,))
        _check_erasures(replay.connection, report)
        report.epoch = int(replay.connection.execute("SELECT COALESCE(MAX(epoch), 0) FROM ledger").fetchone()[0])
    _check_signatures(manifest, report, keys, public_key)
    _check_anchored(report)
    for path in leftovers(directory, manifest):
        detail = f"{path.name} was left by a backup that was cut off; the next one removes it"
        report.add(0, "left-over", detail, grave=False)
    return report


def unseal(directory: Path, staging: Path, *, progress: Progress | None = None) -> None:
    """Make `ledger.db` and `anchor` in `staging` from a backup directory; what was erased since it was sealed stays away.

    Raises PerdureError for the first thing that is wrong with the directory.
    """
    report, manifest = Report(), _manifest(directory)
    with contextlib.closing(sqlite3.connect(staging / "ledger.db", isolation_level=None)) as db:
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "secure_delete = ON"):
            db.execute(
                f"PRAGMA {pragma}"
            )  # thrown away if anything goes wrong; an erased payload leaves no bytes behind
        migrate(db, manifest.segments[0].at if manifest.segments else 0)
        db.execute("BEGIN")
        last = 0
        for sealed in _checked(directory, manifest, report, progress):
            event = _as_event(sealed)
            if event is None or report.findings:
                break
            _insert(db, sealed, event)
            last = sealed.seq
        if report.findings:
            raise PerdureError("restore", str(directory), str(report.findings[0]), ANOTHER_COPY)
        places.rebuild(db, last)
        db.execute(
            "UPDATE ownership SET fence = (SELECT COALESCE(MAX(json_extract(body, '$.fence')), 0) FROM events"
            " WHERE type = 'daemon.started')"
        )
        db.execute("COMMIT")
    anchored = [segment.anchored for segment in manifest.segments if segment.anchored is not None]
    (staging / ANCHOR_NAME).write_bytes(b"".join(head.line() for head in anchored))


def _insert(db: sqlite3.Connection, sealed: SealedEvent, event: Event) -> None:
    try:
        db.execute(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                sealed.seq, sealed.at, sealed.type, sealed.body, sealed.payload_hash, sealed.hash,
                *(event.body.get(name) for name in ("session", "task", "action")),
            ),
        )  # fmt: skip
        if sealed.payload is not None:
            encoding, data = chain.pack(sealed.payload)
            db.execute("INSERT INTO payloads VALUES (?, ?, ?, ?)", (sealed.seq, encoding, sealed.salt, data))
        apply(db, event)
        if event.type == "payload.erased":
            db.execute("DELETE FROM payloads WHERE seq = ?", (event.body["erased"],))
    except (LedgerRefused, sqlite3.IntegrityError, KeyError, TypeError) as error:
        raise PerdureError("restore", f"event {sealed.seq}", str(error), ANOTHER_COPY) from error


def _manifest(directory: Path) -> Manifest:
    manifest = read_manifest(directory)
    if manifest is None:
        hint = "Name the directory that `perdure backup --to DIR` wrote"
        raise PerdureError("read", str(directory), f"there is no {MANIFEST} in it", hint)
    return manifest


def _checked(directory: Path, manifest: Manifest, report: Report, progress: Progress | None) -> Iterator[SealedEvent]:
    """Every event that can be read, in order; what is wrong with files, chain, payloads or anchored heads is reported."""
    total = manifest.segments[-1].last if manifest.segments else 0
    if not total:
        report.add(0, "nothing-sealed", "no event has been sealed here yet")
    expected, previous = 1, None
    for segment in manifest.segments:
        if segment.first != expected or segment.previous != previous:
            detail = (
                f"the manifest goes from event {expected - 1} to {segment.first}, or to another chain ({segment.file})"
            )
            report.add(expected, "manifest-wrong", detail)
        for event in _of_segment(directory, segment, manifest, report):
            yield event
            report.events += 1
            if progress is not None and (event.seq % 1000 == 0 or event.seq == total):
                progress(event.seq, total)
        # What follows is held against what the manifest says, so that one damaged file is one finding.
        expected, previous = segment.last + 1, segment.hash
        report.head = Head(segment.last, segment.hash, segment.at)


def _of_segment(directory: Path, segment: Segment, manifest: Manifest, report: Report) -> Iterator[SealedEvent]:
    what = f"{segment.file}, events {segment.first}..{segment.last}"
    try:
        digest, _ = digest_of(directory / segment.file)
    except FileNotFoundError:
        report.add(segment.first, "segment-missing", f"{what}: the file is not here")
        return
    except OSError as error:
        report.add(segment.first, "segment-unreadable", f"{what}: {error.strerror or error}")
        return
    if digest != segment.sha256:
        other = next((each.file for each in manifest.segments if each.sha256 == digest), None)
        if other is not None:
            report.add(segment.first, "segment-swapped", f"{what}: it holds what {other} should")
            return
        report.add(segment.first, "segment-edited", f"{what}: its SHA-256 is not the one in the manifest")
    expected, previous, anchored = segment.first, segment.previous, segment.anchored
    try:
        for event in read_segment(directory / segment.file):
            if event.seq != expected:
                report.add(expected, "deleted", f"{what}: event {event.seq} stands where event {expected} belongs")
            elif not event.follows(previous):
                report.add(event.seq, "edited", f"its hash does not fit what it says ({event.type}; {segment.file})")
            if event.payload is not None and not event.holds_what_was_recorded():
                report.add(
                    event.seq, "payload-changed", f"its payload is not the one that was recorded ({segment.file})"
                )
            if anchored is not None and event.seq == anchored.seq:
                if event.hash == anchored.hash:
                    report.anchored = event.seq
                else:
                    report.add(event.seq, "replaced", f"another event was anchored here ({segment.file})")
            yield event
            expected, previous = event.seq + 1, event.hash
    except (Unreadable, OSError) as error:
        report.add(expected, "segment-damaged", f"{what}: it cannot be read from event {expected} on ({error})")
        return
    if (expected, previous) != (segment.last + 1, segment.hash):
        report.add(expected, "segment-edited", f"{what}: it ends with another event than the manifest says")


def _check_erasures(db: sqlite3.Connection, report: Report) -> None:
    """Payloads that are not here need a tombstone; those that are and have one are to be known of."""
    report.erased = db.execute("SELECT COUNT(*) FROM without_payload").fetchone()[0]
    sql = "SELECT seq FROM without_payload WHERE seq NOT IN (SELECT erased FROM erasures) ORDER BY seq"
    for (seq,) in db.execute(sql) if report.ok else ():  # a segment that is missing may hold the tombstones
        report.add(seq, "payload-deleted", "its payload is not here, and no tombstone says why")
    sql = "SELECT MIN(erased), COUNT(*) FROM erasures WHERE erased NOT IN (SELECT seq FROM without_payload)"
    first, count = db.execute(sql).fetchone()
    if count:
        detail = (
            f"{count} payloads that were erased after they were sealed still lie here; a restore leaves them out, and "
            "`perdure backup --to DIR --reseal` writes their segments anew"
        )
        report.add(first, "erased-since", detail, grave=False)


def _check_anchored(report: Report) -> None:
    if report.anchored == 0 and report.events:
        report.add(0, "no-anchor", "no anchored head is sealed with these events: a deleted tail would not show")
    elif report.anchored < report.head.seq and report.ok:
        detail = f"the last {report.head.seq - report.anchored} events were not anchored yet when they were sealed"
        report.add(report.anchored + 1, "not-anchored", detail, grave=False)


def _check_signatures(manifest: Manifest, report: Report, keys: list[tuple[int, str]], public_key: str | None) -> None:
    """Anchored heads since the key was recorded are signed with it; what one signs covers, through the chain, all before it."""
    if public_key is None and not keys:
        return
    key = keys[-1][1] if public_key is None else named(public_key)
    since = next((seq for seq, recorded in keys if recorded == key), None)
    if since is None:
        report.add(0, "key-differs", "the ledger does not record the signing key that was given to check with")
        since = 1
    check = checker(key)
    for segment in manifest.segments:
        head: Anchored | None = segment.anchored
        if head is None or head.seq < since:
            continue
        if head.signature is None:
            report.add(head.seq, "not-signed", "its anchored head has no signature, and the ledger had a key by then")
        elif not check(head.signed(), head.signature):
            report.add(head.seq, "signature-wrong", "its anchored head was not signed with this key")


def _as_event(sealed: SealedEvent) -> Event | None:
    try:
        body: Any = chain.parse(sealed.body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict):
        return None
    return Event(sealed.seq, sealed.at, sealed.type, body, sealed.payload_hash, sealed.hash)
