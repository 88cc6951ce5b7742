"""What the ledger knows of the servers' tools: which policies and planners may name, and as what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from perdure.daemon.layout import CONFIG_NAME, LEDGER
from perdure.daemon.mcp.definitions import Definition, NoToolError, claims, spec_of
from perdure.daemon.mcp.settings import McpTool
from perdure.errors import Problem, Problems
from perdure.state import projections
from perdure.state.events import JSON
from perdure.state.reading import LedgerReader

if TYPE_CHECKING:
    from perdure.daemon.config import Config
    from perdure.daemon.mcp.settings import McpServer
    from perdure.daemon.tools.model import ToolSpec
    from perdure.state.outside_tools import OutsideToolRow

Standing = Literal["accepted", "changed", "new", "gone"]


@dataclass(frozen=True, slots=True)
class OutsideTool:
    """A tool of a server, known from the ledger. `spec` follows the accepted definition, or the listed one where nobody has
    accepted any yet; `basis` is that definition's hash."""

    server: str
    tool: str
    spec: ToolSpec
    basis: str
    settings: McpTool
    standing: Standing
    claims: Mapping[str, JSON]


def standing_of(row: OutsideToolRow) -> Standing:
    """How a tool stands: only an accepted one runs without a person's word."""
    if row.listed_hash is None:
        return "gone"
    if row.accepted_hash is None:
        return "new"
    return "accepted" if row.accepted_hash == row.listed_hash else "changed"


def outside_tools_of(config: Config) -> dict[str, OutsideTool]:
    """The tools of all configured servers, by the names that planners use. Reads the ledger beside a running daemon; without
    one there are none yet. Raises Problems where settings do not fit a tool."""
    path = config.state_dir / LEDGER
    if not config.mcp or not path.exists():
        return {}
    with LedgerReader.open(path, older=True) as reader:
        return known_tools(config, reader)


def known_tools(config: Config, reader: LedgerReader) -> dict[str, OutsideTool]:
    """The same from a reader that is open already."""
    found: dict[str, OutsideTool] = {}
    problems: list[Problem] = []
    for server, settings in config.mcp.items():
        for row in projections.outside_tools(reader, server):
            try:
                tool = _known(reader, server, settings, row)
            except NoToolError as error:
                if row.tool in settings.tools:
                    place = f"mcp.{server}.tools.{row.tool}"
                    problems.append(
                        Problem(CONFIG_NAME, 0, 0, f"{place}: {error}", f"as `perdure tools {row.name}` shows it")
                    )
                continue
            if tool is not None:
                found.setdefault(tool.spec.name, tool)
    if problems:
        raise Problems("load", problems)
    return found


def definition_at(reader: LedgerReader, seq: int | None, hash: str | None) -> Definition | None:
    """The definition that an event holds; None where there is none or it was erased."""
    payload = reader.payload(seq) if seq is not None else None
    raw = payload.get("definition") if isinstance(payload, dict) else None
    if not isinstance(raw, dict) or hash is None:
        return None
    return Definition(str(raw.get("name")), raw, hash)


def _known(reader: LedgerReader, server: str, settings: McpServer, row: OutsideToolRow) -> OutsideTool | None:
    accepted = definition_at(reader, row.accepted_seq, row.accepted_hash)
    basis = accepted or definition_at(reader, row.listed_seq, row.listed_hash)
    own = settings.tools.get(row.tool, McpTool())
    if basis is None or not own.enabled:
        return None
    spec = spec_of(server, own, basis, accepted=accepted is not None)
    standing = standing_of(row) if accepted is not None or row.listed_hash is None else "new"
    return OutsideTool(server, row.tool, spec, basis.hash, own, standing, claims(basis))
