"""Reservations never overshoot, whatever order sessions, answers, time-outs and refunds come in."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from perdure.daemon.budget import WINDOW_US, Budget, Cap, Caps, Charge
from perdure.daemon.planners.moves import Finish, Malformed, Reply, Request, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    steps: int = 10
    context: int = 8_000
    tokens: int = 20_000
    minutes: float = 10.0
    cost_usd: float | None = 0.50


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    steps: int = 0
    tokens: int = 0
    cost_usd: float = 0.0
    duration_us: int | None = 0


def _request(prompt=1_000, answer=500, usd=0.01):
    return Request(model="m", prompt_tokens=prompt, completion_cap=answer, usd_max=usd, body=None)


def _reply(inputs=None, outputs=None, usd=0.0, failed=None):
    usage = None if inputs is None else Usage(input_tokens=inputs, output_tokens=outputs)
    move = Malformed(reason="provider-failed", detail="x") if failed else Finish()
    return Reply(move=move, usage=usage, usd=usd, failed=failed)


def test_what_was_not_used_returns():
    budget = Budget(Bounds())
    assert budget.reserve(_request()) is None
    assert (budget.tokens_left, budget.usd_left) == (18_500, 0.49)
    charged = budget.settle(_reply(900, 100, 0.002))
    assert (charged.tokens, charged.returned, charged.over) == (1_000, 500, 0)
    assert (budget.tokens_left, budget.tokens_used, budget.usd_left) == (19_000, 1_000, 0.498)


@pytest.mark.parametrize("reply", [_reply(failed="timeout"), _reply(failed="failed"), _reply(None), _reply(900, None)])
def test_a_call_that_nobody_counted_is_charged_in_full(reply):
    budget = Budget(Bounds())
    budget.reserve(_request())
    charged = budget.settle(reply)
    assert (charged.tokens, charged.usd, charged.returned) == (1_500, 0.01, 0)


def test_a_call_that_the_provider_never_took_costs_nothing():
    budget = Budget(Bounds())
    budget.reserve(_request())
    assert budget.settle(_reply(0, 0, failed="failed")).tokens == 0
    assert budget.tokens_left == 20_000


def test_a_higher_count_by_the_provider_is_charged_and_told():
    budget = Budget(Bounds())
    budget.reserve(_request())
    charged = budget.settle(_reply(1_800, 500, 0.05))
    assert (charged.tokens, charged.usd, charged.over) == (2_300, 0.05, 800)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (_request(8_001, 0), "the prompt has 8001 tokens; the bound on one call (context) is 8000"),
        (_request(8_000, 12_001), "may take 20001 tokens (8000 prompt + 12001 answer); 20000 of 20000 are left"),
        (_request(usd=0.51), "may cost 0.5100 USD; 0.5000 of 0.5 USD are left"),
    ],
)
def test_a_refusal_has_both_numbers_and_changes_nothing(request_, words):
    budget = Budget(Bounds())
    before = budget.bounds()
    assert words in budget.reserve(request_)
    assert budget.bounds() == before


def test_a_resumed_session_keeps_what_was_left():
    earlier = [
        Row(steps=3, tokens=5_000, cost_usd=0.2, duration_us=60_000_000),
        Row(steps=1, tokens=1_000, duration_us=None),
    ]
    budget = Budget.remaining(Bounds(), earlier)
    assert budget.bounds() == {"steps": 6, "context": 8_000, "tokens": 14_000, "minutes": 9.0, "cost_usd": 0.3}
    budget.use_step()
    assert (budget.steps_used, budget.steps_left) == (1, 5)


def test_settling_names_its_own_reservation():
    budget = Budget(Bounds())
    small, large = _request(100, 100), _request(5_000, 100)
    budget.reserve(small)
    budget.reserve(large)
    budget.settle(_reply(failed="timeout"), large)
    assert budget.tokens_used == 5_100 + 200
    with pytest.raises(AssertionError):
        budget.settle(_reply(1, 1), large)


def test_caps_hold_over_sessions_and_a_restart():
    now = 10**15
    caps = [Cap(window="day", tokens=10_000), Cap(window="hour", task="a", tokens=2_000), Cap(window="month", usd=1.0)]
    history = [
        Charge(at=now - WINDOW_US["hour"] - 1, task="a", tokens=7_000, usd=0.2),
        Charge(at=now - 5, task="a", tokens=500, usd=0),
    ]
    shared = Caps(caps, now=lambda: now, history=history)
    a, b = Budget(Bounds(), caps=shared, task="a"), Budget(Bounds(), caps=shared, task="b")
    assert a.reserve(_request(1_000, 500)) is None
    assert "cap of 2000 for task a in any 60 minutes: 2000 are used" in a.reserve(_request(1, 0))
    assert b.reserve(_request(1_000, 0)) is None
    assert "cap of 10000 for all tasks in any 24 hours" in b.reserve(_request(1, 0))
    assert any("10000 of 10000 tokens" in words for words in shared.warnings())
    a.settle(_reply(100, 100))
    assert b.reserve(_request(1_000, 300)) is None
    assert "1 USD" in Budget(Bounds(cost_usd=None), caps=shared, task="c").reserve(_request(0, 0, usd=0.80))


def test_a_cap_lets_go_when_its_window_has_passed():
    clock = [10**15]
    shared = Caps([Cap(window="hour", tokens=100)], now=lambda: clock[0])
    budget = Budget(Bounds(), caps=shared, task="a")
    budget.reserve(_request(60, 40))
    budget.settle(_reply(60, 40))
    assert budget.reserve(_request(1, 0)) is not None
    clock[0] += WINDOW_US["hour"]
    assert budget.reserve(_request(60, 40)) is None


def test_a_call_counts_from_its_request_before_and_after_a_restart():
    """It is asked for just before midnight and answered after: whoever counts, it leaves the window at the same moment."""
    midnight, clock = 20_000 * WINDOW_US["day"], [0]
    clock[0] = midnight - 10
    cap = Cap(window="day", tokens=100)
    running = Caps([cap], now=lambda: clock[0])
    budget = Budget(Bounds(), caps=running, task="a")
    budget.reserve(_request(60, 40))
    clock[0] = midnight + 30 * 60_000_000
    budget.settle(_reply(60, 40))
    restarted = Caps([cap], now=lambda: clock[0], history=[Charge(at=midnight - 10, task="a", tokens=100, usd=0)])
    for moment in (clock[0], midnight + WINDOW_US["day"] - 11, midnight + WINDOW_US["day"] - 10):
        clock[0] = moment
        assert (
            (running.used_up("a") is None)
            == (restarted.used_up("a") is None)
            == (moment > midnight + WINDOW_US["day"] - 11)
        )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.000_000_001, 0.5), min_size=1, max_size=50))
def test_rounding_never_lets_a_cost_pass_its_bound(costs):
    budget = Budget(Bounds(tokens=10**9, cost_usd=0.5))
    total = 0.0
    for usd in costs:
        if budget.reserve(_request(1, 1, usd)) is None:
            budget.settle(_reply(1, 1, usd))
            total += usd
    assert total <= 0.5 + 1e-12


class Interleaving(RuleBasedStateMachine):
    """Several sessions reserve, are answered, time out and end in any order while the clock runs; the provider counts at
    most what was reserved. An independent account says what was used."""

    @initialize(tokens=st.integers(100, 3_000), day=st.integers(100, 5_000), usd=st.floats(0.01, 1.0))
    def start(self, tokens, day, usd):
        self.now = 10**15
        self.bounds = Bounds(tokens=tokens, cost_usd=usd)
        self.day, self.charges, self.open = day, [], []
        self.caps = Caps(
            [Cap(window="day", tokens=day), Cap(window="hour", task="1", tokens=day // 2)], now=lambda: self.now
        )
        self.budgets = [Budget(self.bounds, caps=self.caps, task=str(n % 2)) for n in range(3)]
        self.account = [[0, 0.0] for _ in self.budgets]

    @rule(who=st.integers(0, 2), prompt=st.integers(0, 2_000), answer=st.integers(0, 500), usd=st.floats(0, 0.4))
    def reserve(self, who, prompt, answer, usd):
        request = _request(prompt, answer, usd)
        if self.budgets[who].reserve(request) is None:
            self.open.append((who, request))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def end_a_call(self, data):
        who, request = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        kind = data.draw(st.sampled_from(["replied", "timeout", "unprocessed"]))
        if kind == "replied":
            inputs, outputs = (
                data.draw(st.integers(0, request.prompt_tokens)),
                data.draw(st.integers(0, request.completion_cap)),
            )
            reply = _reply(inputs, outputs, request.usd_max * data.draw(st.floats(0, 1)))
        else:
            reply = _reply(failed="timeout") if kind == "timeout" else _reply(0, 0, failed="failed")
        charged = self.budgets[who].settle(reply, request)
        assert charged.over == 0
        self.account[who][0] += charged.tokens
        self.account[who][1] += charged.usd
        self.charges.append((self.now, who, charged.tokens))

    @rule(seconds=st.integers(1, 40_000))
    def time_passes(self, seconds):
        self.now += seconds * 1_000_000

    @invariant()
    def no_bound_is_passed(self):
        if not hasattr(self, "budgets"):
            return
        for who, budget in enumerate(self.budgets):
            held = sum(r.prompt_tokens + r.completion_cap for owner, r in self.open if owner == who)
            used = self.account[who][0] + held
            assert used == budget.tokens_used <= self.bounds.tokens
            assert budget.tokens_left == self.bounds.tokens - used
            assert self.account[who][1] <= self.bounds.cost_usd + 1e-9
        for length, limit, whom in ((WINDOW_US["day"], self.day, (0, 1, 2)), (WINDOW_US["hour"], self.day // 2, (1,))):
            recent = sum(tokens for at, who, tokens in self.charges if at > self.now - length and who in whom)
            assert recent <= limit


Interleaving.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestInterleaving = Interleaving.TestCase
