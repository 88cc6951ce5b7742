"""The same work in each system: four steps, one per effect class, each one call of the tool; begun, and resumed after a crash
as its documentation says. Every program runs in a directory of its own that holds `state/` and `world/`.

`start` and `resume` return how it ended: "done", "asked" (a person must look), "nothing" (to resume) or "stuck". `record`
says, without resuming anything, what is on disk about each step: absent, begun or done.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import TypedDict

STEPS = ("read", "idempotent", "probeable", "once")
NAME = "plan"
SECONDS_MAX = 60


def use(step: str) -> str:
    """Call the tool: what the step does to the world."""
    environment = {"PATH": os.environ["PATH"]}  # without the shim: the tool is not what is under test
    ran = subprocess.run(
        ["/bin/sh", "world/target.sh", step], env=environment, check=True, capture_output=True, text=True
    )
    return ran.stdout.strip()


class Durabl:
    """durabl as it comes (synchronous=NORMAL): what may be repeated is IDEMPOTENT, the rest AT_MOST_ONCE."""

    resumes = "Runtime.resume_all() at start"
    synchronous = "NORMAL"

    def __init__(self) -> None:
        from durabl import Runtime, Tool, ToolCall, ToolMode, workflow
        from durabl.events import COMPLETED, DEAD_LETTERED
        from durabl.store import Store

        modes = {"read": ToolMode.IDEMPOTENT, "idempotent": ToolMode.IDEMPOTENT}

        @workflow
        def plan(ctx):
            for step in STEPS:
                yield ToolCall(step, {"step": step})

        self.tools = [Tool(name=step, fn=use, mode=modes.get(step, ToolMode.AT_MOST_ONCE)) for step in STEPS]
        self.runtime, self.store, self.plan = Runtime, Store, plan
        self.endings = {COMPLETED: "done", DEAD_LETTERED: "asked"}

    def prepare(self) -> None:
        self._open().close()

    def start(self) -> str:
        runtime = self._open()
        return self._ended(runtime.run(self.plan, {}, run_id=NAME).status)

    def resume(self) -> str:
        runtime = self._open()
        if runtime.store.get_run(NAME) is None:
            return "nothing"
        runtime.resume_all()
        return self._ended(runtime.state(NAME).status)

    def record(self) -> dict[str, str]:
        store = self.store("state/durabl.db", read_only=True)
        found: dict[str, str] = {}
        names: dict[int, str] = {}
        for event in store.events(NAME):
            if event.kind == "TOOL_DISPATCHED":
                name = names[event.payload["step"]] = event.payload["tool"]
                found[name] = "begun"
            elif event.kind == "STEP_COMPLETED":
                found[names[event.payload["step"]]] = "done"
        return found

    def _open(self):
        return self.runtime(db="state/durabl.db", tools=self.tools, workflows=[self.plan], synchronous=self.synchronous)

    def _ended(self, status: str) -> str:
        return self.endings.get(status, "stuck")


class DurablFull(Durabl):
    """durabl with synchronous=FULL."""

    synchronous = "FULL"


class Dbos:
    """DBOS on SQLite: each tool call a step of one workflow."""

    resumes = "DBOS.launch() takes pending workflows up again"

    def __init__(self) -> None:
        from dbos import DBOS, SetWorkflowID

        @DBOS.step()
        def step(name: str) -> str:
            return use(name)

        @DBOS.workflow()
        def plan() -> str:
            for name in STEPS:
                step(name)
            return "done"

        self.dbos, self.plan, self.workflow_id = DBOS, plan, SetWorkflowID

    def prepare(self) -> None:
        self._launch()
        self.dbos.destroy()

    def start(self) -> str:
        self._launch()
        with self.workflow_id(NAME):
            return self.plan()

    def resume(self) -> str:
        self._launch()
        if self.dbos.get_workflow_status(NAME) is None:
            return "nothing"
        return self.dbos.retrieve_workflow(NAME).get_result()

    def record(self) -> dict[str, str]:
        from dbos import DBOSClient

        client = DBOSClient(system_database_url="sqlite:///state/dbos.sqlite")
        return dict.fromkeys(
            STEPS[: len(client.list_workflow_steps(NAME))], "done"
        )  # a step is written when it is done

    def _launch(self) -> None:
        config = {
            "name": "peers",
            "system_database_url": "sqlite:///state/dbos.sqlite",
            "enable_otlp": False,
            "log_level": "ERROR",
            "application_version": "1",
        }
        self.dbos(config=config)
        self.dbos.launch()


class Channels(TypedDict):
    done: list[str]


class LangGraph:
    """LangGraph with the SqliteSaver: each tool call a node of a chain."""

    resumes = "invoke(None, config) with the same thread_id"
    durability = "sync"

    def __init__(self) -> None:
        from langgraph.checkpoint.sqlite import SqliteSaver
        from langgraph.graph import END, START, StateGraph

        def node(name: str):
            def run(state: Channels) -> Channels:
                use(name)
                return {"done": [*state["done"], name]}

            return run

        graph = StateGraph(Channels)
        for name in STEPS:
            graph.add_node(name, node(name))
        for one, next_ in zip((START, *STEPS), (*STEPS, END), strict=True):
            graph.add_edge(one, next_)
        self.graph, self.saver = graph, SqliteSaver
        self.config = {"configurable": {"thread_id": NAME}}

    def prepare(self) -> None:
        with self.saver.from_conn_string("state/langgraph.db") as saver:
            saver.setup()

    def start(self) -> str:
        return self._run({"done": []})

    def resume(self) -> str:
        with self.saver.from_conn_string("state/langgraph.db") as saver:
            state = self.graph.compile(checkpointer=saver).get_state(self.config)
        if not state.config.get("configurable", {}).get("checkpoint_id"):
            return "nothing"
        if state.values.get("done") == list(STEPS):
            return "done"
        return self._run(None)

    def record(self) -> dict[str, str]:
        with self.saver.from_conn_string("state/langgraph.db") as saver:
            state = self.graph.compile(checkpointer=saver).get_state(self.config)
        done = list(state.values.get("done", [])) if state.values else []
        done += [
            task.name for task in state.tasks if task.result is not None
        ]  # a write of a step that is not yet sealed
        return dict.fromkeys(done, "done")

    def _run(self, given: Channels | None) -> str:
        with self.saver.from_conn_string("state/langgraph.db") as saver:
            graph = self.graph.compile(checkpointer=saver)
            result = graph.invoke(given, self.config, durability=self.durability)
        return "done" if result["done"] == list(STEPS) else "stuck"


class LangGraphAsync(LangGraph):
    """The default of LangGraph: checkpoints are written while the next step runs."""

    durability = "async"


class LangGraphExit(LangGraph):
    """Checkpoints only when the graph ends."""

    durability = "exit"


class Perdure:
    """Perdure's own command line on a workspace with one operator tool per effect class."""

    resumes = "perdure run"

    def __init__(self) -> None:
        import perdure.daemon.cli.app
        import perdure.daemon.cli.sessions
        import perdure.daemon.planners.playbook
        import perdure.daemon.service
        from perdure.memory import tokens

        tokens.count("what takes its time to load is loaded once, before the forks")
        self.command = perdure.daemon.cli.app.perdure.main

    def prepare(self) -> None:
        tools = "".join(
            f'[tools.{step}]\ncommand = ["/bin/sh", "world/target.sh", "{step}"]\neffect = "{step}"\nwrite = ["world"]\n'
            + ('probe = {command = ["grep", "-qx", "effect probeable", "world/log"], happened = "exit == 0"}\n')
            * (step == "probeable")
            for step in STEPS
        )
        Path("perdure.toml").write_text('timezone = "UTC"\n[memory]\nembedding = "none"\n' + tools)
        Path("policies").mkdir()
        Path("policies/all.yaml").write_text(
            f"version: 1\nrules:\n  - {{name: all, tools: [{', '.join(STEPS)}], decide: auto}}\n"
        )
        Path("tasks").mkdir()
        Path(f"tasks/{NAME}.md").write_text(
            f"---\nname: {NAME}\nplanner: playbook\nbounds: {{steps: 8, minutes: 5}}\n---\nsteps:\n"
            + "".join(f"  - {{do: {step}}}\n" for step in STEPS)
            + "\nUses each tool once.\n"
        )
        from perdure.daemon.config import load_config
        from perdure.daemon.opening import own_ledger

        with own_ledger(load_config(Path.cwd())):
            pass  # now there is one

    def start(self) -> str:
        self._perdure("--json", "session", "run", NAME)
        return self._ended()

    def resume(self) -> str:
        if not self._slots():
            return "nothing"
        self._perdure("run", "--quiet")  # until whoever started it sees it at rest (`rested`) and stops it
        return self._ended()

    def rested(self) -> bool:
        """Whether nothing is left to do but to wait: every slot is closed."""
        slots = self._slots()
        return bool(slots) and all(slot.outcome is not None for slot in slots)

    def record(self) -> dict[str, str]:
        from perdure.state import projections

        with self._reader() as reader:
            states = {row.tool: (row.state, row.status) for row in projections.actions(reader)}
        return {
            tool: "done" if status == "succeeded" else "begun"
            for tool, (state, status) in states.items()
            if state in ("intended", "ended") or status is not None
        }

    def _slots(self):
        from perdure.state import projections

        with self._reader() as reader:
            return projections.slots(reader)

    def _ended(self) -> str:
        from perdure.state import projections

        with self._reader() as reader:
            if projections.escalations(reader, open_only=True):
                return "asked"
            done = {row.tool for row in projections.actions(reader) if row.status == "succeeded"}
        return "done" if done == set(STEPS) else "stuck"

    def _reader(self):
        from perdure.state.reading import LedgerReader

        return LedgerReader.open(Path("state/ledger.db"))

    def _perdure(self, *words: str) -> None:
        with contextlib.suppress(SystemExit):
            self.command(["--workspace", str(Path.cwd()), *words])


PROGRAMS = {
    "perdure": Perdure,
    "durabl": Durabl,
    "durabl-full": DurablFull,
    "dbos": Dbos,
    "langgraph-sync": LangGraph,
    "langgraph-async": LangGraphAsync,
    "langgraph-exit": LangGraphExit,
}
