"""The factor of a model is learned from what its provider counted, and never falls below the safe one."""

from perdure.memory.factors import family, learned_factor, safe_factor
from perdure.state import events as e


def call(past, session, number, model, ours, counted, factor):
    past.ledger.commit(
        e.ContextAssembled(
            session=session, task="triage", tokens=ours, budget=9_000, factor=factor, digest="sha256:c", payload={}
        )
    )
    past.ledger.commit(
        e.ModelRequested(
            session=session, task="triage", call=f"C{number}", model=model, purpose="propose", prompt_tokens=int(ours * factor),
            completion_cap=500, reserved_tokens=int(ours * factor) + 500, reserved_usd=0.01, payload={},
        )
    )  # fmt: skip
    past.ledger.commit(
        e.ModelReplied(
            session=session, task="triage", call=f"C{number}", status="replied", input_tokens=counted, output_tokens=5, charged_tokens=counted,
            charged_usd=0.0, payload={},
        )
    )  # fmt: skip


def test_families():
    assert {family(name) for name in ("anthropic:claude-sonnet-4-5", "claude-3-haiku", "proxy/claude-opus")} == {
        "claude"
    }
    assert family("gpt-4o") == "gpt"


def test_a_provider_that_counts_more_raises_the_factor_and_one_that_counts_less_does_not_lower_it(past):
    number = 0

    def tell(model, ours, counted):
        def step(session, _step, _task):
            nonlocal number
            number += 1
            call(past, session, number, model, ours, counted, 1.2)

        return step

    past.session(tell("claude-sonnet-4-5", 1_000, 1_500), tell("gpt-4o", 1_000, 900), tell("gpt-4o", 20, 90))
    assert learned_factor(past.ledger.reader, "anthropic:claude-opus-4") == 1.53
    assert learned_factor(past.ledger.reader, "gpt-5") == safe_factor("gpt-5")
    assert learned_factor(past.ledger.reader, "gpt-5", default=1.1) == 1.1
    assert learned_factor(past.ledger.reader, "qwen3") == safe_factor("qwen3")
