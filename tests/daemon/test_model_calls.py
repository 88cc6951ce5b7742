"""Model calls across sessions and restarts: caps and their warnings, providers that fail, counts that differ, receipts."""

from __future__ import annotations

import json

from tests.daemon.drawing import CONFIG, FALLBACK, TASK, VOTES, config, plan, write
from tests.daemon.planners import scripted_server as scripted
from tests.daemon.stage import Stage, events

from perdure.daemon.planners.circuits import FAILURES_MAX, Circuits
from perdure.daemon.planners.moves import Finish, Malformed
from perdure.state import projections


def writes(path: str) -> tuple[str, str]:
    return "write_file", json.dumps({"path": path, "text": "x", "confidence": 0.9})


async def test_the_draws_of_a_vote_are_calls_of_their_own_that_can_differ(stage: Stage, server) -> None:
    stage.write("perdure.toml", config(server.url))
    stage.write("policies/policy.yaml", VOTES)
    right = scripted.message(calls=[writes("right.md")])
    wrong = scripted.message(calls=[writes("wrong.md")])
    finish = scripted.message(calls=[("finish", '{"says": "done"}')])
    server.script[:] = [wrong, right, right, right, finish]
    async with stage.runtime() as runtime:
        assert (await stage.run(runtime, "report")).status == "unverified"
        (vote,) = events(runtime, "vote.held")
        assert (vote.body["draws"], vote.body["won"]) == (4, True)
        charged = [event.body["charged_tokens"] for event in events(runtime, "model.replied")]
        assert charged == [320] * 5
    temperatures = [asked.get("temperature") for asked in server.asked]
    assert temperatures == [0.0, 0.7, 0.7, 0.7, 0.0]
    assert len({json.dumps(asked["messages"]) for asked in server.asked[:4]}) == 1  # nobody sees another's draw
    assert (stage.directory / "right.md").exists()


async def test_one_call_gives_several_draws_where_the_server_can_and_their_prompt_is_paid_for_once(
    stage: Stage, server
) -> None:
    stage.write("perdure.toml", config(server.url) + "answers_per_call = 4\n")
    stage.write("policies/policy.yaml", VOTES.replace("ahead_by: 2", "ahead_by: 3"))
    wrong, right = writes("wrong.md"), writes("right.md")
    finish = scripted.message(calls=[("finish", '{"says": "done"}')])
    server.script[:] = [
        scripted.message(calls=[wrong]),
        scripted.answers(right, right),  # two are what it takes at the least
        scripted.answers(right, right, wrong),  # more than was asked for counts for nothing
        finish,
    ]
    async with stage.runtime() as runtime:
        assert (await stage.run(runtime, "report")).status == "unverified"
        (vote,) = events(runtime, "vote.held")
        assert (vote.body["draws"], vote.body["margin"], vote.body["won"]) == (5, 3, True)
        asked = [event.body for event in events(runtime, "model.requested")]
        assert [body["completion_cap"] for body in asked] == [200, 400, 400, 200]
        assert all(body["reserved_tokens"] == body["prompt_tokens"] + body["completion_cap"] for body in asked)
        charged = [event.body["charged_tokens"] for event in events(runtime, "model.replied")]
        assert charged == [320, 340, 360, 320]
    assert [body.get("n") for body in server.asked] == [None, 2, 2, None]
    assert (stage.directory / "right.md").exists()


async def test_unreadable_answers_are_no_votes(stage: Stage, server) -> None:
    stage.write("perdure.toml", config(server.url) + "answers_per_call = 4\n")
    stage.write("policies/policy.yaml", VOTES.replace("ahead_by: 2", "ahead_by: 4"))
    right = scripted.message(calls=[writes("right.md")])
    readable = {"index": 0, "message": {"role": "assistant", "content": "hm"}, "finish_reason": "stop"}
    half = scripted.message(choices=[readable, {"message": 7}])
    server.script[:] = [right, half, right, right, right, scripted.message(calls=[("finish", '{"says": "done"}')])]
    async with stage.runtime() as runtime:
        assert (await stage.run(runtime, "report")).status == "unverified"
        (vote,) = events(runtime, "vote.held")
        assert (vote.body["draws"], vote.body["flagged"], vote.body["margin"], vote.body["won"]) == (6, 2, 4, True)
    assert [body.get("n") for body in server.asked] == [None, 2, None, None, None, None]


async def test_a_server_that_does_not_know_several_answers_is_asked_for_one_at_a_time_from_then_on(
    stage: Stage, server
) -> None:
    """Some refuse `n`, which costs nothing, and some do not look at it. Nobody has to say which server this is."""
    stage.write("perdure.toml", config(server.url))
    stage.write("policies/policy.yaml", VOTES.replace("ahead_by: 2", "ahead_by: 3"))
    right, finish = scripted.message(calls=[writes("right.md")]), scripted.message(calls=[("finish", "{}")])
    refuses = scripted.raw(400, b'{"error": {"message": "only one completion choice is allowed"}}')
    for first in ([refuses, right], [right]):
        server.asked.clear()
        server.script[:] = [right, *first, right, right, right, right, finish]
        async with stage.runtime() as runtime:
            assert (await stage.run(runtime, "report")).status == "unverified"
            assert events(runtime, "vote.held")[-1].body["won"]
            assert all(event.body["charged_tokens"] == 320 for event in events(runtime, "model.replied"))
        asked = [body.get("n") for body in server.asked]
        assert asked[:2] == [None, 2]
        assert set(asked[2:]) == {None}


async def test_an_unreadable_answer_that_comes_first_takes_none_of_the_others_along(stage: Stage, server) -> None:
    stage.write("perdure.toml", config(server.url) + "answers_per_call = 4\n")
    stage.write("policies/policy.yaml", VOTES.replace("ahead_by: 2", "ahead_by: 3"))
    name, arguments = writes("right.md")
    call = {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}
    good = {"message": {"role": "assistant", "content": None, "tool_calls": [call]}, "finish_reason": "stop"}
    half = scripted.message(choices=[{"message": 7}, {"index": 1, **good}])
    right = scripted.message(calls=[(name, arguments)])
    server.script[:] = [right, half, right, scripted.message(calls=[("finish", '{"says": "done"}')])]
    async with stage.runtime() as runtime:
        assert (await stage.run(runtime, "report")).status == "unverified"
        (vote,) = events(runtime, "vote.held")
        assert (vote.body["draws"], vote.body["flagged"], vote.body["margin"], vote.body["won"]) == (4, 1, 3, True)
        replied = events(runtime, "model.replied")
        assert [event.body["status"] for event in replied] == ["replied"] * 4
        assert [event.body["charged_tokens"] for event in replied] == [320] * 4  # the usage of the call is known
        kept = runtime.ledger.reader.payload(replied[1].seq)
        assert kept["error"]
        assert kept["others"][0]["calls"] == [{"tool": name, "arguments": arguments}]


async def test_a_provider_that_keeps_failing_is_left_alone_also_after_a_restart(stage: Stage, server) -> None:
    stage.write("perdure.toml", config(server.url))
    server.script[:] = [scripted.raw(500, b"{}")]
    for _ in range(3):
        async with stage.runtime() as runtime:
            ending = await stage.run(runtime, "report")
            assert ending.status == "failed"
            assert "provider-failed" in projections.slots(runtime.ledger.reader, task="report", limit=1)[0].rule
    async with stage.runtime() as runtime:
        opened = events(runtime, "provider.circuit")
        assert [event.body["state"] for event in opened] == ["closed"] * 4 + ["open"]
        asked = len(server.asked)
        for _ in range(4):
            ending = await stage.run(runtime, "report")
            assert "left alone until" in ending.reason
        assert projections.paused(runtime.ledger.reader, "report") is None  # its wait ends by itself
        assert len(server.asked) == asked  # not asked, and nothing charged
        last = events(runtime, "model.replied")[-1]
        assert last.body["charged_tokens"] == 0
        stage.clock.forward(3_600)
        server.script[:] = [scripted.message(calls=[("finish", "{}")])]
        assert (await stage.run(runtime, "report")).status == "unverified"
        assert events(runtime, "provider.circuit")[-1].body["state"] == "closed"


def test_a_circuit_opens_for_longer_each_time_and_one_answer_closes_it() -> None:
    now = [0]
    circuits = Circuits(lambda: now[0])
    for _ in range(FAILURES_MAX - 1):
        circuits.failed("m")
    assert circuits.open_until("m") is None
    lengths = []
    for _ in range(6):
        circuits.failed("m")
        until = circuits.open_until("m")
        lengths.append((until - now[0]) // 1_000_000)
        now[0] = until
        assert circuits.open_until("m") is None  # one call may try
    assert lengths == [60, 120, 240, 480, 900, 900]
    circuits.answered("m")
    assert circuits.changes()[-1].state == "closed"
    circuits.failed("m")
    assert circuits.open_until("m") is None
    assert [change.state for change in circuits.changes()] == ["closed"]


async def test_a_provider_that_counts_more_is_an_event_and_its_factor_outlives_the_daemon(stage: Stage, server) -> None:
    stage.write("perdure.toml", config(server.url))
    usage = {"prompt_tokens": 1_300, "completion_tokens": 20, "total_tokens": 1_320}
    server.script[:] = [scripted.message(calls=[("finish", "{}")], usage=usage)]
    async with stage.runtime() as runtime:
        await stage.run(runtime, "report")
        (drifted,) = events(runtime, "tokens.drifted")
        assert drifted.body["reported"] == 1_300
        factor = drifted.body["factor"]
        assert factor >= 1_300 / drifted.body["counted"]
        before = events(runtime, "model.requested")[-1].body["prompt_tokens"]
    async with stage.runtime() as runtime:
        planner = runtime.plan(runtime.tasks["report"])
        assert planner.factor == factor
        await stage.run(runtime, "report")
        assert events(runtime, "model.requested")[-1].body["prompt_tokens"] > before


BUDGETS = """
[budgets]
tokens_per_hour = 1000
[budgets.tasks.report]
tokens_per_month = 700
"""


async def test_caps_warn_at_80_percent_once_refuse_calls_then_slots_and_survive_a_restart(stage: Stage) -> None:
    stage.write("perdure.toml", CONFIG.replace("[memory]", BUDGETS + "[memory]"))

    def warned(runtime) -> list[str]:
        alarms = events(runtime, "alarm.raised")
        return [event.body["about"] for event in alarms if event.body["code"] == "budget-warning"]

    for number in range(6):
        async with stage.runtime() as runtime:  # 110 tokens each
            plan(runtime, lambda view: Finish(says=""))
            assert (await stage.run(runtime, "report")).status == "unverified"
            assert warned(runtime) == (["task report in any 30 days"] if number == 5 else [])
    async with stage.runtime() as runtime:
        plan(runtime, lambda view: Finish(says=""))
        ending = await stage.run(runtime, "report")  # 660 are used: the next call could take 150
        assert ending.status == "limited"
        assert "660" in ending.reason
        assert "700" in ending.reason
        plan(runtime, lambda view: Finish(says=""), prompt_tokens=20, completion_cap=20)
        assert (await stage.run(runtime, "report")).status == "unverified"
        plan(runtime, lambda view: Finish(says=""), prompt_tokens=0, completion_cap=10)
        assert (await stage.run(runtime, "report")).status == "unverified"
        assert len(warned(runtime)) == 1
        from perdure.daemon import operations

        operations.ask_for_session(runtime.ledger, runtime.now(), 0, task="report")
        assert await stage.run_open_slots(runtime) == []
        slot = projections.slots(runtime.ledger.reader, task="report", limit=1)[0]
        assert slot.outcome == "refused"
        assert slot.rule == "budgets: 700 of 700 tokens for task report in any 30 days are used"
    stage.clock.forward(31 * 86_400)
    async with stage.runtime() as runtime:
        plan(runtime, lambda view: Finish(says=""))
        assert (await stage.run(runtime, "report")).status == "unverified"


async def test_a_cap_that_ends_three_sessions_running_does_not_open_the_circuit_breaker(stage: Stage) -> None:
    stage.write("perdure.toml", CONFIG.replace("[memory]", "[budgets]\ntokens_per_day = 200\n[memory]"))
    async with stage.runtime() as runtime:
        plan(runtime, lambda view: Finish(says=""))
        endings = [(await stage.run(runtime, "report")).status for _ in range(5)]
        assert endings == ["unverified", *["limited"] * 4]
        assert projections.paused(runtime.ledger.reader, "report") is None


async def test_what_was_shortened_for_a_call_has_a_receipt(stage: Stage, server) -> None:
    stage.write("perdure.toml", config(server.url))
    stage.write("tasks/report.md", TASK.replace("steps: 4, context: 4000", "steps: 9, context: 2000"))
    for number in range(6):
        stage.write(f"inbox/{number}.log", f"line {number} " * 300)
    reads = [scripted.message(calls=[("read_file", json.dumps({"path": f"inbox/{n}.log"}))]) for n in range(6)]
    server.script[:] = [*reads, scripted.message(calls=[("finish", "{}")])]
    async with stage.runtime() as runtime:
        await stage.run(runtime, "report")
        receipts = events(runtime, "context.shortened")
        assert receipts
        calls = {event.body["call"]: event.body for event in events(runtime, "model.requested")}
        for receipt in receipts:
            assert calls[receipt.body["call"]]["prompt_tokens"] == receipt.body["prompt_tokens"] <= 2000
            actions = runtime.ledger.reader.payload(receipt.seq)["actions"]
            assert len(actions) == receipt.body["shortened"]
            for action in actions:
                assert projections.action(runtime.ledger.reader, action) is not None


async def test_a_step_without_any_valid_answer_costs_what_it_cost_and_does_nothing(stage: Stage) -> None:
    async with stage.runtime() as runtime:
        plan(runtime, lambda view: write("../outside.md"))
        ending = await stage.run(runtime, "report")
        assert ending.status == "failed"
        assert not events(runtime, "action.intended")
        assert projections.open_calls(runtime.ledger.reader) == []


async def test_a_missing_key_is_refused_before_anything_is_reserved(stage: Stage) -> None:
    stage.write("perdure.toml", CONFIG + 'key = "NO_SUCH_KEY"\n')
    async with stage.runtime() as runtime:
        ending = await stage.run(runtime, "report")
        assert ending.status == "failed"
        assert "NO_SUCH_KEY" in ending.reason
        assert events(runtime, "model.requested") == []
        assert events(runtime, "session.closed")[-1].body["tokens"] == 0


async def test_a_fallback_that_cannot_even_be_asked_is_settled_as_a_call_that_cost_nothing(
    stage: Stage, server
) -> None:
    stage.write("perdure.toml", config(server.url) + FALLBACK)
    server.script[:] = [scripted.raw(401, b"{}")]  # not charged for, so that the fallback is asked
    async with stage.runtime() as runtime:
        ending = await stage.run(runtime, "report")
        assert ending.status == "failed"
        assert "NO_SUCH_KEY" in ending.reason
        (asked,), (replied,) = events(runtime, "model.requested"), events(runtime, "model.replied")
        assert (replied.body["call"], replied.body["status"]) == (asked.body["call"], "failed")
        assert (replied.body["charged_tokens"], replied.body["charged_usd"]) == (0, 0)
        assert "NO_SUCH_KEY" in runtime.ledger.reader.payload(replied.seq)["error"]
        assert events(runtime, "session.closed")[-1].body["tokens"] == 0


async def test_what_is_proposed_beyond_the_bound_on_steps_is_no_step(stage: Stage) -> None:
    async with stage.runtime() as runtime:
        plan(runtime, lambda view: write(f"{len(view.taken)}.md"))
        ending = await stage.run(runtime, "report")
        assert (ending.status, ending.reason) == ("limited", "all 4 steps are used")
        assert events(runtime, "session.closed")[-1].body["steps"] == 4
        assert len(events(runtime, "action.intended")) == 4
        (rejected,) = events(runtime, "step.rejected")
        assert (rejected.body["reason"], rejected.body["step"]) == ("no-steps-left", 4)


async def test_what_is_no_proposal_beyond_the_bound_on_steps_is_no_step_either(stage: Stage) -> None:
    async with stage.runtime() as runtime:
        garbage = Malformed(reason="too-long", detail="the answer reached its tokens without a tool call")
        plan(runtime, lambda view: write(f"{len(view.taken)}.md") if len(view.taken) < 4 else garbage)
        ending = await stage.run(runtime, "report")
        assert ending.status == "failed"
        assert events(runtime, "session.closed")[-1].body["steps"] == 4
        assert events(runtime, "step.rejected")[-1].body["step"] == 4
