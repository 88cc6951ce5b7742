"""Backing up by sealed segments: what is new since the last time, also while a daemon writes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from perdure.errors import PerdureError
from perdure.state import chain
from perdure.state.anchor import NAME as ANCHOR_NAME
from perdure.state.anchor import Anchored, parsed
from perdure.state.reading import Head, LedgerReader
from perdure.state.segments import (
    MANIFEST,
    UNBORN,
    Manifest,
    SealedEvent,
    Segment,
    Unreadable,
    leftovers,
    read_manifest,
    read_segment,
    sync,
    without,
    write_manifest,
    write_segment,
)

SEGMENT_EVENTS: Final = 20_000
_ANCHOR_BYTES: Final = 1 << 18  # of the anchor's end, in which the head that a backup sees is looked for

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Sealed:
    """What one run did: the head that the directory now holds, what is new in it, how many older segments were written
    anew, and how many payloads that were erased since still lie in older ones."""

    head: Head
    events: int
    files: int
    bytes: int
    resealed: int
    held: int


def seal(
    state_dir: Path,
    directory: Path,
    *,
    reseal: bool = False,
    segment_events: int = SEGMENT_EVENTS,
    progress: Progress | None = None,
) -> Sealed:
    """Add what is new in the ledger to a backup directory; with `reseal`, write older segments anew without the payloads
    that were erased since they were sealed.

    Every event is checked against the chain, and every payload against its event, before it is sealed. A crash at any
    point leaves the directory as it was: the manifest, which comes last, names what counts. Raises PerdureError.
    """
    try:
        with LedgerReader.open(state_dir / "ledger.db", older=True) as reader:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _alone(directory):
                return _sealed(reader, state_dir, directory, segment_events, progress, reseal=reseal)
    except (sqlite3.Error, OSError) as error:
        raise PerdureError(
            "back up to", str(directory), str(error), "Check disk space and permissions there"
        ) from error


def _sealed(
    reader: LedgerReader,
    state_dir: Path,
    directory: Path,
    segment_events: int,
    progress: Progress | None,
    *,
    reseal: bool,
) -> Sealed:
    manifest = _continued(reader, directory)
    for path in leftovers(directory, manifest):
        path.unlink()
    known = len(manifest.segments)
    manifest = _with_news(reader, state_dir, directory, manifest, segment_events, progress)
    added = manifest.segments[known:]
    before, manifest = manifest, _resealed(reader, directory, manifest) if reseal else manifest
    if added or manifest != before:
        write_manifest(directory, manifest)
    for path in leftovers(directory, manifest):  # segments that were written anew
        path.unlink()
    sync(directory)
    last = manifest.segments[-1]
    return Sealed(
        head=Head(last.last, last.hash, last.at),
        events=sum(segment.last - segment.first + 1 for segment in added),
        files=len(added),
        bytes=sum(segment.bytes for segment in added),
        resealed=len(set(before.segments) - set(manifest.segments)),
        held=sum(_erased_since(reader, segment, last.last) for segment in manifest.segments),
    )


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """The kernel's lock on the directory: two runs at once would each take the other's files for leftovers."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise PerdureError(
            "back up to", str(directory), "another backup is writing there", "Wait until it has ended"
        ) from None
    finally:
        os.close(handle)


def _continued(reader: LedgerReader, directory: Path) -> Manifest:
    """The directory's manifest, if this ledger is what it holds the beginning of; an empty one for a new directory."""
    workspace = reader.rows("SELECT workspace FROM ledger ORDER BY epoch DESC LIMIT 1")[0][0]
    manifest = read_manifest(directory)
    if manifest is None:
        manifest = Manifest(workspace)
        if orphans := [path for path in leftovers(directory, manifest) if path.name not in UNBORN]:
            cause = f"it holds {orphans[0].name}, and its {MANIFEST} is gone"
            raise PerdureError("back up to", str(directory), cause, f"Put {MANIFEST} back, or name a new directory")
        write_manifest(directory, manifest)  # from now on, what it does not name is a leftover
    if manifest.workspace != workspace:
        cause = f"it holds the ledger of another workspace ({manifest.workspace}; this one is {workspace})"
        raise PerdureError("back up to", str(directory), cause, "Name a directory of this workspace's own")
    if manifest.segments:
        last = manifest.segments[-1]
        found = reader.rows("SELECT hash FROM events WHERE seq = ?", last.last)
        if not found or found[0][0] != last.hash:
            what = "is another one in" if found else "is not in"
            raise PerdureError(
                "back up to", str(directory), f"event {last.last}, the last one sealed there, {what} this ledger",
                "After a restore name a new directory; otherwise see what `perdure verify` says",
            )  # fmt: skip
    return manifest


def _with_news(
    reader: LedgerReader,
    state_dir: Path,
    directory: Path,
    manifest: Manifest,
    segment_events: int,
    progress: Progress | None,
) -> Manifest:
    """The manifest with segments for what the ledger has gained.

    Each segment is read in a transaction of its own, so that no long one keeps the daemon's log from being emptied. The last
    one ends where the ledger ends for it: so the tombstone of every payload that was found erased is sealed as well.
    """
    sealed = list(manifest.segments)
    start, until, head = sealed[-1].last if sealed else 0, -1, 0
    while until < head:
        previous, first = (sealed[-1].hash, sealed[-1].last + 1) if sealed else (None, 1)
        reader.connection.execute("BEGIN")
        try:
            head = reader.head().seq
            until = min(head, first + segment_events - 1)
            if first <= until:
                events = _counted(_events(reader.connection, first - 1, until, previous), start, head, progress)
                anchored = last_anchored(state_dir, until)
                sealed.append(write_segment(directory, events, previous=previous, as_of=head, anchored=anchored))
        finally:
            reader.connection.execute("COMMIT")
    return replace(manifest, segments=tuple(sealed))


def _counted(events: Iterator[SealedEvent], start: int, head: int, progress: Progress | None) -> Iterator[SealedEvent]:
    for event in events:
        yield event
        if progress is not None and (event.seq % 1000 == 0 or event.seq == head):
            progress(event.seq - start, head - start)


def _events(db: sqlite3.Connection, after: int, until: int, previous: str | None) -> Iterator[SealedEvent]:
    """The ledger's events in (after, until], each as sound as `perdure verify` would want it."""
    rows = db.execute(
        "SELECT e.seq, e.at, e.type, e.body, e.payload_hash, e.hash, p.encoding, p.salt, p.data, t.erased FROM events e"
        " LEFT JOIN payloads p USING (seq) LEFT JOIN erasures t ON t.erased = e.seq WHERE e.seq > ? AND e.seq <= ?"
        " ORDER BY e.seq",
        (after, until),
    )
    expected = after + 1
    for seq, at, type_, body, payload_hash, hash_, encoding, salt, data, erased in rows:
        event = SealedEvent(seq, at, type_, body, payload_hash, hash_)
        if data is not None:
            try:
                event = replace(event, payload=chain.unpack(encoding, data), salt=salt)
            except ValueError as error:
                raise _unsound(seq, f"its payload is damaged ({error})") from error
        if seq != expected or not event.follows(previous):
            raise _unsound(seq, "it does not fit the chain")
        if not event.holds_what_was_recorded() if data is not None else (payload_hash is not None and erased is None):
            raise _unsound(seq, "its payload is not the one that was recorded")
        yield event
        previous, expected = hash_, seq + 1


def _unsound(seq: int, cause: str) -> PerdureError:
    return PerdureError("back up", f"event {seq}", cause, "Nothing was sealed. See what `perdure verify` says")


def last_anchored(state_dir: Path, until: int) -> Anchored | None:
    """The last anchored head at or before event `until`, if it is near the anchor's end."""
    try:
        file = (state_dir / ANCHOR_NAME).open("rb")
    except FileNotFoundError:
        return None
    with file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _ANCHOR_BYTES))
        for line in reversed(file.read().splitlines(keepends=True)):
            head = parsed(line)
            if head is not None and head.seq <= until:
                return head
    return None


def _erased_since(reader: LedgerReader, segment: Segment, until: int) -> int:
    """How many payloads of a segment were erased after it was sealed, by tombstones up to event `until`."""
    sql = "SELECT COUNT(*) FROM erasures WHERE erased BETWEEN ? AND ? AND seq > ? AND seq <= ?"
    return int(reader.rows(sql, segment.first, segment.last, segment.as_of, until)[0][0])


def _resealed(reader: LedgerReader, directory: Path, manifest: Manifest) -> Manifest:
    """The manifest with new segments in the place of those that hold payloads whose tombstones are sealed by now."""
    until = manifest.segments[-1].last
    segments = []
    for segment in manifest.segments:
        if not _erased_since(reader, segment, until):
            segments.append(segment)
            continue
        events = _less_erased(reader, directory / segment.file, until)
        fresh = write_segment(directory, events, previous=segment.previous, as_of=until, anchored=segment.anchored)
        if (fresh.first, fresh.last, fresh.hash) != (segment.first, segment.last, segment.hash):
            cause = "it does not hold what the manifest says"
            raise PerdureError("reseal", str(directory / segment.file), cause, "See what `perdure verify DIR` says")
        segments.append(fresh)
    return replace(manifest, segments=tuple(segments))


def _less_erased(reader: LedgerReader, path: Path, until: int) -> Iterator[SealedEvent]:
    tombstone = "SELECT 1 FROM erasures WHERE erased = ? AND seq <= ?"
    try:
        for event in read_segment(path):
            gone = event.payload is not None and reader.rows(tombstone, event.seq, until)
            yield without(event) if gone else event
    except Unreadable as error:
        raise PerdureError(
            "reseal", str(path), f"it is damaged: {error}", "See what `perdure verify DIR` says"
        ) from error
