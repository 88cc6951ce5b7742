"""Perdure as the client of the conformance suite: `conformance_client.py URL`, the scenario in MCP_CONFORMANCE_SCENARIO.

A whole workspace: the server is discovered, its tools are accepted, and a task calls each of them under policy."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path

from tests.daemon.mcp.outside import POLICY, accept_all
from tests.daemon.stage import Stage

ARGUMENTS = {"add_numbers": "{a: 5, b: 3}"}


async def main(url: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        stage = Stage(Path(directory) / "w")
        stage.write(
            "perdure.toml",
            f'timezone = "UTC"\n[memory]\nembedding = "none"\n[mcp.web]\nurl = "{url}"\ntimeout = "20s"\n',
        )
        stage.write("policies/outside.yaml", POLICY)
        await accept_all(stage, "web")
        async with stage.runtime() as runtime:
            tools = [name for name in runtime.tools if name.startswith("web__")]
        if not tools:
            return
        steps = "".join(
            f"  - {{do: {name}, args: {ARGUMENTS.get(name.removeprefix('web__'), '{}')}, on_error: continue}}\n"
            for name in tools
        )
        stage.playbook("work", "\n" + steps, tools=", ".join(tools))
        async with stage.runtime() as runtime:
            ending = await stage.run(runtime, "work")
            print(os.environ.get("MCP_CONFORMANCE_SCENARIO"), ending.status, ending.reason)


asyncio.run(main(sys.argv[1]))
