"""A thousand sessions over 165 days: what people said and which facts hold is still right at the end."""

import random

import pytest

from perdure.memory.context import ContextRequest, Pinned

DAY = 86_400_000_000
SESSIONS = 1_000
DAYS = 165
PLANTED = 20


@pytest.mark.slow
async def test_nothing_drifts_in_a_thousand_sessions(past):
    chance = random.Random(7)
    days = sorted(chance.sample(range(SESSIONS), PLANTED * 2 + PLANTED // 2))
    plant = chance.sample(["pin"] * PLANTED + ["fact"] * PLANTED + ["supersede"] * (PLANTED // 2), len(days))
    plan = dict(zip(days, plant, strict=True))
    pins: list[str] = []
    facts: dict[str, str] = {}
    superseded: list[tuple[str, str]] = []
    memory = past.memory()
    costs = []
    for number in range(SESSIONS):
        steps = [
            past.action(
                "read_file",
                {"path": f"inbox/{number}.log"},
                f"{chance.randrange(10_000)} lines, {chance.randrange(9)} errors",
            )
        ]
        match plan.get(number):
            case "pin":
                pins.append(f"Standing rule {len(pins)}: never touch host-{chance.randrange(10**6)}.")
                past.pin(pins[-1], task="triage")
            case "fact":
                facts[f"host-{len(facts)}"] = f"owner-{chance.randrange(10**6)}"
                steps.append(past.remember(f"host-{len(facts) - 1}", "owner", facts[f"host-{len(facts) - 1}"]))
            case "supersede" if facts:
                name = chance.choice(sorted(facts))
                superseded.append((name, facts[name]))
                facts[name] = f"owner-{chance.randrange(10**6)}"
                steps.append(past.remember(name, "owner", facts[name]))
        past.session(*steps, says=f"session {number}: nothing special")
        past.at += DAYS * DAY // SESSIONS
        receipt = await memory.compact("triage", scope="triage")
        costs.append(receipt.events)
    assert len(pins) == PLANTED
    assert len(facts) == PLANTED
    assert superseded
    for name, owner in facts.items():
        context = await memory.assemble(
            ContextRequest(
                task="triage", session="S", scope="triage", query=f"who owns {name}?", budget=4_000, overhead=300, factor=1.2, now=past.at,
                pinned=[Pinned(kind="instruction", text="Answer.")],
            )
        )  # fmt: skip
        assert context.tokens <= 4_000
        assert all(pin in context.text for pin in pins)
        (held,) = [section for section in context.sections if section.name == "facts"]
        assert f"{name} — owner: {owner} (since" in held.text
        for other, old in superseded:
            assert f"{other} — owner: {old}" not in held.text
            assert not any(
                f"{other} — owner: {old}" in line and "no longer so" not in line for line in context.text.splitlines()
            )
    for name, old in superseded:
        current = await memory.facts("triage", name, "owner")
        assert [fact.value for fact in current] == [facts[name]]
        every = await memory.facts("triage", name, "owner", current=False)
        assert old in {fact.value for fact in every if fact.standing == "superseded" and fact.valid_to is not None}
    # The cost follows what is new, not the history: no receipt speaks of more events than its session (and its receipt) made.
    assert max(costs[1:]) <= 20
    assert memory._store.summaries("triage", "month")
    await memory.close()
