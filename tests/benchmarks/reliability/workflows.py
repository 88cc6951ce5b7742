"""Workflows whose result can be checked, and a planner that is right with probability p a step and otherwise plausibly wrong.

A workflow of n steps puts n values in their places. Each step has one wrong rival, drawn once (the worst case
for voting: all wrong draws agree): a wrong argument, a wrong tool, a skipped step, or the false claim that all is done. In
the correlated mode the wrong draws of a step are wrong together: with probability 1 - p the planner sees only the rival."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from random import Random

from perdure.daemon.planners.moves import Finish, Proposal
from perdure.state.events import JSON

STATED = 0.95  # what the planner says of every proposal, right or wrong
RIVALS = ("wrong argument", "wrong tool", "skipped step", "false claim")
RIVAL_WEIGHTS = (4, 2, 2, 2)
MISS, FALSE_ALARM = 0.05, 0.01  # of the verifier
PROMPT_TOKENS, TOKENS_PER_STEP, ANSWER_TOKENS = 600, 40, 50
DONE = Finish(says="That is all.")


TOOLS = """
[tools.put]
command = ["tools/act", "put", "${args.place}", "${args.value}"]
args = {place = {type = "string"}, value = {type = "integer"}}
effect = "idempotent"
[tools.note]
command = ["tools/act", "note", "${args.place}", "${args.value}"]
args = {place = {type = "string"}, value = {type = "integer"}}
effect = "idempotent"
"""


def wanted(step: int) -> int:
    """What place `step` must hold in the end."""
    return step * step + 7


def place(step: int) -> str:
    return f"p{step:02}"


def _proposal(tool: str, step: int, value: int) -> Proposal:
    args: dict[str, JSON] = {"place": place(step), "value": value}
    return Proposal(tool=tool, args=args, provenance={name: ["model"] for name in args}, confidence=STATED)


@cache
def right(step: int, steps: int) -> Proposal | Finish:
    return DONE if step >= steps else _proposal("put", step, wanted(step))


@cache
def rival(step: int, steps: int, kind: str) -> Proposal | Finish:
    match kind:
        case "wrong argument":
            return _proposal("put", step, wanted(step) + 1)
        case "wrong tool":
            return _proposal("note", step, wanted(step))
        case "skipped step":
            return right(step + 1, steps)
        case _:
            return DONE


def prompt_tokens(done: int) -> int:
    """Tokens of one call after `done` steps."""
    return PROMPT_TOKENS + TOKENS_PER_STEP * done


@dataclass(frozen=True, slots=True)
class Workflow:
    """One workflow: the rival of each step, and in the correlated mode which steps the planner cannot see rightly."""

    number: int
    steps: int
    p: float
    rivals: tuple[str, ...]
    blind: frozenset[int] | None  # None: each draw errs by itself

    @classmethod
    def drawn(cls, number: int, steps: int, p: float, random: Random, *, correlated: bool) -> Workflow:
        rivals = tuple(random.choices(RIVALS, RIVAL_WEIGHTS, k=steps))
        blind = frozenset(step for step in range(steps) if random.random() >= p) if correlated else None
        return cls(number, steps, p, rivals, blind)

    def draw(self, step: int, random: Random) -> Proposal | Finish:
        """What the planner proposes for this step; that all is done it always sees."""
        if step >= self.steps:
            return DONE
        errs = step in self.blind if self.blind is not None else random.random() >= self.p
        return rival(step, self.steps, self.rivals[step]) if errs else right(step, self.steps)

    def position_after(self, step: int, move: Proposal) -> int:
        """The step that the planner believes comes next, after `move` was carried out for `step`."""
        skipped = (
            move.tool == "put" and move.args["place"] == place(step + 1) and move.args["value"] == wanted(step + 1)
        )
        return step + 2 if skipped and step + 1 < self.steps else step + 1

    def is_right(self, places: Mapping[str, int]) -> bool:
        """The oracle: the places themselves, and nothing that Perdure says of them."""
        return all(places.get(place(step)) == wanted(step) for step in range(self.steps))

    def verdict(self, places: Mapping[str, int], seed: int, attempt: int) -> bool:
        """What the verifier says of the places. What it cannot see in a wrong result it does not see the second time either;
        a false alarm is chance."""
        if self.is_right(places):
            return Random(f"{seed} alarm {self.number} {attempt}").random() >= FALSE_ALARM
        return Random(f"{seed} miss {self.number} {sorted(places.items())}").random() < MISS


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the table: which mechanisms are on."""

    name: str
    perdure: bool = True
    postconditions: bool = False
    floor: float = 0.0
    ahead_by: int = 0
    draws_max: int = 25
    retries: int = 0

    def policy(self) -> str:
        """The policy file that switches them on."""
        rules = ["  - {name: work, tools: [put, note], decide: auto}"]
        if self.ahead_by:
            votes = f"{{votes: {{ahead_by: {self.ahead_by}, max: {self.draws_max}}}}}"
            rules.append(f'  - {{name: votes, tools: ["*"], require: {votes}}}')
        if self.floor:
            rules.append(f"  - {{name: floor, tools: [put, note], require: {{session_confidence: {self.floor}}}}}")
        return "version: 1\nrules:\n" + "\n".join(rules) + "\n"


FLOOR = 0.5
ROWS = (
    Row(name="bare loop", perdure=False),
    Row(name="bounds only"),
    Row(name="+ postconditions", postconditions=True),
    Row(name="+ confidence floor", postconditions=True, floor=FLOOR),
    *(Row(name=f"+ voting k={k}", postconditions=True, floor=FLOOR, ahead_by=k) for k in (2, 3, 4, 5)),
    Row(name="all (k=5, 1 retry)", postconditions=True, floor=FLOOR, ahead_by=5, retries=1),
)


@dataclass(slots=True)
class Cell:
    """What became of the workflows of one row, length and p."""

    workflows: int = 0
    proven: int = 0  # Perdure (or the bare loop) calls it done, and it is right
    silent: int = 0  # called done, and it is wrong
    escalations: int = 0  # questions, and failed sessions that a person is told of
    tokens: int = 0  # each draw a call of its own
    shared: int = 0  # the draws that are asked for at once in one call, as with `answers_per_call`
    squares: tuple[int, int] = (0, 0)  # sums of squares of escalations and shared tokens: for their sampling errors

    def add(self, outcome: Outcome) -> None:
        self.workflows += 1
        self.proven += outcome.green and outcome.right
        self.silent += outcome.green and not outcome.right
        self.escalations += outcome.escalations
        self.tokens += outcome.tokens
        self.shared += outcome.shared
        asked, tokens = self.squares
        self.squares = asked + outcome.escalations**2, tokens + outcome.shared**2


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one workflow ended. `green`: nobody is told that anything is amiss."""

    green: bool
    right: bool
    escalations: int
    tokens: int
    shared: int
