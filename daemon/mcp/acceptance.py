"""Accepting tools: a person sees exactly what a server says a tool is, and that is what policies decide on from then on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from perdure.daemon.mcp.catalog import definition_at, standing_of
from perdure.daemon.mcp.definitions import Definition, NoToolError, claims, spec_of
from perdure.daemon.mcp.settings import McpTool
from perdure.errors import PerdureError
from perdure.state import projections
from perdure.state.events import JSON, McpToolAccepted

if TYPE_CHECKING:
    from perdure.daemon.config import Config
    from perdure.daemon.mcp.servers import Servers
    from perdure.state.ledger import Ledger
    from perdure.state.outside_tools import OutsideToolRow
    from perdure.state.reading import LedgerReader


async def discover(
    config: Config, servers: Servers, reader: LedgerReader, *, names: Sequence[str] = ()
) -> dict[str, JSON]:
    """Ask the servers what tools they have, and say how each tool stands. Raises PerdureError for an unknown server."""
    asked = await servers.discover(names)
    told: list[JSON] = []
    for each in asked:
        refused: dict[str, JSON] = dict(each.refused)
        told.append({"server": each.server, "error": each.error, "refused": refused})
    tools: list[JSON] = [
        describe(config, reader, row) for each in asked for row in projections.outside_tools(reader, each.server)
    ]
    return {"servers": told, "tools": tools}


def describe(config: Config, reader: LedgerReader, row: OutsideToolRow) -> dict[str, JSON]:
    """One tool as a person must see it before accepting it: the server's words, its claims, and what the operator said."""
    shown = definition_at(reader, row.listed_seq, row.listed_hash) or definition_at(
        reader, row.accepted_seq, row.accepted_hash
    )
    settings = config.mcp[row.server].tools.get(row.tool, McpTool()) if row.server in config.mcp else McpTool()
    return {
        **_as_listed(reader, row),
        "effect": settings.effect,
        "trusted": list(settings.trusted) if isinstance(settings.trusted, tuple) else settings.trusted,
        "problem": None if shown is None else _problem(row.server, settings, shown),
    }


def not_accepted(reader: LedgerReader, name: str) -> dict[str, JSON] | None:
    """The tool of that name as its server lists it now, where no person has accepted it so; None for any other."""
    row = next((row for row in projections.outside_tools(reader) if row.name == name), None)
    return None if row is None or standing_of(row) == "accepted" else _as_listed(reader, row)


def _as_listed(reader: LedgerReader, row: OutsideToolRow) -> dict[str, JSON]:
    listed = definition_at(reader, row.listed_seq, row.listed_hash)
    accepted = definition_at(reader, row.accepted_seq, row.accepted_hash)
    shown = listed or accepted
    return {
        "server": row.server,
        "tool": row.tool,
        "name": row.name,
        "standing": standing_of(row),
        "hash": row.listed_hash,
        "definition": None if listed is None else dict(listed.raw),
        "accepted": None if accepted is None else dict(accepted.raw),
        "changes": changes(accepted, listed),
        "claims": {} if shown is None else claims(shown),
    }


def changes(accepted: Definition | None, listed: Definition | None) -> list[JSON]:
    """Where a listed definition differs from the accepted one, as `{"at", "was", "is"}`."""
    if accepted is None or listed is None:
        return []
    found: list[JSON] = []

    def compare(at: str, was: Any, now: Any) -> None:
        if was == now:
            return
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            for key in sorted({*was, *now}):
                compare(f"{at}.{key}" if at else str(key), was.get(key), now.get(key))
        else:
            found.append({"at": at, "was": was, "is": now})

    compare("", accepted.raw, listed.raw)
    return found


def accept(ledger: Ledger, uid: int, *, tools: Mapping[str, Mapping[str, str]]) -> dict[str, JSON]:
    """Accept each tool as the definition with the given hash, all or none. Raises PerdureError where a server lists it
    differently by now: nobody has seen that."""
    drafts, accepted = [], []
    for server, hashes in tools.items():
        rows = {row.tool: row for row in projections.outside_tools(ledger.reader, server)}
        for tool, hash in hashes.items():
            row = rows.get(tool)
            found = definition_at(ledger.reader, row.listed_seq, row.listed_hash) if row is not None else None
            if row is None or found is None or found.hash != hash:
                cause = "there is no such tool" if row is None else "it is not, or no longer, listed as you saw it"
                raise PerdureError(
                    "accept", f"{server}/{tool}", cause, f"See it again: `perdure tools accept {server}`"
                )
            payload: dict[str, JSON] = {"definition": dict(found.raw)}
            drafts.append(McpToolAccepted(server=server, tool=tool, hash=hash, uid=uid, payload=payload))
            accepted.append(row.name)
    if drafts:
        ledger.commit(*drafts)
    return {"accepted": [*accepted]}


def _problem(server: str, settings: McpTool, found: Definition) -> str | None:
    try:
        spec_of(server, settings, found, accepted=True)
    except NoToolError as error:
        return str(error)
    return None
