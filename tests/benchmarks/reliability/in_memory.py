"""The large cells: the session loop's order of things, in memory, around Perdure's own policies, votes, confidence and certainty.

No ledger, no tools, no event loop; what decides is the product's own code: `PolicySet`, `Ballot`, `Calibration`, `Certainty`.
Answers that depend on few numbers are remembered instead of asked for again. `through_sessions.py` runs the same workflows
through real sessions, to show that both agree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random

from perdure.daemon.certainty import Certainty
from perdure.daemon.confidence import Calibration
from perdure.daemon.planners.moves import Finish, Proposal
from perdure.daemon.planners.voting import FINISH, Ballot, Draw, canonical_action
from perdure.daemon.tools.model import Prepared, ToolSpec
from perdure.policies.decisions import PolicySet, unmet_obligations
from perdure.policies.loading import load_policies
from perdure.policies.model import Facts, ProposedAction, ToolSignature
from perdure.state.events import Event

from .workflows import ANSWER_TOKENS, DONE, STATED, Cell, Outcome, Row, Workflow, prompt_tokens

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
    tokens = escalations = 0
    for attempt in range(1 + row.retries):
        ended, used = _session(bench, workflow, random, places, f"{workflow.number} {attempt}")
        tokens += used
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
    return Outcome(green=green, right=workflow.is_right(places), escalations=escalations, tokens=tokens)


def _session(bench: Bench, workflow: Workflow, random: Random, places: dict[str, int], name: str) -> tuple[str, int]:
    """One session: finished, parked (a person is asked) or failed; and the tokens it took."""
    row, certainty = bench.row, Certainty()
    step = done = tokens = rejections = flags = 0
    bench.feed("session.opened", session=name, planner="model", model=MODEL)
    while done < workflow.steps + 5:
        call = prompt_tokens(done) + ANSWER_TOKENS
        move = workflow.draw(step, random)
        tokens += call
        margin, won = 0, True
        if row.ahead_by:
            move, margin, won, draws = _vote(bench, workflow, step, move, random)
            tokens += (draws - 1) * call
        if isinstance(move, Finish):
            if won:
                return "finished", tokens
            rejections, flags = rejections + 1, flags + 1
            if rejections > 1:
                return "failed", tokens
            continue
        confidence, score = bench.confidence(move.tool, margin, flags)
        if row.perdure and bench.decision(move, confidence, margin, certainty.value) != "auto":
            return "parked", tokens
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
    return "failed", tokens


def carry_out(move: Proposal, places: dict[str, int]) -> None:
    """What the tools do: only `put` puts."""
    if move.tool == "put":
        places[str(move.args["place"])] = int(str(move.args["value"]))


def _vote(
    bench: Bench, workflow: Workflow, step: int, first: Proposal | Finish, random: Random
) -> tuple[Proposal | Finish, int, bool, int]:
    """The move that leads, by how much, whether it won, and the draws it took. There are two candidates at the most."""
    other: Proposal | Finish = first
    same, against = 1, 0
    while needed := bench.stands(same, against)[0]:
        for _ in range(needed):
            move = workflow.draw(step, random)
            if move is first:
                same += 1
            else:
                other, against = move, against + 1
    _, margin, won, leads = bench.stands(same, against)
    tied = min(first, other, key=lambda one: bench.drawn(one).action)
    move = tied if leads is None else first if leads else other
    return move, margin, won, same + against


def cell(
    row: Row, steps: int, p: float, workflows: int, seed: int, directory: Path, *, correlated: bool = False
) -> Cell:
    """Run `workflows` workflows of one cell, after a warm-up for the calibration."""
    bench = Bench.of(row, directory)
    random = Random(f"{seed} {row.name} {steps} {p} {correlated}")
    if row.perdure and row.postconditions:
        free = Bench.of(Row(name="warm-up", postconditions=True, ahead_by=row.ahead_by), directory / "warm-up")
        for number in range(WARM_UP):
            run(free, Workflow.drawn(-number, steps, p, random, correlated=correlated), random, seed)
        bench.calibration = free.calibration
    bench.frozen = True
    result = Cell()
    for number in range(workflows):
        result.add(run(bench, Workflow.drawn(number, steps, p, random, correlated=correlated), random, seed))
    return result
