"""The work of bench_actions in another system, in its environment: `python -m tests.benchmarks.peer_actions SYSTEM DIR SECONDS`.

One durable step after the other, each doing nothing, in runs of ROUND steps that alternate with rounds of the floor. Prints one
row of figures as JSON. DBOS as it comes, LangGraph with `durability="sync"`, durabl with synchronous=FULL.
"""

from __future__ import annotations

import json
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

from .floor import Floor

ROUND = 40
ARGS = {"path": "reports/a.md", "text": "hello " * 20}


class Steps(TypedDict):
    done: int
    result: dict[str, int]


def durabl(directory: Path) -> tuple[str, Callable[[], None]]:
    from durabl import Runtime, Tool, ToolCall, ToolMode, workflow

    @workflow
    def plan(ctx):
        for _ in range(ROUND):
            yield ToolCall("nothing", ARGS)

    nothing = Tool(name="nothing", fn=lambda path, text: {"bytes": 120}, mode=ToolMode.IDEMPOTENT)
    runtime = Runtime(db=str(directory / "durabl.db"), tools=[nothing], workflows=[plan], synchronous="FULL")
    return "durabl (FULL)", lambda: runtime.start(plan, {})


def dbos(directory: Path) -> tuple[str, Callable[[], None]]:
    from dbos import DBOS

    @DBOS.step()
    def nothing(path: str, text: str) -> dict[str, int]:
        return {"bytes": 120}

    @DBOS.workflow()
    def plan() -> None:
        for _ in range(ROUND):
            nothing(**ARGS)

    config = {"name": "peers", "system_database_url": f"sqlite:///{directory}/dbos.sqlite", "log_level": "ERROR"}
    DBOS(config={**config, "enable_otlp": False})
    DBOS.launch()
    return "DBOS (SQLite)", plan


def langgraph(directory: Path) -> tuple[str, Callable[[], None]]:
    from langgraph.checkpoint.sqlite import SqliteSaver
    from langgraph.graph import START, StateGraph

    def nothing(state: Steps) -> Steps:
        return {"done": state["done"] + 1, "result": {"bytes": 120}}

    graph = StateGraph(Steps)
    graph.add_node("nothing", nothing)
    graph.add_edge(START, "nothing")
    graph.add_conditional_edges("nothing", lambda state: "nothing" if state["done"] < ROUND else "__end__")
    connection = sqlite3.connect(directory / "langgraph.db", check_same_thread=False)
    compiled = graph.compile(checkpointer=SqliteSaver(connection))
    threads = iter(range(10**9))

    def plan() -> None:
        config = {"configurable": {"thread_id": str(next(threads))}, "recursion_limit": ROUND + 5}
        compiled.invoke({"done": 0, "result": {}}, config, durability="sync")

    return "LangGraph (SqliteSaver, sync)", plan


def main() -> None:
    system, directory, seconds = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    name, plan = {"durabl": durabl, "dbos": dbos, "langgraph": langgraph}[system](directory)
    floor = Floor(directory)
    plan()
    bare: list[float] = []
    whole: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(ROUND):
            started = time.perf_counter()
            floor.action()
            bare.append((time.perf_counter() - started) * 1e6)
        started = time.perf_counter()
        plan()
        whole.append((time.perf_counter() - started) * 1e6 / ROUND)
    figures = {"us": statistics.median(whole), "floor_us": statistics.median(bare)}
    ratio = figures["us"] / figures["floor_us"]
    print(json.dumps({"what": name, **figures, "ratio": ratio, "per_second": 1e6 / figures["us"]}), flush=True)


main()
