"""The ledger: the append-only, hash-chained record that is durable before anything happens. One connection writes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from perdure.errors import PerdureError
from perdure.state import chain, places
from perdure.state.anchor import Anchored, AnchorWriter, last_anchor
from perdure.state.canonical import canonical_object
from perdure.state.events import JSON, Draft, Event, LedgerOpened
from perdure.state.opening import Progress, connect_to_write, damaged, missing
from perdure.state.projections import apply_all, epoch
from perdure.state.reading import Head, LedgerReader
from perdure.state.refusals import LedgerRefused, LedgerUnwritable
from perdure.state.schema import SCHEMA_VERSION, Executor

if TYPE_CHECKING:
    from perdure.state.signing import Signer

__all__ = ["Head", "Ledger", "LedgerReader", "LedgerRefused", "LedgerUnwritable"]

FREE_TEXT_FIELDS: Final = frozenset(
    {"error", "reason"}
)  # of event bodies; everything else in a body is an id, a word or a number

_log = logging.getLogger(__name__)


class Ledger:
    """The one writer of a ledger file. Every commit is durable (fsynced) before it returns.

    A disk that does not take a commit closes the ledger for writing (LedgerUnwritable from then on): fail-stop, because
    what the file holds is known again only after it has been opened anew.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        *,
        now: Callable[[], int],
        fence: int,
        entropy: Callable[[int], bytes],
        redact: Callable[[JSON], JSON] | None,
        sign: Signer | None = None,
        announce: Callable[[Anchored], None] | None = None,
    ) -> None:
        self.path = path
        self.fence = fence
        self.reader = LedgerReader(connection)
        self.head = self.reader.head()
        self.epoch = epoch(self.reader)
        self._db = connection
        self._cursor = connection.cursor()
        self._now = now
        self._entropy = entropy
        self._redact = redact
        self._sign = sign
        self._announce = announce
        self._unwritable: LedgerUnwritable | None = None
        self._closed = False
        self._waiting: list[tuple[tuple[Draft, ...], asyncio.Future[tuple[Event, ...]]]] = []
        self._subscribers: list[Callable[[tuple[Event, ...]], None]] = []
        self._anchor = AnchorWriter(path.parent)
        anchored = last_anchor(path.parent)
        if anchored is None or (anchored.epoch, anchored.seq) != (self.epoch, self.head.seq):
            self._append_anchor()

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        now: Callable[[], int],
        workspace: str,
        fence: int = 1,
        entropy: Callable[[int], bytes] = os.urandom,
        redact: Callable[[JSON], JSON] | None = None,
    ) -> Ledger:
        """A new ledger with its first event. Refuses (PerdureError) if the file, or the anchor of a lost one, exists."""
        from perdure import __version__
        from perdure.state.migrations import migrate

        if path.exists():
            raise PerdureError("create", str(path), "a ledger is there already", "Open it: nothing is overwritten")
        if last_anchor(path.parent) is not None:
            raise missing(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        unborn = path.with_name(path.name + ".new")  # renamed when whole: a crash leaves no half-made ledger
        try:
            for leftover in path.parent.glob(unborn.name + "*"):
                leftover.unlink()
            os.close(os.open(unborn, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640))
            with contextlib.closing(sqlite3.connect(unborn, isolation_level=None)) as connection:
                # Without a write-ahead log, whose checkpoint could fail unnoticed at closing: one file, whole when renamed.
                connection.execute("PRAGMA synchronous = EXTRA")
                migrate(connection, now())
                first = LedgerOpened(workspace=workspace, epoch=1, schema=SCHEMA_VERSION, version=__version__)
                connection.execute("BEGIN IMMEDIATE")
                _append(connection, [first], 0, None, now(), entropy, redact)
                connection.execute("UPDATE ownership SET fence = ?", (fence,))
                connection.execute("COMMIT")
            unborn.rename(path)
            _sync_directory(path.parent)
        except (sqlite3.Error, OSError) as error:
            raise PerdureError(
                "create", str(path), str(error), "Check disk space and permissions: `perdure doctor`"
            ) from error
        return cls.open(path, now=now, fence=fence, entropy=entropy, redact=redact)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        now: Callable[[], int],
        fence: int,
        entropy: Callable[[int], bytes] = os.urandom,
        redact: Callable[[JSON], JSON] | None = None,
        sign: Signer | None = None,
        announce: Callable[[Anchored], None] | None = None,
        progress: Progress | None = None,
    ) -> Ledger:
        """Open for writing as the owner with this fence (ownership.Owner hands it out). `sign` signs each anchored head;
        `announce` is told of each, to note it elsewhere too; `progress` is told how far an older ledger is brought up to date.

        Raises PerdureError for a truncated, foreign, newer, corrupt or replaced file, with the command that mends it;
        LedgerRefused (rule `stale-fence`) for an owner that has been succeeded.
        """
        connection = connect_to_write(path, progress=progress)
        try:
            connection.execute("BEGIN IMMEDIATE")
            latest = connection.execute("SELECT fence FROM ownership").fetchone()[0]
            if fence < latest:
                raise _stale(fence, latest)
            connection.execute("UPDATE ownership SET fence = ?", (fence,))
            connection.execute("COMMIT")
            return cls(
                connection, path, now=now, fence=fence, entropy=entropy, redact=redact, sign=sign, announce=announce
            )
        except sqlite3.Error as error:
            connection.close()
            raise damaged(path, error) from error
        except OSError as error:
            connection.close()
            raise PerdureError(
                "open", str(path), str(error), "Check disk space and permissions: `perdure doctor`"
            ) from error
        except BaseException:
            connection.close()
            raise

    def commit(self, *drafts: Draft) -> tuple[Event, ...]:
        """Write these events in one durable transaction, all or nothing. Raises LedgerRefused or LedgerUnwritable."""
        (outcome,) = self._transact([drafts])
        if isinstance(outcome, BaseException):
            raise outcome
        self._publish([outcome])
        return outcome

    async def write(self, *drafts: Draft) -> tuple[Event, ...]:
        """The same, but all writes of one tick of the loop share one commit; a refusal of one harms no other.

        What was handed in is written also when the caller is cancelled while it waits.
        """
        self._refuse_when_closed()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[Event, ...]] = loop.create_future()
        self._waiting.append((drafts, future))
        if len(self._waiting) == 1:
            loop.call_soon(self._flush)
        return await future

    @property
    def waiting(self) -> Iterator[Draft]:
        """What has been handed in and is still to be committed, at the end of this tick."""
        return (draft for drafts, _ in self._waiting for draft in drafts)

    def subscribe(self, callback: Callable[[tuple[Event, ...]], None]) -> Callable[[], None]:
        """Call back with the events of each commit once they are durable; returns what ends it."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback) if callback in self._subscribers else None

    def close(self) -> None:
        """Write what waits, sync the anchor and close the file."""
        if self._closed:
            return
        self._flush()
        self._closed = True
        with contextlib.suppress(OSError):
            self._anchor.close()
        with contextlib.suppress(sqlite3.Error):  # a checkpoint that fails here is made up for at the next opening
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        try:
            outcomes = self._transact([drafts for drafts, _ in waiting])
        except Exception as error:  # noqa: BLE001 - nobody may be left waiting
            outcomes = [error] * len(waiting)
        for (_, future), outcome in zip(waiting, outcomes, strict=True):
            if future.done():  # the caller was cancelled
                continue
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
        self._publish([outcome for outcome in outcomes if not isinstance(outcome, BaseException)])

    def _transact(self, groups: Sequence[Sequence[Draft]]) -> list[tuple[Event, ...] | Exception]:
        """Write each group, or leave it out with its exception; one commit for all."""
        self._refuse_when_closed()
        db, at = self._cursor, self._now()
        try:
            # Groups that are refused are rare, and a savepoint for each costs as much as a third of an action: so first
            # all together, and with savepoints only when one of several was refused.
            outcomes, head = self._attempt(groups, at, one_by_one=False)
            if len(groups) > 1 and any(isinstance(outcome, Exception) for outcome in outcomes):
                db.execute("ROLLBACK")
                outcomes, head = self._attempt(groups, at, one_by_one=True)
            if head is self.head:
                db.execute("ROLLBACK")
                return outcomes
            places.extend(db, self.head.seq, head.seq)
            db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._fail(error) from error
        except BaseException:
            self._roll_back()
            raise
        self.head = head
        try:
            self._append_anchor()
        except OSError as error:
            # These events are durable and count; but the next ones would go unanchored, so there are none.
            self._unwritable = LedgerUnwritable("anchor", str(self._anchor.path), str(error), _DISK_HINT)
            _log.critical("%s", self._unwritable)
        return outcomes

    def _attempt(
        self, groups: Sequence[Sequence[Draft]], at: int, *, one_by_one: bool
    ) -> tuple[list[tuple[Event, ...] | Exception], Head]:
        """Begin a transaction and write the groups: all until one is refused, or each that is not, `one_by_one`."""
        db, head = self._cursor, self.head
        outcomes: list[tuple[Event, ...] | Exception] = []
        db.execute("BEGIN IMMEDIATE")
        latest = db.execute("SELECT fence FROM ownership").fetchone()[0]
        if latest != self.fence:
            self._unwritable = LedgerUnwritable(
                "write",
                str(self.path),
                f"a newer owner has taken over (fence {latest}, ours {self.fence})",
                "Stop this process",
            )
            raise _stale(self.fence, latest)
        for drafts in groups:
            if one_by_one:
                db.execute("SAVEPOINT one")
            try:
                for draft in drafts:
                    if (claimed := getattr(draft, "fence", self.fence)) != self.fence:
                        raise _stale(claimed, self.fence)
                events = _append(db, drafts, head.seq, head.hash or None, at, self._entropy, self._redact)
            except sqlite3.IntegrityError as error:
                outcomes.append(LedgerRefused("constraint", "an event", str(error)))
            except sqlite3.Error:
                raise
            except Exception as error:  # noqa: BLE001 - whatever this caller did wrong is this caller's to hear
                outcomes.append(error)
            else:
                outcomes.append(events)
                if events:
                    head = Head(events[-1].seq, events[-1].hash, at)
                if one_by_one:
                    db.execute("RELEASE one")
                continue
            if not one_by_one:
                return outcomes, self.head
            db.execute("ROLLBACK TO one")
            db.execute("RELEASE one")
        return outcomes, head

    def _append_anchor(self) -> None:
        anchored = Anchored(self.epoch, self.head.seq, self.head.hash, self.head.at)
        if self._sign is not None:
            anchored = replace(anchored, signature=self._sign(anchored.signed()))
        self._anchor.append(anchored)
        if self._announce is not None:
            self._announce(anchored)

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise LedgerUnwritable("write", str(self.path), "it has been closed", "Open it again")
        if self._unwritable is not None:
            raise self._unwritable

    def _fail(self, error: sqlite3.Error) -> LedgerUnwritable:
        self._roll_back()
        self._unwritable = LedgerUnwritable("write", str(self.path), str(error), _DISK_HINT)
        return self._unwritable

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _publish(self, groups: Sequence[tuple[Event, ...]]) -> None:
        events = groups[0] if len(groups) == 1 else tuple(event for group in groups for event in group)
        if not events:
            return
        for callback in tuple(self._subscribers):
            try:
                callback(events)
            except Exception:  # noqa: BLE001 - a broken view must not stop what is being viewed
                _log.exception("a subscriber of the ledger failed")


_DISK_HINT: Final = (
    "No action runs until it can be written: free disk space or mend permissions (`perdure doctor`), then restart"
)


def _append(
    db: Executor,
    drafts: Sequence[Draft],
    seq: int,
    previous: str | None,
    at: int,
    entropy: Callable[[int], bytes],
    redact: Callable[[JSON], JSON] | None,
) -> tuple[Event, ...]:
    """Write events after number `seq`, whose hash is `previous`, with their payloads and what follows from them, inside the
    caller's transaction."""
    events, rows, payloads = [], [], []
    for draft in drafts:
        seq += 1
        names, values = draft.covered()
        kind, payload, payload_hash = draft.type, draft.payload, None
        if redact is not None:
            payload = None if payload is None else redact(payload)
            if not FREE_TEXT_FIELDS.isdisjoint(names):
                values = tuple(
                    redact(value) if value is not None and name in FREE_TEXT_FIELDS else value
                    for name, value in zip(names, values, strict=True)
                )
        body, text = canonical_object(names, values)
        if len(text) > chain.BODY_BYTES_MAX:
            raise LedgerRefused(
                "body-too-large",
                f"an event {kind}",
                f"its body has {len(text):,} characters",
                "Put long text in the payload",
            )
        if payload is not None:
            data, salt = chain.payload_bytes(payload), entropy(chain.SALT_BYTES)
            payload_hash = chain.salted_hash(salt, data)
            encoding, packed = chain.pack(data)
            payloads.append((seq, encoding, salt, packed))
        previous = chain.link(seq, at, kind, text, payload_hash, previous)
        have = body.get
        rows.append((seq, at, kind, text, payload_hash, previous, have("session"), have("task"), have("action")))
        events.append(Event(seq, at, kind, body, payload_hash, previous))
    db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
    if payloads:
        db.executemany("INSERT INTO payloads VALUES (?, ?, ?, ?)", payloads)
    apply_all(db, events)
    for event in events:
        if event.type == "payload.erased":
            _erase(db, event.body["erased"])
    return tuple(events)


def _erase(db: Executor, seq: int) -> None:
    """Take payload and salt of an event away; its tombstone is already in the same transaction."""
    about = f"the erasure of the payload of event {seq}"
    row = db.execute("SELECT payload_hash, action FROM events WHERE seq = ?", (seq,)).fetchone()
    if row[0] is None:
        raise LedgerRefused("no-payload", about, "that event has no payload")
    if row[1] is not None:
        busy = db.execute(
            "SELECT a.state FROM actions a LEFT JOIN escalations e ON e.escalation = a.escalation WHERE a.action = ? AND"
            " (a.state IN ('proposed', 'decided', 'intended') OR a.status = 'unknown' OR e.state IN ('open', 'approved'))",
            (row[1],),
        ).fetchone()
        if busy:
            raise LedgerRefused(
                "action-open", about, f"action {row[1]} is still open ({busy[0]})", "Erase it once it has ended"
            )
    db.execute("DELETE FROM payloads WHERE seq = ?", (seq,))


def _stale(fence: int, latest: int) -> LedgerRefused:
    return LedgerRefused(
        "stale-fence", "an event", f"owner {fence} was succeeded by owner {latest}", "Stop this process"
    )


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
