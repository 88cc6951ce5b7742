"""A planner for tests of the session loop: it answers what it is told to, and makes reserved calls like a model's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.daemon.stage import CONFIG as BASE

from perdure.daemon.planners.moves import Finish, Move, Proposal, Reply, Request, Usage, View
from perdure.daemon.runtime import Runtime

Answers = Callable[[View], Move]

NOBODY = "http://127.0.0.1:9/v1"


def model_table(base_url: str = NOBODY, name: str = "drawing") -> str:
    """`[model]` of a perdure.toml: a model that costs nothing, asked at `base_url`."""
    return f"""
[model]
name = "{name}"
base_url = "{base_url}"
prices = {{input = 0, output = 0}}
completion_tokens = 200
"""


def config(base_url: str = NOBODY, name: str = "drawing") -> str:
    """A perdure.toml with such a model."""
    return BASE + model_table(base_url, name)


CONFIG = config()
FALLBACK = f"""
[model.fallback]
name = "other"
base_url = "{NOBODY}"
key = "NO_SUCH_KEY"
prices = {{input = 0, output = 0}}
"""
TASK = """---
name: report
planner: model
tools: [list_files, read_file, write_file]
bounds: {steps: 4, context: 4000, tokens: 20000, minutes: 5, cost_usd: 0.5}
---
Write the report.
"""
VOTES = """
version: 1
rules:
  - {name: reading here, tools: [list_files, read_file], decide: auto}
  - {name: writing, tools: [write_file], decide: auto}
  - {name: sure of what is written, tools: [write_file], require: {votes: {ahead_by: 2, max: 7}}}
"""


class DrawingPlanner:
    """`answers` gives the move for each view; `view.draw` tells the draws of a vote apart."""

    name = "model"
    model = "test:drawing"
    factor = 1.0

    def __init__(self, answers: Answers, *, prompt_tokens: int = 100, completion_cap: int = 50) -> None:
        self.answers = answers
        self.prompt_tokens, self.completion_cap = prompt_tokens, completion_cap
        self.views: list[View] = []

    def overhead(self, tools: Sequence[object]) -> int:
        return 0

    def request(self, view: View) -> Request:
        return Request(
            model=self.model,
            prompt_tokens=self.prompt_tokens,
            completion_cap=self.completion_cap,
            usd_max=0.0,
            body={"step": view.step, "draw": view.draw},
        )

    async def propose(self, view: View, request: Request | None, seconds_max: float) -> Reply:
        self.views.append(view)
        move = self.answers(view)
        return Reply(move=move, usage=Usage(input_tokens=self.prompt_tokens, output_tokens=10))


def write(path: str, text: str = "x", *, confidence: float = 0.9, says: str = "") -> Proposal:
    """A proposal to write a file."""
    return Proposal(
        tool="write_file", args={"path": path, "text": text}, provenance={}, confidence=confidence, says=says
    )


def plan(runtime: Runtime, answers: Answers, **settings: int) -> DrawingPlanner:
    """Let `answers` plan every task of the runtime."""
    planner = DrawingPlanner(answers, **settings)
    runtime.plan = lambda task: planner
    return planner


def in_turn(*moves: Move) -> Answers:
    """One ordinary move after the other (a vote's draws repeat the current one), then the end."""

    def answers(view: View) -> Move:
        done = len(view.taken) + (1 if view.rejected else 0)
        return moves[done] if done < len(moves) else Finish(says="that is all")

    return answers
