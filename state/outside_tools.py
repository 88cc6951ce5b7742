"""Tools from MCP servers as the ledger knows them: what a server last said each one is, and what a person accepted it as.

The table holds hashes and places; the definitions themselves are the payloads of the events."""

from __future__ import annotations

from dataclasses import dataclass

from perdure.state.events import Event
from perdure.state.reading import LedgerReader
from perdure.state.refusals import LedgerRefused
from perdure.state.schema import Executor


@dataclass(frozen=True, slots=True)
class OutsideToolRow:
    """One tool of a server. `listed_hash` is None once the server no longer lists it; `changes` counts how often it changed
    since a person last accepted it. `name` is what planners and policies call it."""

    server: str
    tool: str
    name: str
    listed_hash: str | None
    listed_seq: int
    listed_at: int
    changes: int
    accepted_hash: str | None
    accepted_seq: int | None
    accepted_at: int | None
    accepted_uid: int | None


def outside_tools(reader: LedgerReader, server: str | None = None) -> list[OutsideToolRow]:
    """Every tool that a server ever listed, by server and name."""
    where, given = ("", ()) if server is None else (" WHERE server = ?", (server,))
    sql = f"SELECT * FROM outside_tools{where} ORDER BY server, name"  # noqa: S608 - only fixed words are put together
    return [OutsideToolRow(*row) for row in reader.rows(sql, *given)]


def outside_tool(reader: LedgerReader, server: str, tool: str) -> OutsideToolRow | None:
    """One tool, by the name that its server gives it."""
    rows = reader.rows("SELECT * FROM outside_tools WHERE server = ? AND tool = ?", server, tool)
    return OutsideToolRow(*rows[0]) if rows else None


def tool_listed(db: Executor, event: Event) -> None:
    """A server says what a tool is, for the first time or differently from before."""
    body = event.body
    db.execute(
        "INSERT INTO outside_tools VALUES (?, ?, ?, ?, ?, ?, 0, NULL, NULL, NULL, NULL)"
        " ON CONFLICT (server, tool) DO UPDATE SET name = excluded.name, listed_hash = excluded.listed_hash,"
        " listed_seq = excluded.listed_seq, listed_at = excluded.listed_at, changes = changes + 1",
        (body["server"], body["tool"], body["name"], body["hash"], event.seq, event.at),
    )


def tool_gone(db: Executor, event: Event) -> None:
    """A server no longer lists a tool; what was accepted stays on record."""
    body = event.body
    changed = db.execute(
        "UPDATE outside_tools SET listed_hash = NULL, listed_at = ? WHERE server = ? AND tool = ?",
        (event.at, body["server"], body["tool"]),
    )
    if changed.rowcount == 0:
        raise LedgerRefused("no-such-tool", f"the end of {body['server']}'s tool {body['tool']}", "it was never listed")


def tool_accepted(db: Executor, event: Event) -> None:
    """A person accepts a tool as the server last listed it; anything else is refused."""
    body = event.body
    changed = db.execute(
        "UPDATE outside_tools SET accepted_hash = ?, accepted_seq = ?, accepted_at = ?, accepted_uid = ?, changes = 0"
        " WHERE server = ? AND tool = ? AND listed_hash = ?",
        (body["hash"], event.seq, event.at, body["uid"], body["server"], body["tool"], body["hash"]),
    )
    if changed.rowcount == 0:
        about = f"the acceptance of {body['server']}'s tool {body['tool']}"
        raise LedgerRefused("not-listed", about, "the server does not say now that the tool is like this")
