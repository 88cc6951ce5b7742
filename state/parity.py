"""Whether the projections say what the events say: replay the events into a fresh database and compare, row by row."""

from __future__ import annotations

import itertools
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from perdure.state.events import Event
from perdure.state.projections import apply
from perdure.state.refusals import LedgerRefused
from perdure.state.schema import PLACES, PROJECTION_TABLES, PROJECTIONS, TRUTH, statements

PAGE_ROWS: Final = 500
INDEXES_ASKED: Final = (
    "actions_session",
    "actions_elsewhere",
    "slots_due",
)  # what events are checked with; the others are for readers
_SORTED: Final[tuple[type | tuple[type, ...], ...]] = (type(None), (int, float), str, bytes)  # as SQLite does
DIFFERENCES_SHOWN_MAX: Final = 5  # per table; one cause usually shows in many rows
VALUE_SHOWN_MAX: Final = 60  # characters


@dataclass(frozen=True, slots=True)
class Difference:
    """One row that differs. `stored` or `replayed` is None where that side has no such row."""

    table: str
    key: tuple[Any, ...]
    columns: tuple[str, ...]
    stored: tuple[Any, ...] | None
    replayed: tuple[Any, ...] | None

    def __str__(self) -> str:
        key = "/".join(str(part) for part in self.key)
        if self.stored is None:
            return f"{self.table} {key} is missing, which the events lead to"
        if self.replayed is None:
            return f"{self.table} {key} has no event behind it"
        values = zip(self.columns, self.stored, self.replayed, strict=True)
        differ = [
            f"{name} is {_short(mine)} and should be {_short(theirs)}"
            for name, mine, theirs in values
            if mine != theirs
        ]
        return f"{self.table} {key}: {'; '.join(differ)}"


def _short(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= VALUE_SHOWN_MAX else text[: VALUE_SHOWN_MAX - 1] + "…"


class Replay:
    """A fresh set of projections in a temporary file (constant memory), fed event by event."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="perdure-verify-")
        self.connection = sqlite3.connect(Path(self._directory.name) / "replay.db", isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = OFF")  # thrown away at the end: no durability, no rollback
        self.connection.execute("PRAGMA synchronous = OFF")
        self.connection.execute("PRAGMA cache_size = -32768")
        for statement in statements(PROJECTIONS):
            if not statement.lstrip().startswith("CREATE INDEX") or any(
                f" {name} " in statement for name in INDEXES_ASKED
            ):
                self.connection.execute(statement)
        self.connection.execute("BEGIN")
        self._cursor = self.connection.cursor()

    def feed(self, event: Event) -> str | None:
        """Apply one event; returns why it could never have been written here, or None."""
        try:
            apply(self._cursor, event)
        except LedgerRefused as refused:
            return f"{refused.object}: {refused.cause}"
        except (KeyError, TypeError, sqlite3.IntegrityError) as error:
            return f"its body does not fit its type ({type(error).__name__}: {error})"
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()
        self._directory.cleanup()


def differences(stored: sqlite3.Connection, replayed: sqlite3.Connection) -> Iterator[Difference]:
    """Every difference between two sets of projections, table by table in key order, at most a few per table."""
    for table in PROJECTION_TABLES:
        try:
            yield from itertools.islice(_table_differences(stored, replayed, table), DIFFERENCES_SHOWN_MAX)
        except sqlite3.OperationalError as error:
            yield Difference(table, (str(error),), (), None, ())


def schema_differences(stored: sqlite3.Connection) -> list[str]:
    """Tables, indexes and triggers that are not as Perdure made them (a dropped trigger lets events be edited)."""
    expected, found = _objects_as_made(), _objects(stored)
    missing = [f"{kind} {name} is missing" for kind, name in expected.keys() - found.keys()]
    added = [f"{kind} {name} was added" for kind, name in found.keys() - expected.keys() if kind == "trigger"]
    changed = [
        f"{kind} {name} was changed"
        for kind, name in expected.keys() & found.keys()
        if expected[kind, name] != found[kind, name]
    ]
    return sorted(missing + added + changed)


@cache
def _objects_as_made() -> Mapping[tuple[str, str], str]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        for statement in statements(TRUTH + PLACES + PROJECTIONS):
            fresh.execute(statement)
        return _objects(fresh)


def _objects(db: sqlite3.Connection) -> dict[tuple[str, str], str]:
    rows = db.execute(
        "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    )
    return {(kind, name): " ".join(sql.split()) for kind, name, sql in rows}


def _table_differences(stored: sqlite3.Connection, replayed: sqlite3.Connection, table: str) -> Iterator[Difference]:
    info = replayed.execute(f'PRAGMA table_info("{table}")').fetchall()
    keys = [index for _, index in sorted((column[5], index) for index, column in enumerate(info) if column[5])]
    names = tuple(column[1] for column in info)
    columns = ", ".join(f'"{name}"' for name in names)
    order = ", ".join(f'"{info[index][1]}"' for index in keys)
    sql = f'SELECT {columns} FROM "{table}" ORDER BY {order}'  # noqa: S608 - names come from our own schema
    left, right = _first_difference(stored.execute(sql), replayed.execute(sql))

    def key(row: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(row[index] for index in keys)

    mine, theirs = next(left, None), next(right, None)
    while mine is not None or theirs is not None:
        if mine is None or (theirs is not None and _place(key(theirs)) < _place(key(mine))):
            assert theirs is not None
            yield Difference(table, key(theirs), names, None, theirs)
            theirs = next(right, None)
        elif theirs is None or _place(key(mine)) < _place(key(theirs)):
            yield Difference(table, key(mine), names, mine, None)
            mine = next(left, None)
        else:
            if mine != theirs:
                yield Difference(table, key(mine), names, mine, theirs)
            mine, theirs = next(left, None), next(right, None)


def _place(key: tuple[Any, ...]) -> list[tuple[int, Any]]:
    """Where SQLite sorts a key. A damaged page puts anything in it."""
    return [
        (next(place for place, kind in enumerate(_SORTED) if isinstance(part, kind)), 0 if part is None else part)
        for part in key
    ]


def _first_difference(
    left: sqlite3.Cursor, right: sqlite3.Cursor
) -> tuple[Iterator[tuple[Any, ...]], Iterator[tuple[Any, ...]]]:
    """The rows of both from the first pages on that are not the same."""
    while (mine := left.fetchmany(PAGE_ROWS)) == (theirs := right.fetchmany(PAGE_ROWS)) and mine:
        pass
    return itertools.chain(mine, left), itertools.chain(theirs, right)
