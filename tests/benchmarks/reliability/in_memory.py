"""The large cells: the session loop's order of things, in memory, around Perdure's own policies, votes, confidence and certainty.

No ledger, no tools, no event loop; what decides is the product's own code: `PolicySet`, `Ballot`, `Calibration`, `Certainty`.
Answers that depend on few numbers are remembered instead of asked for again. `through_sessions.py` runs the same workflows
through real sessions, to show that both agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate, count
from math import comb
from pathlib import Path
from random import Random
from typing import NamedTuple

from perdure.daemon.certainty import Certainty
from perdure.daemon.confidence import Calibration
from perdure.daemon.planners.moves import Finish, Proposal
from perdure.daemon.planners.voting import FINISH, Ballot, Draw, canonical_action
from perdure.daemon.tools.model import Prepared, ToolSpec
from perdure.policies.decisions import PolicySet, unmet_obligations
from perdure.policies.loading import load_policies
from perdure.policies.model import Facts, ProposedAction, ToolSignature
from perdure.state.events import Event

from .workflows import ANSWER_TOKENS, DONE, STATED, Cell, Outcome, Row, Workflow, prompt_tokens, right, rival

_ARGS = {
    "type": "object",
    "properties": {"place": {"type": "string"}, "value": {"type": "integer"}},
    "required": ["place", "value"],
    "additionalProperties": False,
}
SPECS = {
    name: ToolSpec(name=name, description=name, args_schema=_ARGS, effect="idempotent") for name in ("put", "note")
}
MODEL, TASK = "stochastic", "workflow"
WARM_UP = 200  # workflows whose outcomes the confidence is calibrated with before the counted ones
SESSIONS_WARM_UP = 60  # through real sessions


class Held(NamedTuple):
    """How a vote went: whether the right move leads (None: nobody does), by how much, whether that won, how many draws it took,
    and how often draws were asked for after the first."""

    right: bool | None
    margin: int
    won: bool
    draws: int
    calls: int


@dataclass
class Bench:
    """One row's policies in force, and what the calibration knows. `directory` holds the policy file while it is loaded."""

    row: Row
    policies: PolicySet
    calibration: Calibration = field(default_factory=Calibration)
    frozen: bool = False
    numbers: Iterator[int] = field(default_factory=lambda: count(1))
    _draws: dict[int, Draw] = field(default_factory=dict)
    _stands: dict[tuple[int, int], tuple[int, int, bool, bool | None]] = field(default_factory=dict)
    _held: dict[float, tuple[list[Held], list[float]]] = field(default_factory=dict)
    _values: dict[tuple[str, int, int], tuple[float, float]] = field(default_factory=dict)
    _decisions: dict[tuple[str, int, bool], str] = field(default_factory=dict)

    @classmethod
    def of(cls, row: Row, directory: Path) -> Bench:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "policy.yaml").write_text(row.policy())
        signatures = {
            name: ToolSignature(name=name, effect=spec.effect, args_schema=spec.args_schema, paths=dict(spec.paths))
            for name, spec in SPECS.items()
        }
        return cls(row, load_policies([directory], signatures, workspace=Path("/somewhere")))

    def drawn(self, move: Proposal | Finish) -> Draw:
        """The move as a vote; its canonical action is worked out once."""
        found = self._draws.get(id(move))
        if found is None:
            if isinstance(move, Finish):
                found = Draw(FINISH, move)
            else:
                prepared = Prepared(spec=SPECS[move.tool], args=move.args, digest="")
                found = Draw(canonical_action(prepared), move)
            self._draws[id(move)] = found
        return found

    def stands(self, same: int, against: int) -> tuple[int, int, bool, bool | None]:
        """Draws still needed, margin, whether the leader has won, and whether that is the first candidate: as a `Ballot` with
        so many draws of each says, which by its own properties does not depend on their order."""
        found = self._stands.get((same, against))
        if found is None:
            ballot = Ballot(self.row.ahead_by, self.row.draws_max)
            for action, draws in (("same", same), ("against", against)):
                for _ in range(draws):
                    ballot.add(Draw(action, DONE))
            now = ballot.standing()
            leads = None if now.leader is None else now.leader == "same"
            found = ballot.draws_needed(), now.margin, now.verdict == "won", leads
            self._stands[same, against] = found
        return found

    def held(self, p: float, random: Random) -> Held:
        """How a vote ends whose draws are right with probability `p` each: drawn from all the ways in which it can, each as likely
        as it is (worked out once, instead of drawing each draw)."""
        known = self._held.get(p)
        if known is None:
            ways: Counter[Held] = Counter()
            states: Counter[tuple[int, int, int]] = Counter({(1, 0, 0): p, (0, 1, 0): 1 - p})
            while states:
                later: Counter[tuple[int, int, int]] = Counter()
                for (good, bad, calls), chance in states.items():
                    needed, margin, won, leads = self.stands(good, bad)
                    if not needed:
                        ways[Held(leads, margin, won, good + bad, calls)] += chance
                        continue
                    for more in range(needed + 1):
                        likely = comb(needed, more) * p**more * (1 - p) ** (needed - more)
                        later[good + more, bad + needed - more, calls + 1] += chance * likely
                states = Counter({state: chance for state, chance in later.items() if chance})
            known = list(ways), list(accumulate(ways.values()))
            self._held[p] = known
        found: Held = random.choices(known[0], cum_weights=known[1])[0]
        return found

    def confidence(self, tool: str, margin: int, flags: int) -> tuple[float, float]:
        """Calibrated confidence, and the score that it was calibrated from."""
        key = (tool, margin, flags)
        found = self._values.get(key) if self.frozen else None
        if found is None:
            assessment = self.calibration.assess(MODEL, tool, TASK, stated=STATED, margin=margin, flags=flags)
            found = round(assessment.value, 4), assessment.score
            self._values[key] = found
        return found

    def decision(self, move: Proposal, confidence: float, margin: int, certain: float) -> str:
        """The policies' decision; the rules of this experiment depend on tool, margin and floor alone."""
        key = (move.tool, min(margin, self.row.ahead_by), certain >= self.row.floor)
        found = self._decisions.get(key)
        if found is None:
            action = ProposedAction(
                tool=move.tool,
                args=move.args,
                effect=SPECS[move.tool].effect,
                provenance=move.provenance,
            )
            facts = Facts(
                task=TASK, planner="model", confidence=confidence, votes_ahead=margin, session_confidence=certain
            )
            obligations = self.policies.obligations(action, facts)
            found = self.policies.decide(action, facts, unmet=unmet_obligations(obligations, facts)).decision
            self._decisions[key] = found
        return found

    def feed(self, kind: str, **body: object) -> None:
        """An event for the calibration, as the ledger would hold it."""
        if not self.frozen:
            self.calibration.feed([Event(next(self.numbers), 0, kind, body, None, "")])


def run(bench: Bench, workflow: Workflow, random: Random, seed: int) -> Outcome:
    """One workflow, with the row's retries."""
    row = bench.row
    places: dict[str, int] = {}
    tokens = shared = escalations = 0
    for attempt in range(1 + row.retries):
        ended, used = _session(bench, workflow, random, places, f"{workflow.number} {attempt}")
        tokens, shared = tokens + used[0], shared + used[1]
        green = ended == "finished"
        if green and row.postconditions:
            green = workflow.verdict(places, seed, attempt)
            bench.feed("postcondition.checked", session=f"{workflow.number} {attempt}", passed=green)
        status = "parked" if ended == "parked" else "succeeded" if green else "failed"
        bench.feed("session.closed", session=f"{workflow.number} {attempt}", status=status)
        if not green:
            escalations += 1
        if status != "failed":
            break
    return Outcome(green=green, right=workflow.is_right(places), escalations=escalations, tokens=tokens, shared=shared)


def _session(
    bench: Bench, workflow: Workflow, random: Random, places: dict[str, int], name: str
) -> tuple[str, tuple[int, int]]:
    """One session: finished, parked (a person is asked) or failed; and the tokens it took, each draw a call of its own, and with
    several draws a call."""
    row, certainty = bench.row, Certainty()
    step = done = tokens = shared = rejections = flags = 0
    bench.feed("session.opened", session=name, planner="model", model=MODEL)
    while done < workflow.steps + 5:
        call = prompt_tokens(done) + ANSWER_TOKENS
        tokens, shared = tokens + call, shared + call
        margin, won = 0, True
        if row.ahead_by:
            move, held = _vote(bench, workflow, step, random)
            margin, won = held.margin, held.won
            tokens += (held.draws - 1) * call
            shared += held.calls * prompt_tokens(done) + (held.draws - 1) * ANSWER_TOKENS
        else:
            move = workflow.draw(step, random)
        if isinstance(move, Finish):
            if won:
                return "finished", (tokens, shared)
            rejections, flags = rejections + 1, flags + 1
            if rejections > 1:
                return "failed", (tokens, shared)
            continue
        confidence, score = bench.confidence(move.tool, margin, flags)
        if row.perdure and bench.decision(move, confidence, margin, certainty.value) != "auto":
            return "parked", (tokens, shared)
        action = f"{name} {done}"
        bench.feed(
            "action.proposed", action=action, session=name, task=TASK, tool=move.tool, confidence=confidence,
            stated=STATED, score=score, voted=bool(margin),
        )  # fmt: skip
        carry_out(move, places)
        bench.feed("action.ended", action=action, status="succeeded")
        certainty.did(action, done, move.tool, SPECS[move.tool].effect, confidence)
        step = workflow.position_after(step, move)
        done, rejections = done + 1, 0
    return "failed", (tokens, shared)


def carry_out(move: Proposal, places: dict[str, int]) -> None:
    """What the tools do: only `put` puts."""
    if move.tool == "put":
        places[str(move.args["place"])] = int(str(move.args["value"]))


def _vote(bench: Bench, workflow: Workflow, step: int, random: Random) -> tuple[Proposal | Finish, Held]:
    """The move that leads in the end, and how the vote went."""
    good = right(step, workflow.steps)
    if step >= workflow.steps:  # that all is done it always sees
        return good, bench.held(1.0, random)
    wrong = rival(step, workflow.steps, workflow.rivals[step])
    if workflow.blind is not None:
        return wrong if step in workflow.blind else good, bench.held(1.0, random)
    held = bench.held(workflow.p, random)
    if held.right is None:
        return min(good, wrong, key=lambda one: bench.drawn(one).action), held
    return good if held.right else wrong, held


def cell(
    row: Row, steps: int, p: float, workflows: int, seed: int, directory: Path, *, correlated: bool = False
) -> Cell:
    """Run `workflows` workflows of one cell, after a warm-up for the calibration."""
    random = Random(f"{seed} {row.name} {steps} {p} {correlated}")
    bench = _warm(row, steps, p, WARM_UP, random, seed, directory, correlated=correlated)
    bench.frozen = True
    return _counted(bench, steps, p, workflows, random, seed, correlated=correlated)


def cells_like_sessions(
    row: Row, steps: int, p: float, workflows: int, seed: int, directory: Path, *, repetitions: int
) -> list[Cell]:
    """The cell as often as asked, each time as real sessions have it: after their short warm-up, and learning on from every
    workflow. All workflows of one repetition share what was learned, so that it is one sample, however many they are."""
    found = []
    for number in range(repetitions):
        random = Random(f"{seed} like sessions {row.name} {steps} {p} {number}")
        bench = _warm(row, steps, p, SESSIONS_WARM_UP, random, seed, directory, correlated=False)
        found.append(_counted(bench, steps, p, workflows, random, seed, correlated=False))
    return found


def _warm(
    row: Row, steps: int, p: float, workflows: int, random: Random, seed: int, directory: Path, *, correlated: bool
) -> Bench:
    bench = Bench.of(row, directory)
    if row.perdure and row.postconditions:
        free = Bench.of(Row(name="warm-up", postconditions=True, ahead_by=row.ahead_by), directory / "warm-up")
        for number in range(workflows):
            run(free, Workflow.drawn(-number, steps, p, random, correlated=correlated), random, seed)
        bench.calibration = free.calibration
    return bench


def _counted(
    bench: Bench, steps: int, p: float, workflows: int, random: Random, seed: int, *, correlated: bool
) -> Cell:
    result = Cell()
    for number in range(workflows):
        result.add(run(bench, Workflow.drawn(number, steps, p, random, correlated=correlated), random, seed))
    return result
