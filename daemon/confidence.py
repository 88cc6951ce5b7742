"""How much a proposal is worth: what its planner says, corrected by what became of what it said before.

The number is calibrated per model, tool and task against verifications, postconditions and people's answers in the ledger, by
isotonic regression (Zadrozny and Elkan 2002). While data is short it is drawn towards a declared prior, which the planner's
own words can lower but never raise. Every part rises or stays with what the planner states and with a vote's margin."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from perdure.state.events import Event

PRIOR: Final = 0.7  # what a proposal is worth of a planner that nobody has seen yet
COLD_BELOW: Final = (
    20  # with fewer outcomes than this, of a model with this tool in this task, the number is a cold start
)
FLAG_LOGIT: Final = 0.5  # what each red flag earlier in the session takes off the log-odds
OBSERVATIONS_MAX: Final = 2_000  # per model, tool and task; older ones are forgotten
EVENTS_MAX: Final = 50_000  # how far back a start looks
EDGE: Final = 0.001

Kind: TypeAlias = Literal["single", "vote"]
Key: TypeAlias = tuple[str, ...]

EVENT_TYPES: Final = (
    "session.opened", "session.closed", "action.proposed", "action.ended", "action.verified", "postcondition.checked",
    "escalation.opened", "escalation.answered", "escalation.expired",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """What one proposal is worth. `value` is the calibrated number, `score` what was calibrated, `stated` the planner's own;
    `observations` are outcomes of this model with this tool in this task, `cold` says that they are too few."""

    value: float
    score: float
    stated: float
    margin: int
    flags: int
    observations: int
    cold: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One proposal and what became of it: `outcome` 1 right, 0 wrong, between them where a failed postcondition blames several."""

    model: str
    tool: str
    task: str
    kind: Kind
    score: float
    stated: float
    confidence: float
    outcome: float
    by: str


@dataclass(slots=True)
class _Pending:
    model: str
    tool: str
    task: str
    session: str
    kind: Kind
    score: float
    stated: float
    confidence: float
    done: bool = False


@dataclass(slots=True)
class _Curve:
    """Scores and outcomes under one key, and the rising curve through them."""

    points: list[tuple[float, float]] = field(default_factory=list)
    xs: list[float] = field(default_factory=list)
    ys: list[float] = field(default_factory=list)
    stale: bool = True

    def add(self, score: float, outcome: float) -> None:
        self.points.append((score, outcome))
        del self.points[:-OBSERVATIONS_MAX]
        self.stale = True

    def at(self, score: float) -> float:
        if self.stale:
            self.xs, self.ys = rising(self.points)
            self.stale = False
        return _interpolated(self.xs, self.ys, score)


class Calibration:
    """What the ledger says of earlier proposals. Feed it every event, in order."""

    def __init__(self, prior: float = PRIOR, cold_below: int = COLD_BELOW) -> None:
        self._prior = prior
        self._cold_below = cold_below
        self._curves: dict[Key, _Curve] = {}
        self._models: dict[str, str] = {}  # open session -> model
        self._pending: dict[str, _Pending] = {}  # action -> proposal without an outcome
        self._asked: dict[str, str] = {}  # escalation -> action
        self._failed: set[str] = set()  # sessions with a postcondition that does not hold
        self.observed: list[Observed] = []
        self.keep_all = False

    def feed(self, events: Iterable[Event]) -> None:
        """Take note of events."""
        for event in events:
            handler = getattr(self, "_" + event.type.replace(".", "_"), None)
            if handler is not None:
                handler(event)

    def assess(self, model: str, tool: str, task: str, *, stated: float, margin: int = 0, flags: int = 0) -> Assessment:
        """What a proposal is worth that the planner is `stated` sure of, that led a vote by `margin` (0: no vote was held), in a
        session that has seen `flags` red flags."""
        penalty = FLAG_LOGIT * flags
        score = sigmoid(logit(stated) - penalty)
        cold = sigmoid(logit(min(stated, self._prior)) - penalty)
        value = self._calibrated("single", (model, tool, task), score, cold)
        kind: Kind = "single"
        if margin:
            kind, score = "vote", led_by(value, margin)
            value = self._calibrated("vote", (model, tool, task), score, score)
        curve = self._curves.get((kind, model, tool, task))
        count = len(curve.points) if curve is not None else 0
        return Assessment(
            value=min(1 - EDGE, max(EDGE, value)),
            score=score,
            stated=stated,
            margin=margin,
            flags=flags,
            observations=count,
            cold=count < self._cold_below,
        )

    def _calibrated(self, kind: Kind, key: Key, score: float, prior: float) -> float:
        """From the widest record to the narrowest, each weighing as much as it has outcomes."""
        value = prior
        for depth in range(1, len(key) + 1):
            curve = self._curves.get((kind, *key[:depth]))
            if curve is not None and curve.points:
                count = len(curve.points)
                value = (count * curve.at(score) + self._cold_below * value) / (count + self._cold_below)
        return value

    # -- events -------------------------------------------------------------------------------------------------------

    def _session_opened(self, event: Event) -> None:
        if event.body["planner"] != "playbook":
            self._models[event.body["session"]] = event.body.get("model") or event.body["planner"]

    def _action_proposed(self, event: Event) -> None:
        body = event.body
        model = self._models.get(body["session"])
        if model is None or body.get("stated") is None or body.get("score") is None:
            return
        self._pending[body["action"]] = _Pending(
            model,
            body["tool"],
            body["task"],
            body["session"],
            "vote" if body.get("voted") else "single",
            body["score"],
            body["stated"],
            body["confidence"],
        )

    def _action_ended(self, event: Event) -> None:
        body = event.body
        pending = self._pending.get(body["action"])
        if pending is not None and body["status"] == "succeeded":
            pending.done = True
        elif body["status"] == "failed":
            self._outcome(body["action"], 0.0, "tool")

    def _action_verified(self, event: Event) -> None:
        self._outcome(event.body["action"], 1.0 if event.body["passed"] else 0.0, "verification")

    def _escalation_opened(self, event: Event) -> None:
        if event.body["action"] in self._pending:
            self._asked[event.body["escalation"]] = event.body["action"]

    def _escalation_answered(self, event: Event) -> None:
        action = self._asked.pop(event.body["escalation"], None)
        if action is not None:
            self._outcome(action, 1.0 if event.body["answer"] == "approve" else 0.0, "person")

    def _escalation_expired(self, event: Event) -> None:
        self._pending.pop(self._asked.pop(event.body["escalation"], ""), None)

    def _postcondition_checked(self, event: Event) -> None:
        if not event.body["passed"] and not event.body.get("standing"):
            self._failed.add(event.body["session"])

    def _session_closed(self, event: Event) -> None:
        body = event.body
        session, failed = body["session"], body["session"] in self._failed
        self._failed.discard(session)
        self._models.pop(session, None)
        open_here = [name for name, pending in self._pending.items() if pending.session == session]
        done = [name for name in open_here if self._pending[name].done]
        if body["status"] == "succeeded":
            for name in done:
                self._outcome(name, 1.0, "postconditions")
        elif failed:  # one of them was wrong, and nobody knows which
            for name in done:
                self._outcome(name, 1.0 - 1.0 / len(done), "postconditions")
        asked = set(self._asked.values())
        for name in open_here:
            if name not in asked:
                self._pending.pop(name, None)

    def _outcome(self, action: str, outcome: float, by: str) -> None:
        pending = self._pending.pop(action, None)
        if pending is None:
            return
        key = (pending.model, pending.tool, pending.task)
        for depth in range(1, len(key) + 1):
            self._curves.setdefault((pending.kind, *key[:depth]), _Curve()).add(pending.score, outcome)
        if self.keep_all:
            self.observed.append(
                Observed(
                    model=pending.model,
                    tool=pending.tool,
                    task=pending.task,
                    kind=pending.kind,
                    score=pending.score,
                    stated=pending.stated,
                    confidence=pending.confidence,
                    outcome=outcome,
                    by=by,
                )
            )


# -- arithmetic -------------------------------------------------------------------------------------------------------


def rising(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """The rising curve nearest to the points (weighted least squares, pool adjacent violators), one value per score."""
    from scipy.optimize import isotonic_regression

    sums: dict[float, list[float]] = {}
    for score, outcome in points:
        held = sums.setdefault(score, [0.0, 0.0])
        held[0] += outcome
        held[1] += 1.0
    xs = sorted(sums)
    means = [sums[x][0] / sums[x][1] for x in xs]
    fitted = isotonic_regression(means, weights=[sums[x][1] for x in xs])
    return xs, [float(value) for value in fitted.x]


def _interpolated(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    right = bisect_right(xs, x)
    if right == 0:
        return ys[0]
    if right == len(xs):
        return ys[-1]
    share = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
    return ys[right - 1] + share * (ys[right] - ys[right - 1])


def led_by(single: float, margin: int) -> float:
    """The chance that the winner of a vote is right: each draw right with `single` and one rival in all others (the worst
    case), first to lead by `margin`: the gambler's ruin, p^k / (p^k + q^k). Votes do not speak for a planner that is wrong
    more often than right."""
    odds = logit(single)
    return sigmoid(odds * margin if odds > 0 else odds)


def logit(probability: float) -> float:
    """Log-odds, with the ends held off infinity."""
    held = min(1 - EDGE, max(EDGE, probability))
    return math.log(held / (1 - held))


def sigmoid(odds: float) -> float:
    """The probability with these log-odds."""
    return 1 / (1 + math.exp(-odds))
