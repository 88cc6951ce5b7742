"""What planners say of themselves is worth what their record says, never less for being surer, and honest about short records."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.daemon.drawing import CONFIG, TASK, in_turn, plan, write
from tests.daemon.stage import Stage, events

from perdure.daemon.confidence import Calibration, led_by, rising
from perdure.daemon.reliability import plot, reliability
from perdure.state.events import Event

PROBABILITY = st.floats(0.0, 1.0)


class History:
    """A ledger's worth of proposals and what became of them, without the ledger."""

    def __init__(self) -> None:
        self.record = Calibration()
        self.count = 0

    def happened(self, stated: float, outcome: bool, *, tool: str = "t", task: str = "k", margin: int = 0) -> None:
        self.count += 1
        name, score = f"A{self.count}", self.record.assess("m", tool, task, stated=stated, margin=margin)
        about = {"session": "S", "task": task, "action": name, "tool": tool}
        body = {**about, "confidence": score.value, "stated": stated, "score": score.score, "voted": margin > 0}
        self.record.feed(
            [
                event("session.opened", {"session": "S", "planner": "model", "model": "m"}),
                event("action.proposed", body),
                event("action.verified", {**about, "passed": outcome}),
            ]
        )


def event(type: str, body: dict) -> Event:
    return Event(1, 1, type, body, None, "")


OUTCOMES = st.lists(st.tuples(PROBABILITY, st.booleans()), max_size=60)


@settings(max_examples=60, deadline=None)
@given(history=OUTCOMES, one=PROBABILITY, other=PROBABILITY, margin=st.integers(0, 5), flags=st.integers(0, 3))
def test_who_states_more_or_leads_by_more_is_never_worth_less(history, one, other, margin, flags) -> None:
    held = History()
    for stated, outcome in history:
        held.happened(stated, outcome)
    low, high = sorted((one, other))
    less = held.record.assess("m", "t", "k", stated=low, margin=margin, flags=flags)
    more = held.record.assess("m", "t", "k", stated=high, margin=margin, flags=flags)
    assert less.value <= more.value + 1e-12
    flagged = held.record.assess("m", "t", "k", stated=low, margin=margin, flags=flags + 1)
    assert flagged.value <= less.value + 1e-12
    if margin > 1:
        closer = held.record.assess("m", "t", "k", stated=low, margin=margin - 1, flags=flags)
        assert closer.value <= less.value + 1e-12


@given(points=st.lists(st.tuples(PROBABILITY, PROBABILITY), min_size=1, max_size=50))
def test_the_fitted_curve_never_falls(points) -> None:
    xs, ys = rising(points)
    assert xs == sorted(set(xs))
    assert all(low <= high + 1e-12 for low, high in itertools.pairwise(ys))


def test_who_says_99_of_everything_is_worth_what_the_record_says() -> None:
    held, chance = History(), random.Random(7)
    for _ in range(600):
        held.happened(0.99, chance.random() < 0.6)
    assert held.record.assess("m", "t", "k", stated=0.99).value == pytest.approx(0.6, abs=0.05)


def test_without_a_record_the_planners_own_words_can_lower_the_prior_and_never_raise_it() -> None:
    record = Calibration(prior=0.7, cold_below=20)
    for stated in (0.7, 0.9, 0.99, 1.0):
        assessment = record.assess("m", "t", "k", stated=stated)
        assert assessment.value == pytest.approx(0.7)
        assert assessment.cold
    assert record.assess("m", "t", "k", stated=0.3).value == pytest.approx(0.3)


def test_a_record_with_other_tools_and_tasks_counts_where_there_is_none_yet() -> None:
    held = History()
    for _ in range(100):
        held.happened(0.9, True, tool="other")
    known = held.record.assess("m", "t", "k", stated=0.9)
    assert 0.8 < known.value < 1.0
    assert known.cold  # none of them with this tool in this task
    assert held.record.assess("unknown", "t", "k", stated=0.9).value == pytest.approx(0.7)


def test_a_vote_is_worth_what_its_margin_says_until_its_own_record_says_otherwise() -> None:
    held = History()
    assert held.record.assess("m", "t", "k", stated=0.9, margin=3).value == pytest.approx(led_by(0.7, 3))
    assert led_by(0.85, 5) > 0.999
    assert led_by(0.4, 9) <= 0.4 + 1e-9  # votes do not speak for a planner that is mostly wrong
    for number in range(300):  # all draws make the same mistake: votes of this planner prove little
        held.happened(0.9, number % 2 == 0, margin=3)
    assert held.record.assess("m", "t", "k", stated=0.9, margin=3).value == pytest.approx(0.5, abs=0.06)


def test_a_failed_postcondition_blames_every_unverified_action_a_little() -> None:
    record = Calibration()
    record.keep_all = True
    record.feed([event("session.opened", {"session": "S", "planner": "model", "model": "m"})])
    for name in "abcd":
        about = {"session": "S", "task": "k", "action": name, "tool": "t"}
        record.feed(
            [
                event("action.proposed", {**about, "confidence": 0.7, "stated": 0.9, "score": 0.9}),
                event("action.ended", {**about, "status": "succeeded"}),
            ]
        )
    record.feed(
        [
            event("postcondition.checked", {"session": "S", "task": "k", "passed": False}),
            event("session.closed", {"session": "S", "task": "k", "status": "failed"}),
        ]
    )
    assert [one.outcome for one in record.observed] == [0.75] * 4


def test_the_noise_of_a_perfect_scorer_is_that_of_the_literature() -> None:
    chance = random.Random(3)
    said = [chance.random() for _ in range(200)]
    right = [1.0 if chance.random() < value else 0.0 for value in said]
    figures = reliability(said, right)
    assert figures.ece_perfect == pytest.approx(0.07, abs=0.012)
    assert figures.ece <= 1.5 * figures.ece_perfect_95
    liar = reliability([0.99] * 200, [1.0 if n % 2 else 0.0 for n in range(200)])
    assert liar.ece == pytest.approx(0.49, abs=0.001)
    assert liar.ece > liar.ece_perfect_95
    assert liar.brier == pytest.approx(0.49, abs=0.01)
    assert len(plot(figures.bins)) == 10


FLOOR = """
version: 1
rules:
  - {name: writing, tools: [append_file], decide: auto}
  - {name: sure, tools: [append_file], require: {confidence: 0.8}}
"""


async def test_the_floor_is_about_the_calibrated_number_and_a_record_opens_it(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "workspace")
    stage.write("perdure.toml", CONFIG + "\n[confidence]\ncold_below = 5\n")
    stage.write("policies/policy.yaml", FLOOR)
    stage.write("tasks/report.md", TASK.replace("write_file]", "append_file]").replace("steps: 4", "steps: 40"))
    proposal = write("all.md", confidence=0.99)
    appended = type(proposal)(tool="append_file", args=proposal.args, provenance={}, confidence=0.99)
    async with stage.runtime() as runtime:
        plan(runtime, in_turn(appended))
        assert (await stage.run(runtime, "report")).status == "parked"
        (proposed,) = events(runtime, "action.proposed")
        assert (proposed.body["confidence"], proposed.body["stated"]) == (0.7, 0.99)
        payload = runtime.ledger.reader.payload(proposed.seq)
        assert payload["confidence"]["cold"] is True
    stage.write("policies/policy.yaml", FLOOR.replace("0.8", "0.5"))
    async with stage.runtime() as runtime:
        plan(runtime, in_turn(*[appended] * 30))
        stage.clock.forward(86_401 * 8)
        await stage.run_open_slots(runtime)
        from perdure.daemon import operations

        operations.expire(runtime.ledger, runtime.now())
        await stage.run_open_slots(runtime)
        assert (await stage.run(runtime, "report")).status == "unverified"
    stage.write("policies/policy.yaml", FLOOR)
    async with stage.runtime() as runtime:  # the record survives the restart, and it is good
        plan(runtime, in_turn(appended))
        assert (await stage.run(runtime, "report")).status == "unverified"
        last = events(runtime, "action.proposed")[-1]
        assert last.body["confidence"] > 0.9
