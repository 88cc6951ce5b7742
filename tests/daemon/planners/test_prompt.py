"""What goes to a model fits its bound, is counted whole, is the same for the same view, and never loses pinned text."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.daemon.planners.moves import Proposal
from perdure.daemon.planners.prompt import GO_ON, RULES, compose, overhead
from perdure.memory import tokens

INSTRUCTION = "Read inbox/a.log and write reports/today.md. Never touch anything else."


@pytest.fixture
def view(view_of, spec, section):
    def make(**parts):
        sections = [
            section("instruction", INSTRUCTION, stable=True),
            section("recalled", "Yesterday was quiet."),
            section("constraints", "At most 5 steps.", stable=True),
        ]
        return view_of(
            **{
                "tools": [spec("read_file", ("path",)), spec("write_file", ("path", "text"))],
                "sections": sections,
                **parts,
            }
        )

    return make


def _step(taken, number, result, text="x"):
    proposal = Proposal(tool="write_file", args={"path": f"p{number}", "text": text}, provenance={}, confidence=1.0)
    return taken(proposal, result, action=f"ACTION{number}")


def test_stable_sections_come_first_and_volatile_ones_after(view):
    prompt = compose(view(), factor=1.0, tokens_max=4_000)
    assert prompt.system == f"{INSTRUCTION}\n\nAt most 5 steps.\n\n{RULES}"
    assert prompt.user == f"Yesterday was quiet.\n\n{GO_ON}"


def test_count_covers_every_text_that_is_sent(view, taken):
    prompt = compose(view(taken=[_step(taken, 1, "result")], rejected="no"), factor=1.0, tokens_max=4_000)
    sent = sum(tokens.count(str(value)) for message in prompt.messages() for value in message.values())
    listed = tokens.count(json.dumps(prompt.tool_list()))
    assert prompt.tokens >= sent + listed


@pytest.mark.parametrize("factor", [1.0, 1.1, 1.37, 2.0])
def test_context_and_overhead_together_cover_the_first_call(view, spec, factor):
    first = view()
    sections = sum(tokens.charged(tokens.count(section.text), factor) for section in first.context.sections)
    assert compose(first, factor=factor, tokens_max=10_000).tokens <= sections + overhead(first.tools, factor) + 6


def test_oldest_results_are_shortened_first_with_a_reference(view, taken):
    steps = [_step(taken, number, "line of a log\n" * 150) for number in range(1, 6)]
    prompt = compose(view(taken=steps), factor=1.0, tokens_max=2_000)
    assert prompt.tokens <= 2_000
    cut = [turn.shortened for turn in prompt.turns]
    assert cut == sorted(cut, reverse=True)
    assert (cut[0], cut[-1]) == (True, False)
    assert "ACTION1" in prompt.turns[0].result
    assert "the ledger has all of it as action ACTION1" in prompt.turns[0].result
    assert list(prompt.shortened) == [turn.action for turn in prompt.turns if turn.shortened]
    assert not prompt.dropped


def test_one_result_that_is_larger_than_all_the_room_keeps_head_and_tail(view, taken):
    text = "HEAD " + "middle " * 50_000 + " TAIL"
    prompt = compose(view(taken=[_step(taken, 1, text)]), factor=1.0, tokens_max=1_500)
    assert prompt.tokens <= 1_500
    assert "HEAD" in prompt.turns[0].result
    assert "TAIL" in prompt.turns[0].result
    assert len(prompt.turns[0].result) > 1_000  # as much as there is room for, not a stub


def test_when_nothing_else_helps_the_oldest_steps_are_counted_only(view, taken):
    steps = [_step(taken, number, "ok") for number in range(1, 60)]
    prompt = compose(view(taken=steps), factor=1.0, tokens_max=1_200)
    assert prompt.tokens <= 1_200
    assert prompt.dropped + len(prompt.turns) == 59
    assert f"({prompt.dropped} earlier steps are left out here" in prompt.user
    assert prompt.turns[-1].action == "ACTION59"


def test_context_that_does_not_fit_is_sent_whole_or_not_at_all(view, section):
    large = view(sections=[section("instruction", "word " * 5_000, stable=True)])
    prompt = compose(large, factor=1.0, tokens_max=1_000)
    assert "word " * 5_000 in prompt.system
    assert prompt.tokens > 1_000  # which the reservation refuses, with both numbers


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.tuples(st.integers(0, 3_000), st.integers(0, 1_500)), max_size=12),
    alphabet=st.sampled_from(["word ", "\U0001f600", "äö", "a", "\x00", "\ud800", '"\\', "\n", "   "]),
    bound=st.integers(900, 6_000),
    factor=st.floats(1.0, 2.5),
)
def test_any_session_fits_its_bound_and_pinned_text_is_untouched(view, taken, sizes, alphabet, bound, factor):
    steps = [
        _step(taken, number, alphabet * result, alphabet * text) for number, (result, text) in enumerate(sizes, start=1)
    ]
    one = compose(view(taken=steps), factor=factor, tokens_max=bound)
    assert one == compose(view(taken=steps), factor=factor, tokens_max=bound)
    assert INSTRUCTION in one.system
    assert "At most 5 steps." in one.system
    least = compose(view(), factor=factor, tokens_max=bound).tokens
    if least + 60 * factor <= bound:
        assert one.tokens <= bound
    assert one.tokens == tokens.charged(one.counted, factor)
    assert {turn.action for turn in one.turns} <= {step.action for step in steps}
    json.dumps(one.messages()).encode()
