"""Uncertainty propagates: unverified effects multiply, verified ones count what their verifier is worth, and below the floor
the session asks before its next effect."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.daemon.drawing import CONFIG, in_turn, plan
from tests.daemon.stage import Stage, events

from perdure.daemon import operations
from perdure.daemon.certainty import Certainty
from perdure.daemon.planners.moves import Proposal
from perdure.state import projections

TOOLS = """
[tools.mark]
command = ["/bin/sh", "-c", "echo \\"$0\\" >> out/marks", "${args.name}"]
args = {name = {type = "string"}}
write = ["out"]

[tools.lies]
command = ["/bin/true"]
args = {name = {type = "string"}}
effect = "probeable"
probe = {command = ["/usr/bin/test", "-e", "${args.name}"]}
"""
POLICY = """
version: 1
rules:
  - {name: all, tools: [mark, lies, append_file, read_file], decide: auto}
  - {name: sure of the whole, tools: ["*"], require: {session_confidence: 0.5}}
"""
TASK = """---
name: report
planner: model
tools: [mark, lies, append_file, read_file]
bounds: {steps: 9, context: 4000, tokens: 20000, minutes: 5, cost_usd: 0.5}
---
Work.
"""


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    stage = Stage(tmp_path / "workspace")
    stage.write("perdure.toml", CONFIG + TOOLS)
    stage.write("policies/policy.yaml", POLICY)
    stage.write("tasks/report.md", TASK)
    stage.write("there.txt", "x")
    (stage.directory / "out").mkdir()
    return stage


def mark(name: str, tool: str = "mark") -> Proposal:
    return Proposal(tool=tool, args={"name": name}, provenance={}, confidence=0.95, on_escalate="continue")


def append(text: str) -> Proposal:
    args = {"path": "reports/all.md", "text": text}
    return Proposal(tool="append_file", args=args, provenance={}, confidence=0.95)


READ = Proposal(tool="read_file", args={"path": "there.txt"}, provenance={}, confidence=0.9)


async def test_below_the_floor_the_session_asks_before_its_next_effect_and_names_the_steps(stage: Stage) -> None:
    async with stage.runtime() as runtime:
        plan(runtime, in_turn(mark("a"), READ, mark("b"), READ, mark("c"), mark("d")))
        ending = await stage.run(runtime, "report")
        assert ending.status == "parked"  # although the planner would have gone on
        (question,) = projections.escalations(runtime.ledger.reader)
        shown = runtime.ledger.reader.payload(question.seq)["question"]
        assert "session confidence 0.49, asked for 0.50" in shown["reason"]
        assert shown["unverified"] == ["step 1 mark (0.70)", "step 3 mark (0.70)"]
        assert [row.tool for row in projections.actions(runtime.ledger.reader) if row.status] == [
            "read_file", "mark", "read_file", "mark",
        ]  # fmt: skip
        assert (stage.directory / "out/marks").read_text() == "a\nb\n"
        operations.answer(
            runtime.ledger, runtime.identifiers, runtime.now(), 0, escalation=question.escalation, answer="approve"
        )
        (again,) = await stage.run_open_slots(runtime)  # the person was told what is unverified, and said to go on
        assert again.status == "unverified"
        assert (stage.directory / "out/marks").read_text() == "a\nb\nc\nd\n"


async def test_effects_that_their_probe_confirms_leave_the_session_as_certain_as_the_probe(stage: Stage) -> None:
    async with stage.runtime() as runtime:
        plan(runtime, in_turn(*(append(f"{n}") for n in range(8))))
        assert (await stage.run(runtime, "report")).status == "unverified"
        verified = events(runtime, "action.verified")
        assert [event.body["passed"] for event in verified] == [True] * 8
        assert {event.body["reliability"] for event in verified} == {0.99}


async def test_an_effect_that_its_probe_contradicts_stops_the_session_at_once(stage: Stage) -> None:
    async with stage.runtime() as runtime:
        plan(runtime, in_turn(mark("missing.txt", "lies"), mark("a")))
        assert (await stage.run(runtime, "report")).status == "parked"
        assert not (stage.directory / "out/marks").exists()


CONFIDENCES = st.lists(st.floats(0.01, 1.0), max_size=12)


@given(CONFIDENCES)
def test_each_further_unverified_effect_lowers_the_product_and_settling_restores_it(values) -> None:
    certainty = Certainty()
    before = certainty.value
    for number, value in enumerate(values):
        certainty.did(f"A{number}", number, "t", "once", value)
        assert certainty.value <= before
        before = certainty.value
    certainty.did("R", 99, "t", "read", 0.01)
    assert certainty.value == before
    certainty.settle()
    assert certainty.value == 1.0
    assert certainty.unverified() == []


def test_the_worst_word_of_several_verifiers_counts() -> None:
    certainty = Certainty()
    certainty.did("A", 1, "t", "once", 0.7)
    certainty.verified("A", passed=True, reliability=0.9)
    assert certainty.value == 0.9
    certainty.verified("A", passed=True, reliability=0.99)
    assert certainty.value == 0.9
    certainty.verified("A", passed=False)
    assert certainty.value == pytest.approx(0.01)
    assert certainty.unverified() == ["step 1 t (0.01)"]
