"""What Perdure adds to a call of an MCP server's tool, against the bare SDK. Run it alone: `python tests/benchmarks/bench_mcp.py`.

Four ways to make the same call of the same server over its pipes: the SDK's own client; Perdure's connection alone; with the
listing before each call that notices a changed schema; and whole steps of a session, where every call is decided, its intent
and outcome are durable (fsync), and its result is recorded. Prints one line each: median and 95th percentile."""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mcp import Client, StdioServerParameters
from tests.daemon.mcp.outside import HOSTILE, Outside
from tests.daemon.stage import open_steps

from perdure.daemon.planners.moves import Proposal
from perdure.daemon.tools.model import Call

CALLS = 300
LINE = {"line": "a line"}


async def measured(name: str, call: Callable[[], Awaitable[object]], calls: int = CALLS) -> float:
    for _ in range(20):
        await call()
    taken = []
    for _ in range(calls):
        begun = time.perf_counter()
        await call()
        taken.append((time.perf_counter() - begun) * 1_000)
    taken.sort()
    median = statistics.median(taken)
    print(f"{name:48} {median:7.2f} ms   p95 {taken[int(calls * 0.95)]:7.2f} ms")
    return median


async def bare(stage: Outside) -> float:
    server = StdioServerParameters(command=sys.executable, args=[str(HOSTILE), str(stage.directory / "odd")])
    async with Client(server) as client:
        return await measured("the SDK alone", lambda: client.call_tool("note", LINE))


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        stage = Outside(Path(directory) / "w")
        await stage.accept()
        stage.note()
        floor = await bare(stage)
        async with stage.runtime() as runtime:
            tool = runtime.tools["odd__note"]
            prepared = tool.prepare(LINE)
            call = Call(action="a", session="s", attempt=1, seconds_max=30.0)
            await tool.run(prepared, call)
            (server,) = runtime.servers._servers.values()
            connection = server._connection
            assert connection is not None
            alone = await measured("Perdure's connection", lambda: connection.call("note", LINE, 30.0, {}))
            listed = await measured("and its tools listed before each call", lambda: tool.run(prepared, call))
            steps = open_steps(runtime, "work", "odd__note")
            count = iter(range(1_000))
            whole = await measured(
                "a whole step: decided, durable, recorded",
                lambda: steps.take(next(count), Proposal(tool="odd__note", args=LINE, confidence=1.0, provenance={})),
            )
        print(f"overhead per call: {alone - floor:+.2f}, {listed - floor:+.2f} and {whole - floor:+.2f} ms")


asyncio.run(main())
