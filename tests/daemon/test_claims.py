"""A planner that says it did what no outcome shows is caught, told once, and then fails; honest words pass."""

from __future__ import annotations

import pytest
from tests.daemon.drawing import in_turn, plan, write
from tests.daemon.stage import Stage, events

from perdure.daemon.claims import false_claim
from perdure.daemon.planners.moves import Finish, Proposal, Taken


def step(tool: str, args: dict, result: object = None, status: str = "succeeded") -> Taken:
    proposal = Proposal(tool=tool, args=args, provenance={}, confidence=1.0)
    effect = "idempotent" if tool == "write_file" else "read"
    return Taken(
        step=1, proposal=proposal, action="A", decision="auto", reason="", status=status, result=result, effect=effect
    )


WROTE = step("write_file", {"path": "reports/today.md", "text": "all well"}, {"path": "reports/today.md"})
READ = step("read_file", {"path": "inbox/one.log"}, {"text": "a line"})
LOOKED = step("stat_file", {"path": "reports/total.md"}, {"path": "reports/total.md", "bytes": 7})  # an operator's own
FAILED = step("write_file", {"path": "reports/late.md", "text": ""}, status="failed")


@pytest.mark.parametrize(
    "says",
    [
        "I wrote reports/tomorrow.md.",
        "Saved the summary to reports/other.md",
        "reports/late.md has been written.",
        "I read inbox/one.log and wrote the totals to reports/total.md",
        "Wrote reports/today.md and deleted inbox/one.log",
        "Done: created /srv/elsewhere/x.json",
    ],
)
def test_claims_that_no_outcome_bears_out_are_found(says: str) -> None:
    assert false_claim(says, [READ, LOOKED, WROTE, FAILED]) is not None


@pytest.mark.parametrize("says", ["I have written the report.", "The message has been sent.", "We saved everything."])
def test_a_claim_without_a_path_is_false_where_nothing_was_done(says: str) -> None:
    assert false_claim(says, [READ]) is not None
    assert false_claim(says, [READ, WROTE]) is None


@pytest.mark.parametrize(
    "says",
    [
        "",
        "I wrote reports/today.md.",
        "Wrote today.md from inbox/one.log, as asked.",
        "The report was written to /srv/triage/reports/today.md",
        "I will write reports/tomorrow.md next.",
        "reports/late.md could not be written.",
        "I have not created reports/other.md.",
        "The report reports/yesterday.md was written earlier; I read it.",
        "Next I want to have reports/plan.md created.",
        "Found 3 new addresses in inbox/one.log.",
        "Version 2.1 was released by the vendor.",
    ],
)
def test_honest_words_pass(says: str) -> None:
    assert false_claim(says, [READ, WROTE, FAILED]) is None


async def test_the_liar_is_told_once_and_may_make_it_true(stage: Stage) -> None:
    def answers(view):
        if not view.taken and not view.rejected:
            return Finish(says="I wrote reports/today.md.")
        if not view.taken:
            assert "no action of this session that succeeded" in view.rejected
            return write("reports/today.md")
        return Finish(says="I wrote reports/today.md.")

    async with stage.runtime() as runtime:
        plan(runtime, answers)
        assert (await stage.run(runtime, "report")).status == "unverified"
        assert [event.body["reason"] for event in events(runtime, "step.rejected")] == ["false-claim"]
    assert (stage.directory / "reports/today.md").exists()


async def test_the_second_lie_fails_the_session_even_after_honest_work(stage: Stage) -> None:
    moves = [
        write("reports/a.md", says="I have deleted reports/b.md"),
        write("reports/a.md"),
        Finish(says="I wrote reports/a.md and sent it to reports/c.md"),
    ]

    def answers(view):
        return moves[len(view.taken) + (1 if view.taken or view.rejected else 0)]

    async with stage.runtime() as runtime:
        plan(runtime, answers)
        ending = await stage.run(runtime, "report")
        assert ending.status == "failed"
        assert ending.reason.startswith("false-claim: you say 'I wrote reports/a.md and sent it to reports/c.md'")


async def test_what_a_planner_reads_about_is_no_claim_of_its_own(stage: Stage) -> None:
    stage.write("inbox/one.log", "a line\n")
    read = Proposal(tool="read_file", args={"path": "inbox/one.log"}, provenance={}, confidence=0.9)
    async with stage.runtime() as runtime:
        plan(runtime, in_turn(read))
        assert (await stage.run(runtime, "report")).status == "unverified"
