"""The same workflows through real sessions: real ledger, memory, policies, votes, confidence and postconditions; the planner
and what the tools do to the places are this experiment's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import structlog
from tests.daemon.drawing import config
from tests.wrapped_tool import WrappedTool

from perdure.daemon import operations
from perdure.daemon.clock import SystemClock
from perdure.daemon.opening import open_runtime, own_ledger
from perdure.daemon.planners.moves import Finish, Reply, Request, Usage, View
from perdure.daemon.runtime import Runtime
from perdure.daemon.slot_runner import SlotRunner
from perdure.daemon.tools.model import Call, Prepared, Result, ToolSpec
from perdure.daemon.workspace import load_workspace
from perdure.state import projections
from perdure.state.events import JSON

from .in_memory import MODEL, SESSIONS_WARM_UP, TASK
from .workflows import ANSWER_TOKENS, TOOLS, Cell, Outcome, Row, Workflow, prompt_tokens

FRONT = """---
name: workflow
planner: model
tools: [put, note]
while_parked: run
retries: {retries}
bounds: {{steps: {steps}, context: 8000, tokens: 5000000, minutes: 60}}
{postconditions}---
Put every value in its place.
"""
POSTCONDITIONS = "postconditions:\n  - file_contains: {path: verdict.txt, text: well done}\n"


class HastyClock(SystemClock):
    """Nobody waits between two tries."""

    async def sleep(self, seconds: float) -> None:
        del seconds
        await asyncio.sleep(0)


@dataclass
class Scene:
    """The workflow at hand, and its places."""

    directory: Path
    random: Random
    seed: int
    workflow: Workflow | None = None
    places: dict[str, int] = field(default_factory=dict)
    sessions: int = 0
    tokens: int = 0
    shared: int = 0
    charged: int = 0  # shared tokens of all workflows so far

    def begin(self, workflow: Workflow) -> None:
        self.workflow, self.places, self.sessions, self.tokens, self.shared = workflow, {}, 0, 0, 0

    def judge(self) -> None:
        """The verifier looks at the places and leaves its word where the postcondition finds it."""
        assert self.workflow is not None
        well = self.workflow.verdict(self.places, self.seed, self.sessions - 1)
        (self.directory / "verdict.txt").write_text("well done" if well else "something is wrong")


@dataclass(frozen=True)
class PlaceTool(WrappedTool):
    """What it does to the places is the experiment's."""

    scene: Scene

    def prepare(self, args: Mapping[str, JSON]) -> Prepared:
        return replace(self.real.prepare(args), sandboxed=True)

    async def run(self, prepared: Prepared, call: Call) -> Result:
        del call
        if self.spec.name == "put":
            self.scene.places[str(prepared.args["place"])] = int(str(prepared.args["value"]))
        return Result(ok=True, value=None)

    async def probe(self, prepared: Prepared, call: Call) -> bool | None:
        del prepared, call
        return None


class StochasticPlanner:
    """Draws from the workflow at hand; one of these plans one session."""

    name = "model"
    model: str | None = MODEL
    factor = 1.0

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        scene.sessions += 1

    def overhead(self, tools: Sequence[ToolSpec]) -> int:
        del tools
        return 0

    def request(self, view: View) -> Request | None:
        tokens = prompt_tokens(len(view.taken))
        return Request(
            model=MODEL,
            prompt_tokens=tokens,
            completion_cap=ANSWER_TOKENS * view.draws,
            usd_max=0.0,
            body={"step": view.step},
            draws=view.draws,
        )

    async def propose(self, view: View, request: Request | None, seconds_max: float) -> Reply:
        del seconds_max
        scene, step = self._scene, 0
        assert request is not None
        assert scene.workflow is not None
        for taken in view.taken:
            step = scene.workflow.position_after(step, taken.proposal)
        moves = [scene.workflow.draw(step, scene.random) for _ in range(request.draws)]
        if any(isinstance(move, Finish) for move in moves):
            scene.judge()
        answers = ANSWER_TOKENS * request.draws
        scene.tokens += request.prompt_tokens * request.draws + answers
        scene.shared += request.prompt_tokens + answers
        usage = Usage(input_tokens=request.prompt_tokens, output_tokens=answers)
        return Reply(move=moves[0], others=moves[1:], usage=usage)


def furnish(row: Row, steps: int, directory: Path) -> None:
    for name in ("policies", "tasks", "tools"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    (directory / "perdure.toml").write_text(config(name=MODEL) + TOOLS)
    (directory / "tools/act").write_text("#!/bin/sh\nexit 0\n")
    (directory / "tools/act").chmod(0o755)
    (directory / "policies/policy.yaml").write_text(row.policy())
    front = FRONT.format(
        retries=row.retries, steps=steps + 5, postconditions=POSTCONDITIONS if row.postconditions else ""
    )
    (directory / "tasks/workflow.md").write_text(front)


@contextlib.asynccontextmanager
async def opened(directory: Path, scene: Scene) -> AsyncIterator[Runtime]:
    loaded = load_workspace(directory)
    with own_ledger(loaded.config, HastyClock()) as owned:
        async with open_runtime(owned, loaded) as runtime:
            runtime.tools = {
                name: PlaceTool(tool, scene) if name in ("put", "note") else tool
                for name, tool in runtime.tools.items()
            }
            runtime.plan = lambda task: StochasticPlanner(scene)
            yield runtime


async def run(runtime: Runtime, scene: Scene, workflow: Workflow) -> Outcome:
    """One workflow as a manual session with the task's retries. What the circuit breaker stops a person lets go on: the cells in
    memory know of one workflow at a time, and so of no breaker."""
    scene.begin(workflow)
    if projections.paused(runtime.ledger.reader, TASK) is not None:
        operations.resume(runtime.ledger, 0, task=TASK)
    slot = operations.ask_for_session(runtime.ledger, runtime.now(), 0, task=TASK)
    row = projections.slot(runtime.ledger.reader, slot)
    assert row is not None
    ending = await SlotRunner(runtime, stop=lambda reason: None).run_slot(row)
    assert ending is not None
    assert not ending.reason.startswith("defect"), ending.reason
    green = ending.status in ("succeeded", "unverified")
    told = scene.sessions - green
    scene.charged += scene.shared
    right = workflow.is_right(scene.places)
    return Outcome(green=green, right=right, escalations=told, tokens=scene.tokens, shared=scene.shared)


async def _cell(row: Row, steps: int, p: float, workflows: int, seed: int, directory: Path) -> Cell:
    random = Random(f"{seed} sessions {row.name} {steps} {p}")
    scene, result = Scene(directory, random, seed), Cell()
    shutil.rmtree(directory, ignore_errors=True)
    if row.postconditions:
        furnish(replace(row, floor=0.0, retries=0), steps, directory)
        async with opened(directory, scene) as runtime:
            for number in range(SESSIONS_WARM_UP):  # without floor and retries, for the confidence to learn from
                await run(runtime, scene, Workflow.drawn(-number, steps, p, random, correlated=False))
    furnish(row, steps, directory)
    async with opened(directory, scene) as runtime:
        for number in range(workflows):
            result.add(await run(runtime, scene, Workflow.drawn(number, steps, p, random, correlated=False)))
        charged = sum(event.body["charged_tokens"] for event in runtime.ledger.reader.events(types=("model.replied",)))
        assert charged == scene.charged, "the ledger charged other tokens than the planner gave out"
    shutil.rmtree(directory, ignore_errors=True)
    return result


def cell(row: Row, steps: int, p: float, workflows: int, seed: int, directory: Path) -> Cell:
    """The cell through real sessions, after a warm-up."""
    logging.disable(logging.CRITICAL)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    return asyncio.run(_cell(row, steps, p, workflows, seed, directory))
