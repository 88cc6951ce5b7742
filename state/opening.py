"""Opening a ledger file: what is no sound ledger is refused with the reason and the command that mends it, never re-created."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeAlias

from perdure.errors import PerdureError
from perdure.state import chain
from perdure.state.anchor import Anchored, last_anchor
from perdure.state.events import Event
from perdure.state.projections import rebuild
from perdure.state.reading import LedgerReader, read_only_uri
from perdure.state.refusals import LedgerRefused
from perdure.state.schema import APPLICATION_ID, PROJECTION_TABLES, SCHEMA_VERSION, own_triggers

_MAGIC: Final = b"SQLite format 3\0"
_HEADER_BYTES: Final = 100
_TAIL_EVENTS: Final = 200  # checked at every open; `perdure verify` checks them all
_BUSY_SECONDS: Final = 5.0

# What reading a damaged file raises; sqlite3 says of some text only that it is no UTF-8.
DAMAGE: Final = (sqlite3.DatabaseError, UnicodeDecodeError)
OLDER_HINT: Final = "Start the daemon with this version, or run `perdure ledger rebuild`: the events stay as they are"
RESTORE_HINT: Final = "Put a backup in its place with `perdure restore FILE`; the damaged file is kept beside it"

Progress: TypeAlias = Callable[[int, int], None]  # told (done, total) now and then, in events
_EVENTS_BETWEEN: Final = 1_000  # calls of it

_log = logging.getLogger(__name__)


def connect_to_write(
    path: Path, *, check_projections: bool = True, progress: Progress | None = None
) -> sqlite3.Connection:
    """The one connection that writes and checkpoints (WAL, synchronous=FULL). Projections of an older Perdure are made anew
    from the events, in one transaction, of which `progress` is told. Raises PerdureError."""
    check_file(path)
    try:
        connection = sqlite3.connect(
            f"file:{read_only_uri(path)[5:].split('?')[0]}?mode=rw",
            uri=True, isolation_level=None, timeout=_BUSY_SECONDS, cached_statements=512,
        )  # fmt: skip
        try:
            check_schema(connection, path)
            set_pragmas(connection)
            check_tail(connection, path)
            if check_projections and is_older(connection):
                _log.warning("%s is of an older Perdure: its tables are made anew from the events", path)
                rebuild_from_events(connection, path, progress)
            if check_projections:
                check_projection_tables(connection, path)
        except BaseException:
            connection.close()
            raise
    except DAMAGE as error:
        raise damaged(path, error) from error
    return connection


def connect_to_read(path: Path) -> sqlite3.Connection:
    """A connection that cannot write, also on a read-only file system. Raises PerdureError."""
    check_file(path)
    try:
        connection = sqlite3.connect(read_only_uri(path), uri=True, isolation_level=None, timeout=_BUSY_SECONDS)
        try:
            check_schema(connection, path)
        except sqlite3.OperationalError:
            connection.close()
            # A WAL database in a directory where its -shm file cannot be made; without a -wal file nothing can be missed.
            if _wal(path).exists() and _wal(path).stat().st_size:
                raise
            connection = sqlite3.connect(read_only_uri(path, immutable=True), uri=True, isolation_level=None)
            check_schema(connection, path)
        except BaseException:
            connection.close()
            raise
    except DAMAGE as error:
        raise damaged(path, error) from error
    return connection


def set_pragmas(connection: sqlite3.Connection) -> None:
    """Durability first: WAL with FULL loses nothing that was acknowledged, at one fsync a commit (never NORMAL)."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA secure_delete = ON")  # an erased payload leaves no bytes behind in the file
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA journal_size_limit = 67108864")


def check_file(path: Path) -> None:
    """Refuse what is missing, empty, foreign or cut short, before SQLite touches it."""
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
        size = path.stat().st_size
    except FileNotFoundError:
        raise missing(path) from None
    except OSError as error:
        raise PerdureError(
            "open", str(path), error.strerror or str(error), "Check its permissions: `perdure doctor`"
        ) from error
    if size == 0:
        raise PerdureError("open", str(path), "the file is empty: it was cut off", RESTORE_HINT)
    if not header.startswith(_MAGIC[: len(header)]):
        raise PerdureError("open", str(path), "it is not a SQLite file, so no ledger", RESTORE_HINT)
    if len(header) < _HEADER_BYTES:
        raise PerdureError("open", str(path), f"the file is truncated to {size} bytes", RESTORE_HINT)
    application, page = int.from_bytes(header[68:72], "big"), int.from_bytes(header[16:18], "big")
    if application != APPLICATION_ID:
        raise PerdureError("open", str(path), "it is a SQLite file of another program, not a ledger", RESTORE_HINT)
    expected = int.from_bytes(header[28:32], "big") * (65536 if page == 1 else page)
    wal = _wal(path)
    if size < expected and not (wal.exists() and wal.stat().st_size):  # with a WAL, pages may still be on their way
        raise PerdureError(
            "open", str(path), f"the file is truncated: {size:,} of {expected:,} bytes are left", RESTORE_HINT
        )


def check_schema(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a ledger of a newer Perdure. Raises one of DAMAGE where the file is corrupt."""
    version = _schema_of(connection)
    if version > SCHEMA_VERSION:
        raise PerdureError(
            "open", str(path), f"it has schema {version} and this Perdure knows up to {SCHEMA_VERSION}",
            "It was written by a newer version: upgrade with `pip install -U perdure`",
        )  # fmt: skip
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not {"events", "payloads", "ownership"} <= tables:
        raise PerdureError("open", str(path), "its tables of events are gone", RESTORE_HINT)


def is_older(connection: sqlite3.Connection) -> bool:
    """Whether the tables are those of an older Perdure. Those of the events never change, so the others can be made anew."""
    return _schema_of(connection) < SCHEMA_VERSION


def older_in_words(connection: sqlite3.Connection) -> str:
    """What is the matter with the tables of an older Perdure."""
    return f"its tables have schema {_schema_of(connection)}, an older Perdure's; this one's is {SCHEMA_VERSION}"


def refuse_older(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse to read projections as an older Perdure made them."""
    if is_older(connection):
        raise PerdureError("read", str(path), older_in_words(connection), OLDER_HINT)


def _schema_of(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def rebuild_from_events(connection: sqlite3.Connection, path: Path, progress: Progress | None = None) -> int:
    """Make all projections anew from the events, in one transaction; returns how many events were replayed. Raises
    PerdureError where the events are not sound, one of DAMAGE where the file is corrupt; the transaction is then still open."""
    reader = LedgerReader(connection)
    total, done = reader.head().seq, 0

    def counted() -> Iterator[Event]:
        nonlocal done
        for event in reader.events():
            yield event
            done += 1
            if progress is not None and (done % _EVENTS_BETWEEN == 0 or done == total):
                progress(done, total)

    connection.execute("BEGIN IMMEDIATE")
    try:
        rebuild(connection, counted())
    except LedgerRefused as error:
        raise PerdureError(
            "make the tables anew in", str(path), f"{error.object}: {error.cause}",
            "The events are not sound: see what `perdure verify` says",
        ) from error  # fmt: skip
    connection.execute("COMMIT")
    return done


def check_projection_tables(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse to go on without the tables that invariants are checked against."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    missing = sorted({"places", *PROJECTION_TABLES} - tables)
    if missing or connection.execute("SELECT COUNT(*) FROM ledger").fetchone()[0] == 0:
        what = f"its tables {', '.join(missing)} are gone" if missing else "its projections are empty"
        raise PerdureError("open", str(path), what, "Make them anew from the events: `perdure ledger rebuild`")
    found = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")}
    if differ := sorted(found ^ own_triggers().keys()):
        what = f"the triggers that keep its events from being changed were taken out, or others put in: {', '.join(differ)}"
        hint = (
            "See that `perdure verify` finds the events sound; then `perdure ledger rebuild` makes the triggers again"
        )
        raise PerdureError("open", str(path), what, hint)


def check_tail(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse to go on from a tail that does not verify, or that is older than the anchor knows."""
    reader = LedgerReader(connection)
    head = reader.head()
    if head.seq == 0:
        raise PerdureError("open", str(path), "it holds no event, not even its first", RESTORE_HINT)
    prev: str | None = None
    for seq, at, type_, body, payload_hash, hash_ in reversed(
        reader.rows(
            "SELECT seq, at, type, body, payload_hash, hash FROM events ORDER BY seq DESC LIMIT ?", _TAIL_EVENTS
        )
    ):
        if (prev is not None or seq == 1) and chain.link(seq, at, type_, body, payload_hash, prev) != hash_:
            raise PerdureError(
                "open", str(path), f"event {seq} does not fit the chain: it was changed or is damaged",
                f"See what `perdure verify` says. {RESTORE_HINT}",
            )  # fmt: skip
        prev = hash_
    anchor = last_anchor(path.parent)
    if anchor is None:
        return
    found = reader.rows("SELECT hash FROM events WHERE seq = ?", anchor.seq)
    if (not found or found[0][0] != anchor.hash) and not _restored_since(reader, anchor):
        cause = (
            f"it ends at event {head.seq}, but the anchor knows event {anchor.seq}: its tail was deleted or an older file put here"
            if not found
            else f"event {anchor.seq} is not the one that was anchored: the file was replaced or rebuilt"
        )
        raise PerdureError(
            "open", str(path), cause,
            "See what `perdure verify` says; `perdure restore FILE` accepts a file on purpose, as a new epoch",
        )  # fmt: skip


def _restored_since(reader: LedgerReader, anchor: Anchored) -> bool:
    """Whether the ledger says that a restore gave this anchored event up (and a crash kept the new epoch from the anchor)."""
    try:
        openings = dict(reader.rows("SELECT epoch, seq FROM ledger ORDER BY epoch"))
    except sqlite3.OperationalError:
        return False
    first = next((seq for epoch, seq in openings.items() if epoch > anchor.epoch), None)
    # An epoch that the ledger never had is a branch that a restore gave up whole.
    return first is not None and (anchor.seq >= first or anchor.epoch not in openings)


def damaged(path: Path, error: Exception) -> PerdureError:
    """What SQLite said of a file that it cannot read."""
    text = str(error)
    if "readonly" in text or "unable to open" in text or "locked" in text:
        return PerdureError("open", str(path), text, "Check permissions and who else uses it: `perdure doctor`")
    if "is full" in text or "I/O error" in text:  # the disk's fault: a restore would put away a ledger that is sound
        hint = "Free space there, or mend the disk (`perdure doctor`, `dmesg`); the ledger is left as it is"
        return PerdureError("open", str(path), text, hint)
    return PerdureError("open", str(path), f"the file is corrupt ({text})", RESTORE_HINT)


def missing(path: Path) -> PerdureError:
    """What to say where there is no such file: whether there has been one, the anchor knows."""
    if last_anchor(path.parent) is not None:
        return PerdureError("open", str(path), "the file is gone, but its anchor is there", RESTORE_HINT)
    return PerdureError(
        "open", str(path), "there is no such file", "Make a workspace with `perdure init DIR` and start `perdure run`"
    )


def _wal(path: Path) -> Path:
    return path.with_name(path.name + "-wal")
