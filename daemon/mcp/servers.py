"""All servers of a workspace: their tools as Perdure's own, discovery, and an end with the daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

import structlog

from perdure.errors import PerdureError
from perdure.state import projections

if TYPE_CHECKING:
    from perdure.daemon.clock import Clock
    from perdure.daemon.config import Config
    from perdure.daemon.mcp.server import Server
    from perdure.daemon.tools.model import Tool
    from perdure.daemon.tools.roots import Roots
    from perdure.state.ledger import Ledger

DISCOVERY_SECONDS = 60.0
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Discovery:
    """How asking a server for its tools went."""

    server: str
    tools: int
    refused: dict[str, str]
    error: str | None


class Servers:
    """The servers that perdure.toml names. `changed` is set when the ledger gained a change of any tool."""

    def __init__(self, config: Config, ledger: Ledger, clock: Clock) -> None:
        self.changed = asyncio.Event()
        self._config, self._ledger = config, ledger
        self._servers: dict[str, Server] = {}
        if not config.mcp:  # the SDK takes half a second to import
            return
        from perdure.daemon.mcp.server import Server

        self._servers = {
            name: Server(name, settings, config, ledger, clock, self.changed.set)
            for name, settings in config.mcp.items()
        }

    def tools(self, roots: Roots) -> list[Tool]:
        """Every tool that the ledger knows of them, as accepted. Raises Problems where settings do not fit."""
        if not self._servers:
            return []
        from perdure.daemon.mcp.catalog import known_tools
        from perdure.daemon.mcp.tool import McpTool

        known = known_tools(self._config, self._ledger.reader)
        return [McpTool(tool, self._servers[tool.server], self._ledger.reader, roots) for tool in known.values()]

    def waiting(self) -> dict[str, str]:
        """Tools that differ from what a person accepted: name to the hash of what the server lists now."""
        reader, config = self._ledger.reader, self._config
        rows = [row for server in config.mcp for row in projections.outside_tools(reader, server)]
        return {row.name: row.listed_hash or "" for row in rows if row.accepted_hash not in (None, row.listed_hash)}

    async def discover(self, names: Sequence[str] = ()) -> list[Discovery]:
        """Ask the named servers (or all) what tools they have; the ledger keeps what differs. Never raises for a server."""
        asked = [self._named(name) for name in names] or list(self._servers.values())
        return await asyncio.gather(*(self._discover(server) for server in asked))

    async def close(self) -> None:
        """End them all."""
        await asyncio.gather(*(server.close() for server in self._servers.values()))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _discover(self, server: Server) -> Discovery:
        try:
            listing = await server.list_now(min(DISCOVERY_SECONDS, server.settings.start_timeout + 10.0))
        except PerdureError as error:
            log.warning("an MCP server does not answer", server=server.name, reason=error.cause)
            return Discovery(server.name, 0, {}, str(error))
        return Discovery(server.name, len(listing.tools), dict(listing.refused), None)

    def _named(self, name: str) -> Server:
        server = self._servers.get(name)
        if server is None:
            known = ", ".join(sorted(self._servers)) or "none"
            hint = f"In force: {known}. A changed perdure.toml needs a restart of the daemon"
            raise PerdureError("ask", f"the MCP server {name}", "there is no such server in force", hint)
        return server
