"""Tools from outside: MCP servers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from perdure.state.events.drafts import Draft


@dataclass(slots=True, kw_only=True, eq=False)
class McpServerStarted(Draft):
    """A connection to a server stands. `identity` is the digest of how perdure.toml says to reach it; `says` is the name and
    version that the server claims."""

    type: ClassVar[str] = "mcp.server-started"
    server: str
    identity: str
    protocol: str
    tools: int
    says: str | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class McpServerEnded(Draft):
    """A connection ended without being asked to, or never came to stand; `failures` in a row decide how long we wait."""

    type: ClassVar[str] = "mcp.server-ended"
    server: str
    reason: str
    failures: int


@dataclass(slots=True, kw_only=True, eq=False)
class McpToolListed(Draft):
    """A server says what a tool is, for the first time or differently from before. The payload is `{"definition": …}`,
    verbatim."""

    type: ClassVar[str] = "mcp.tool-listed"
    server: str
    tool: str
    name: str
    hash: str


@dataclass(slots=True, kw_only=True, eq=False)
class McpToolGone(Draft):
    type: ClassVar[str] = "mcp.tool-gone"
    server: str
    tool: str


@dataclass(slots=True, kw_only=True, eq=False)
class McpToolAccepted(Draft):
    """A person accepts a tool as it was last listed: from now on policies decide about this schema. The payload is
    `{"definition": …}`."""

    type: ClassVar[str] = "mcp.tool-accepted"
    server: str
    tool: str
    hash: str
    uid: int


@dataclass(slots=True, kw_only=True, eq=False)
class McpRefused(Draft):
    """What a server asked of us or offered, and did not get: sampling, elicitation, roots, or a tool that cannot be one. The
    payload is `{"request": …}`, shortened."""

    type: ClassVar[str] = "mcp.refused"
    server: str
    what: str
    reason: str
    count: int = 1
