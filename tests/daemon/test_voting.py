"""Votes: independent draws until one action leads by k, whatever their order; and nothing is done that did not win."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.daemon.drawing import VOTES, plan, write
from tests.daemon.stage import Stage, events

from perdure.daemon.planners.moves import Finish, Malformed, Proposal, View
from perdure.daemon.planners.voting import Ballot, Draw, canonical_action, standing
from perdure.state import projections


@pytest.fixture
def stage(stage: Stage) -> Stage:
    stage.write("policies/policy.yaml", VOTES)
    return stage


def drawn(first: str, *others: Proposal | Finish | Malformed):
    """The first move writes `first`; the draws of its vote are `others`, in order; then the end."""

    def answers(view: View):
        if view.taken or view.rejected:
            return Finish(says="done")
        return write(first) if view.draw == 0 else others[view.draw - 1]

    return answers


async def test_the_action_that_leads_by_k_is_done(stage: Stage) -> None:
    async with stage.runtime() as runtime:
        planner = plan(runtime, drawn("right.md", write("wrong.md"), write("right.md"), write("right.md")))
        ending = await stage.run(runtime, "report")
        assert ending.status == "unverified"
        (vote,) = events(runtime, "vote.held")
        assert (vote.body["draws"], vote.body["margin"], vote.body["won"]) == (4, 2, True)
        assert [event.body["action"] for event in events(runtime, "action.intended")] == [vote.body["action"]]
        assert [view.draw for view in planner.views] == [0, 1, 2, 3, 0]
        assert len({view.step for view in planner.views[:4]}) == 1  # the same view for each draw
        purposes = [event.body["purpose"] for event in events(runtime, "model.requested")]
        assert purposes == ["propose", "vote", "vote", "vote", "propose"]
        spent = projections.spend(runtime.ledger.reader, 0, session=ending.session)
        assert spent.tokens == 5 * 110  # every draw is charged, and nothing is left reserved
    assert (stage.directory / "right.md").exists()
    assert not (stage.directory / "wrong.md").exists()


async def test_the_winner_is_done_and_not_what_was_proposed_first(stage: Stage) -> None:
    async with stage.runtime() as runtime:
        plan(runtime, drawn("wrong.md", write("right.md"), write("right.md"), write("right.md")))
        await stage.run(runtime, "report")
    assert (stage.directory / "right.md").exists()
    assert not (stage.directory / "wrong.md").exists()


async def test_without_a_winner_a_person_sees_the_candidates_and_nothing_is_done(stage: Stage) -> None:
    others = [write(name) for name in ("b.md", "a.md", "b.md", "a.md", "b.md", "c.md")]
    async with stage.runtime() as runtime:
        planner = plan(runtime, drawn("a.md", *others))
        ending = await stage.run(runtime, "report")
        assert ending.status == "parked"
        (question,) = projections.escalations(runtime.ledger.reader)
        shown = runtime.ledger.reader.payload(question.seq)["question"]
        assert "votes ahead by 0, asked for 2" in shown["reason"]
        candidates = [(one["args"]["path"], one["votes"]) for one in shown["vote"]["candidates"]]
        assert sorted(candidates) == [("a.md", 3), ("b.md", 3)]
        assert len(planner.views) == 6  # the seventh draw could no longer decide it
        assert not events(runtime, "action.intended")


@pytest.mark.parametrize("texts", [True, False])
async def test_a_files_contents_are_voted_about_where_the_rule_says_so(stage: Stage, texts: bool) -> None:
    if texts:
        stage.write("policies/policy.yaml", VOTES.replace("max: 7}", "max: 7, texts: true}"))
    other = [write("right.md", "y"), *(write("right.md", "x") for _ in range(6))]
    async with stage.runtime() as runtime:
        plan(runtime, drawn("right.md", *other))
        assert (await stage.run(runtime, "report")).status == "unverified"
        (vote,) = events(runtime, "vote.held")
        assert (vote.body["draws"], vote.body["won"]) == ((4, True) if texts else (2, True))
    assert (stage.directory / "right.md").read_text().strip() == "x"


async def test_draws_that_are_no_proposals_count_for_nothing(stage: Stage) -> None:
    outside = write("../elsewhere.md")
    lie = write("right.md", says="I wrote reports/other.md already.")
    broken = Malformed(reason="garbage", detail="no tool call")
    async with stage.runtime() as runtime:
        plan(runtime, drawn("right.md", broken, outside, lie, write("right.md")))
        await stage.run(runtime, "report")
        (vote,) = events(runtime, "vote.held")
        assert (vote.body["draws"], vote.body["flagged"], vote.body["won"]) == (5, 3, True)


async def test_a_vote_that_the_budget_does_not_pay_for_ends_the_session_and_does_nothing(stage: Stage) -> None:
    alternating = [write(f"{n % 2}.md") for n in range(1, 8)]
    async with stage.runtime() as runtime:
        plan(runtime, drawn("0.md", *alternating), prompt_tokens=4000, completion_cap=2000)
        ending = await stage.run(runtime, "report")
        assert ending.status == "limited"
        assert "vote" in ending.reason
        assert not events(runtime, "action.intended")
        assert projections.open_calls(runtime.ledger.reader) == []
        assert projections.spend(runtime.ledger.reader, 0).tokens <= 20_000


async def test_a_playbook_never_votes(stage: Stage) -> None:
    stage.playbook("plain", "\n  - {do: write_file, args: {path: a.md, text: x}}\n", tools="write_file")
    async with stage.runtime() as runtime:
        assert (await stage.run(runtime, "plain")).status == "unverified"
        assert not events(runtime, "vote.held")


async def test_ending_the_session_is_voted_about_where_every_tool_is(stage: Stage) -> None:
    rule = "  - {name: sure of everything, tools: ['*'], require: {votes: {ahead_by: 2, max: 7}}}\n"
    stage.write("policies/policy.yaml", VOTES + rule)

    def answers(view: View):
        done = bool(view.taken)
        if view.draw == 0 and not done:
            return Finish(says="nothing to do")  # wrong, and outvoted
        return Finish(says="written") if done else write("right.md")

    async with stage.runtime() as runtime:
        plan(runtime, answers)
        await stage.run(runtime, "report")
        assert [event.body.get("action") is None for event in events(runtime, "vote.held")] == [False, True]
    assert (stage.directory / "right.md").exists()


def test_arguments_that_mean_the_same_are_one_candidate(tmp_path: Path) -> None:
    import asyncio

    async def canonicals() -> list[str]:
        stage = Stage(tmp_path / "workspace")
        async with stage.runtime() as runtime:
            write_file, search = runtime.tools["write_file"], runtime.tools["list_files"]
            return [
                canonical_action(write_file.prepare({"path": "reports/a.md", "text": "one text"})),
                canonical_action(write_file.prepare({"path": "reports/./../reports/a.md", "text": "another"})),
                canonical_action(write_file.prepare({"path": "reports/b.md", "text": "one text"})),
                canonical_action(search.prepare({"path": "."})),
            ]

    same, again, other, listing = asyncio.run(canonicals())
    assert same == again
    assert len({same, other, listing}) == 3


DRAWS = st.lists(st.sampled_from(["a", "b", "c", None]), max_size=24)


@given(draws=DRAWS, k=st.integers(1, 5), extra=st.integers(0, 20), seed=st.integers())
def test_how_a_vote_stands_does_not_depend_on_the_order_of_its_draws(draws, k, extra, seed) -> None:
    def held(order: list[str | None]) -> Ballot:
        ballot = Ballot(k, k + extra)
        for name in order:
            ballot.add(Draw(name, write(name, confidence=0.1 * ord(name) / 10)) if name is not None else None)
        return ballot

    shuffled = list(draws)
    random.Random(seed).shuffle(shuffled)
    one, other = held(draws), held(shuffled)
    assert one.standing() == other.standing()
    assert one.move() == other.move()
    assert one.candidates() == other.candidates()
    assert one.draws_needed() == other.draws_needed()


@given(
    answers=st.lists(st.sampled_from("abc"), min_size=60, max_size=60), k=st.integers(1, 5), extra=st.integers(0, 20)
)
def test_drawing_several_at_once_decides_as_drawing_one_by_one_and_never_draws_more(answers, k, extra) -> None:
    most = k + extra
    votes: list[str] = []
    while (now := standing(votes, 0, ahead_by=k, draws_max=most)).verdict == "open":
        votes.append(answers[len(votes)])
    ballot, number = Ballot(k, most), 0
    while needed := ballot.draws_needed():
        for name in answers[number : number + needed]:
            ballot.add(Draw(name, write(name)))
        number += needed
    assert (number, ballot.standing()) == (len(votes), now)
    assert number <= most


@given(votes=st.lists(st.sampled_from("ab"), max_size=20), k=st.integers(1, 5), most=st.integers(1, 20))
def test_a_vote_is_given_up_only_when_nobody_could_win_it_any_more(votes, k, most) -> None:
    now = standing(votes, 0, ahead_by=k, draws_max=most)
    if now.verdict != "lost":
        return
    left = max(0, most - len(votes))
    for rival in "abz":
        assert standing(votes + [rival] * left, 0, ahead_by=k, draws_max=most).verdict != "won"
