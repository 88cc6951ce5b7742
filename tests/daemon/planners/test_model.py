"""The model planner against a real server, through the real client: whatever is answered becomes a move, and no exception."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest
from tests.daemon.planners import scripted_server as scripted

from perdure.daemon.budget import Budget
from perdure.daemon.config import ModelConfig
from perdure.daemon.planners.model import ModelPlanner
from perdure.daemon.planners.moves import Finish, Malformed, Proposal, Usage
from perdure.errors import PerdureError

TASK = """---
name: t
planner: model
tools: [read_file, write_file, notify]
bounds: {steps: 5, context: 4000, tokens: 20000, minutes: 5, cost_usd: 0.5}
---
Read inbox/a.log and write reports/today.md.
"""
FREE = {"input": 0, "output": 0}
KEY = "sk-very-secret-1234567890"


@pytest.fixture
def planner(server, task_from, tmp_path):
    def make(**settings):
        values = {
            "name": "scripted",
            "base_url": server.url,
            "prices": FREE,
            "completion_tokens": 200,
            "seconds_max": 20.0,
            **settings,
        }
        config = ModelConfig.model_validate(values, context={"workspace": tmp_path})
        return ModelPlanner(config, task_from(TASK))

    return make


@pytest.fixture
def view(view_of, spec, section):
    def make(**parts):
        tools = [
            spec("read_file", ("path",)),
            spec("write_file", ("path", "text")),
            spec(
                "notify",
                ("text",),
                properties={"text": {"type": "string"}, "confidence": {"type": "string"}, "n": {"type": "integer"}},
            ),
        ]
        sections = [
            section("instruction", "Read inbox/a.log and write reports/today.md.", stable=True),
            section("recalled", "198.51.100.4 was seen"),
        ]
        return view_of(**{"tools": tools, "sections": sections, **parts})

    return make


def _ask(planner, view, seconds=20.0):
    return asyncio.run(planner.propose(view, planner.request(view), seconds))


CALL = scripted.message("I look.", [("read_file", '{"path": "inbox/a.log", "confidence": 0.9}')])


def test_tool_call_becomes_a_proposal(server, planner, view):
    server.script = [CALL]
    reply = _ask(planner(), view())
    assert reply.move == Proposal(
        tool="read_file",
        args={"path": "inbox/a.log"},
        provenance={"path": ("instruction", "model")},
        confidence=0.9,
        says="I look.",
    )
    assert reply.usage == Usage(input_tokens=300, output_tokens=20)
    assert reply.failed is None
    assert reply.raw["calls"] == [{"tool": "read_file", "arguments": '{"path": "inbox/a.log", "confidence": 0.9}'}]


def test_what_is_sent_is_what_was_reserved(server, planner, view):
    server.script = [CALL]
    asked = planner(temperature=0.3)
    request = asked.request(view())
    assert request == asked.request(view())
    asyncio.run(asked.propose(view(), request, 20.0))
    [body] = server.asked
    assert body["max_tokens"] == 200 == request.completion_cap
    assert body["temperature"] == 0.3
    assert body["tool_choice"] == "required"
    assert [one["function"]["name"] for one in body["tools"]] == ["read_file", "write_file", "notify", "finish"]
    assert [one["role"] for one in body["messages"]] == ["system", "user"]
    assert body["messages"][0]["content"] == request.body["messages"][0]["content"]
    assert body["messages"][1]["content"] == request.body["messages"][1]["content"]
    assert [one["function"]["parameters"] for one in body["tools"]] == [
        one["parameters"] for one in request.body["tools"]
    ]


def test_finish_ends_with_words_and_saved_values(server, planner, view):
    server.script = [scripted.message(None, [("finish", '{"says": "Done.", "saved": {"offset": 7}}')])]
    assert _ask(planner(), view()).move == Finish(says="Done.", saved={"offset": 7})


def test_steps_of_the_session_go_out_as_calls_and_results(server, planner, view, taken):
    server.script = [CALL]
    first = Proposal(tool="read_file", args={"path": "a"}, provenance={}, confidence=0.7)
    second = Proposal(tool="notify", args={"text": "x"}, provenance={}, confidence=0.7)
    steps = [
        taken(first, "log line"),
        taken(second, None, status=None, decision="deny", reason="rule 'quiet' (policies/a.yaml:3)"),
    ]
    _ask(planner(), view(taken=steps, rejected="no tool 'x' is offered"))
    sent = server.asked[0]["messages"]
    assert [one["role"] for one in sent] == ["system", "user", "assistant", "tool", "assistant", "tool", "user"]
    assert sent[2]["tool_calls"][0]["function"] == {"name": "read_file", "arguments": '{"path":"a"}'}
    assert json.loads(sent[3]["content"]) == {"status": "succeeded", "result": "log line"}
    assert json.loads(sent[5]["content"]) == {"status": "refused", "reason": "rule 'quiet' (policies/a.yaml:3)"}
    assert "no tool 'x' is offered" in sent[6]["content"]


DEEP = '{"path": ' + "[" * 5_000 + "]" * 5_000 + "}"


@pytest.mark.parametrize(
    ("answer", "reason", "words"),
    [
        (scripted.message(""), "empty", "the answer is empty"),
        (scripted.message(None), "empty", "the answer is empty"),
        (scripted.message("   \n"), "empty", "the answer is empty"),
        (scripted.message("I would read the file."), "garbage", "begins: 'I would read the file.'"),
        (scripted.message('{"tool": "read_file"}'), "garbage", "without a tool call"),
        (scripted.message("bla bla", finish="length"), "too-long", "reached its 200 tokens"),
        (
            scripted.message(None, [("shell", "{}")]),
            "unknown-tool",
            "offered are finish, notify, read_file, write_file",
        ),
        (scripted.message(None, [("", "{}")]), "unknown-tool", "offered are"),
        (scripted.message(None, [("read_file", '{"path": "a"')]), "bad-arguments", "not valid JSON"),
        (scripted.message(None, [("read_file", '{"path": "a"')], finish="length"), "too-long", "cut off at 200 tokens"),
        (scripted.message(None, [("read_file", "[1]")]), "bad-arguments", "not a JSON object"),
        (scripted.message(None, [("read_file", '"a"')]), "bad-arguments", "not a JSON object"),
        (scripted.message(None, [("read_file", "")]), "bad-arguments", "'path' is a required property"),
        (
            scripted.message(None, [("read_file", '{"path": 7}')]),
            "bad-arguments",
            "read_file.path: \"7 is not of type 'string'\"",
        ),
        (scripted.message(None, [("read_file", '{"path": "a", "mode": "x"}')]), "bad-arguments", "unexpected"),
        (scripted.message(None, [("notify", '{"text": "a", "n": 1e400}')]), "bad-arguments", "JSON cannot hold"),
        (scripted.message(None, [("notify", '{"text": "a", "n": NaN}')]), "bad-arguments", "NaN is not JSON"),
        (
            scripted.message(None, [("notify", '{"text": "a", "n": 99999999999999999999}')]),
            "bad-arguments",
            "too large",
        ),
        (scripted.message(None, [("read_file", r'{"path": "a\ud800"}')]), "bad-arguments", "no text may hold"),
        (scripted.message(None, [("read_file", r'{"path": "a\u0000b"}')]), "bad-arguments", "no text may hold"),
        (scripted.message(None, [("read_file", DEEP)]), "too-long", "the cap is 200 tokens"),
        (
            scripted.message(None, [("read_file", '{"path": ' + "[" * 500 + "]" * 500 + "}")]),
            "bad-arguments",
            "nested deeper",
        ),
        (
            scripted.message(None, [("write_file", json.dumps({"path": "a", "text": "x" * 10_000}))]),
            "too-long",
            "10025 characters",
        ),
        (scripted.message(None, [("finish", '{"says": 7}')]), "bad-arguments", "finish.says"),
    ],
)
def test_whatever_the_model_says_is_told_back_and_never_raises(server, planner, view, answer, reason, words):
    server.script = [answer]
    reply = _ask(planner(), view())
    assert isinstance(reply.move, Malformed)
    assert (reply.move.reason, reply.failed) == (reason, None)
    assert words in reply.move.detail
    assert len(reply.move.detail) < 500
    assert reply.usage == Usage(input_tokens=300, output_tokens=20)


@pytest.mark.parametrize(
    "answer",
    [
        scripted.raw(200, b""),
        scripted.raw(200, b"not json at all"),
        scripted.raw(200, b"<html>proxy</html>", content_type="text/html"),
        scripted.raw(200, b"{}"),
        scripted.raw(200, b"[]"),
        scripted.raw(200, b"null"),
        scripted.raw(200, b'{"choices": []}'),
        scripted.raw(200, b'{"choices": [{"message": null}]}'),
        scripted.raw(200, b'{"choices": [{"index": 0, "message": {"role": "assistant", "tool_calls": "x"}}]}'),
        scripted.raw(200, b'\xff\xfe{"choices": []}'),
        scripted.raw(200, b"[" * 100_000),
        scripted.message(None, [{"id": None, "type": "function", "function": None}]),
        scripted.message(None, [{"id": "c", "type": "nonsense"}]),
        scripted.raw(500, b'{"error": {"message": "boom"}}'),
        scripted.raw(500, b"boom"),
        scripted.raw(204, b""),
        scripted.hang_up,
        scripted.endless,
    ],
)
def test_broken_providers_fail_and_are_charged_in_full(server, planner, view, answer):
    server.script = [answer]
    asked = planner()
    request = asked.request(view())
    budget = Budget(asked._task.bounds)
    assert budget.reserve(request) is None
    reply = asyncio.run(asked.propose(view(), request, 20.0))
    assert isinstance(reply.move, Malformed)
    charged = budget.settle(reply)
    if reply.failed is not None:
        assert reply.move.reason == "provider-failed"
        assert charged.tokens == request.prompt_tokens + request.completion_cap
    json.dumps(reply.raw)
    assert len(server.asked) == 1  # nothing that may have been charged is tried again


def test_an_answer_without_choices_is_told_as_that(server, planner, view):
    server.script = [scripted.message(choices=[])]
    reply = _ask(planner(), view())
    assert reply.failed == "failed"
    assert "the answer holds no choices" in reply.move.detail


def test_an_answer_of_another_form_is_told_in_words_about_the_answer(server, planner, view):
    server.script = [scripted.message(choices=None)]
    reply = _ask(planner(), view())
    assert reply.failed == "failed"
    assert reply.move.detail.endswith("the answer is not what the API promises: choices: Input should be a valid list")


def test_too_late_is_a_timeout_charged_in_full(server, planner, view):
    server.script = [scripted.silence]
    reply = _ask(planner(), view(), seconds=0.3)
    assert reply.failed == "timeout"
    assert reply.usage is None
    assert reply.move.reason == "provider-timeout"


@pytest.mark.parametrize("status", [429, 503])
def test_busy_provider_is_asked_again_within_the_same_reservation(server, planner, view, status):
    busy = scripted.raw(status, b'{"error": {"message": "later"}}', retry_after_ms="1")
    server.script = [busy, busy, CALL]
    reply = _ask(planner(), view())
    assert isinstance(reply.move, Proposal)
    assert len(server.asked) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_rejected_request_costs_nothing_and_is_not_repeated(server, planner, view, status):
    server.script = [scripted.raw(status, b'{"error": {"message": "no"}}')]
    reply = _ask(planner(), view())
    assert (reply.failed, reply.usage) == ("failed", Usage(input_tokens=0, output_tokens=0))
    assert len(server.asked) == 1


def test_provider_that_is_not_there_costs_nothing_and_the_fallback_answers(server, planner, view):
    server.script = [CALL]
    with scripted.serving() as gone:
        nowhere = gone.url
    fallback = {"name": "second", "base_url": server.url, "prices": FREE, "completion_tokens": 300, "factor": 2.0}
    asked = planner(name="first", base_url=nowhere, fallback=fallback)
    request = asked.request(view())
    assert request.completion_cap == 300  # the reservation covers whoever answers
    assert asked.factor == 2.0
    reply = asyncio.run(asked.propose(view(), request, 20.0))
    assert isinstance(reply.move, Proposal)
    assert server.asked[0]["model"] == "second"
    alone = _ask(planner(base_url=nowhere), view())
    assert (alone.failed, alone.usage) == ("failed", Usage(input_tokens=0, output_tokens=0))


def test_first_of_several_calls_is_taken_and_the_rest_told(server, planner, view):
    server.script = [
        scripted.message(
            None, [("read_file", '{"path": "a"}'), ("write_file", '{"path": "b", "text": "c"}'), ("x", "")]
        )
    ]
    move = _ask(planner(), view()).move
    assert (move.tool, move.says) == ("read_file", "(2 more tool calls in the same answer ignored)")


@pytest.mark.parametrize(
    ("said", "confidence"),
    [("0.25", 0.25), ("1", 1.0), ("0", 0.0), ("1.5", 0.7), ("-1", 0.7), ('"high"', 0.7), ("true", 0.7), ("null", 0.7)],
)
def test_confidence_is_the_models_own_or_the_prior(server, planner, view, said, confidence):
    server.script = [scripted.message(None, [("read_file", f'{{"path": "a", "confidence": {said}}}')])]
    move = _ask(planner(), view()).move
    assert (move.args, move.confidence) == ({"path": "a"}, confidence)


def test_tool_with_an_argument_called_confidence_keeps_it(server, planner, view):
    server.script = [
        scripted.message(None, [("notify", '{"text": "a", "confidence": "mine", "planner_confidence": 0.4}')])
    ]
    move = _ask(planner(), view()).move
    assert (move.args, move.confidence) == ({"text": "a", "confidence": "mine"}, 0.4)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        {"prompt_tokens": -5, "completion_tokens": 10**18, "total_tokens": 1},
    ],
)
def test_usage_that_is_missing_or_absurd_is_charged_in_full(server, planner, view, usage):
    server.script = [scripted.message(None, [("read_file", '{"path": "a"}')], usage=usage)]
    asked = planner()
    request = asked.request(view())
    budget = Budget(asked._task.bounds)
    budget.reserve(request)
    reply = asyncio.run(asked.propose(view(), request, 20.0))
    assert budget.settle(reply).tokens == request.prompt_tokens + request.completion_cap


def test_provider_that_counts_more_raises_the_factor(server, planner, view):
    asked = planner()
    before = asked.request(view())
    told = {"prompt_tokens": before.prompt_tokens * 2, "completion_tokens": 5, "total_tokens": 1}
    server.script = [scripted.message(None, [("read_file", '{"path": "a"}')], usage=told)]
    asyncio.run(asked.propose(view(), before, 20.0))
    assert asked.request(view()).prompt_tokens >= told["prompt_tokens"]


# -- the key ------------------------------------------------------------------------------------------------------------


def test_key_goes_to_the_provider_and_nowhere_else(server, planner, view, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    echo = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}).encode()
    leak = scripted.message(f"the key is {KEY}")
    server.script = [scripted.raw(401, echo), leak, scripted.raw(500, echo)]
    asked = planner(key="MY_KEY")
    replies = [_ask(asked, view()) for _ in range(3)]
    assert [headers["authorization"] for headers in server.headers_seen] == [f"Bearer {KEY}"] * 3
    assert KEY not in json.dumps(asked.request(view()).body)
    for reply in replies:
        assert KEY not in json.dumps(reply.raw)
        assert KEY not in reply.move.detail
    assert "{secret: MY_KEY}" in replies[0].move.detail


def test_environment_key_of_another_provider_is_never_sent_to_a_base_url(server, planner, view, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.script = [CALL]
    _ask(planner(), view())
    assert KEY not in json.dumps(server.headers_seen)


def test_missing_key_is_the_workspaces_mistake_and_says_what_to_set(planner, view):
    with pytest.raises(PerdureError) as caught:
        _ask(planner(key="MY_KEY"), view())
    assert "Set MY_KEY" in caught.value.hint


@pytest.mark.parametrize(("provider", "model"), [("openai", "gpt-4o-mini"), ("anthropic", "claude-haiku-4-5")])
def test_named_provider_is_spoken_to_in_its_own_format(server, planner, view, monkeypatch, provider, model):
    monkeypatch.setenv("A_KEY", KEY)
    anthropic = {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": model,
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "content": [{"type": "tool_use", "id": "u", "name": "read_file", "input": {"path": "a"}}],
        "usage": {"input_tokens": 300, "output_tokens": 20},
    }
    responses = {
        "id": "r",
        "object": "response",
        "created_at": 1,
        "model": model,
        "status": "completed",
        "parallel_tool_calls": False,
        "tool_choice": "required",
        "tools": [],
        "output": [
            {
                "type": "function_call",
                "id": "f",
                "call_id": "u",
                "name": "read_file",
                "arguments": '{"path": "a"}',
                "status": "completed",
            }
        ],
        "usage": {
            "input_tokens": 300,
            "output_tokens": 20,
            "total_tokens": 320,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        },
    }

    def answer(handler, body):
        if provider == "anthropic":
            wire = scripted.raw(200, json.dumps(anthropic).encode())
        elif handler.path.endswith("/responses"):
            wire = scripted.raw(200, json.dumps(responses).encode())
        else:
            wire = scripted.message(None, [("read_file", '{"path": "a"}')])
        wire(handler, body)

    server.script = [answer]
    base_url = server.url.removesuffix("/v1") if provider == "anthropic" else server.url
    asked = planner(provider=provider, name=model, key="A_KEY", base_url=base_url, prices=None)
    reply = _ask(asked, view())
    assert isinstance(reply.move, Proposal), reply
    assert reply.move.args == {"path": "a"}
    assert reply.usage == Usage(input_tokens=300, output_tokens=20)
    assert KEY in json.dumps(server.headers_seen)


@pytest.mark.parametrize(
    ("settings", "learned", "factor"),
    [
        ({"name": "claude-sonnet-4-5"}, None, 1.30),
        ({"name": "claude-sonnet-4-5"}, 1.1, 1.30),  # learned in a better hour, or by an older Perdure
        ({"name": "claude-sonnet-4-5"}, 1.6, 1.6),
        ({"name": "gpt-5"}, None, 1.05),
        ({"name": "who-knows"}, None, 1.35),
        ({"name": "who-knows", "factor": 1.0}, None, 1.0),  # the operator knows better
    ],
)
def test_the_factor_is_never_below_what_is_safe_for_the_family(task_from, tmp_path, settings, learned, factor):
    values = {"base_url": "http://127.0.0.1:9/v1", "prices": FREE, **settings}
    config = ModelConfig.model_validate(values, context={"workspace": tmp_path})
    factors = None if learned is None else {f"openai-compatible:{settings['name']}": learned}
    assert ModelPlanner(config, task_from(TASK), factors=factors).factor == factor


def test_loading_the_client_takes_nothing_of_a_calls_time(server):
    """In a process of its own, where nothing is loaded yet: a call whose time was up before it was sent would be paid for."""
    server.script = [scripted.message(calls=[("finish", "{}")])]
    program = f"""
import asyncio, sys
from perdure.daemon.config import ModelConfig
from perdure.daemon.planners import providers
from perdure.daemon.planners.prompt import OfferedTool, Prompt
timed, begun = asyncio.timeout, []
asyncio.timeout = lambda seconds: begun.append(set(sys.modules)) or timed(seconds)
tool = OfferedTool(name="finish", description="the end", schema={{"type": "object"}}, confidence_key="confidence")
prompt = Prompt(system="s", user="u", turns=(), rejected=None, tools=(tool,), tokens=9)
config = ModelConfig(name="scripted", base_url={server.url!r})
assert asyncio.run(providers.ask(config, prompt, 100, 60.0)).failed is None
late = {{one.split(".")[0] for one in set(sys.modules) - begun[0]}} & {{"pydantic_ai", "openai", "httpx2"}}
assert not late, late
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
