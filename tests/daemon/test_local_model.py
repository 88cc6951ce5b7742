"""The model planner with a real language model: llama.cpp's server and SmolLM2-135M on loopback. The model is weak, and that is
the point: whatever it says, every answer is a move, and no reservation is passed."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from perdure.daemon.budget import Budget
from perdure.daemon.config import ModelConfig
from perdure.daemon.planners import local_process
from perdure.daemon.planners.model import ModelPlanner, check_model
from perdure.daemon.planners.moves import Finish, Malformed, Proposal, Taken, View
from perdure.daemon.tasks import read_task
from perdure.daemon.tools.model import ToolSpec
from perdure.errors import PerdureError
from perdure.memory.context import Context, Section

GGUF = Path(__file__).resolve().parents[2] / ".cache" / "SmolLM2-135M-Instruct.Q4_1.gguf"

CONTEXT_TOKENS = 1536
SECONDS = 100.0  # a busy machine reads a prompt slowly

TASK = """---
name: triage
planner: model
tools: [list_files, notify]
bounds: {steps: 2, context: 1200, tokens: 6000, minutes: 5, cost_usd: 0}
---
List the files in inbox, read the newest log and tell a person what is wrong.
"""

needs_server = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed (perdure[local])"
)
needs_model = pytest.mark.skipif(not GGUF.is_file(), reason=f"no model file {GGUF}: `make local-model` gets it")


@pytest.fixture(scope="module")
def _server():
    yield
    local_process.stop()


@pytest.fixture
def planner(tmp_path, _server):
    def make(**settings):
        values = {
            "provider": "local",
            "name": "smollm2",
            "file": GGUF,
            "context_tokens": CONTEXT_TOKENS,
            "completion_tokens": 32,
            "factor": 1.1,
            "seconds_max": SECONDS,
        }
        config = ModelConfig.model_validate_json(
            json.dumps(values | settings, default=str), context={"workspace": tmp_path}
        )
        task, problems = read_task(
            "tasks/t.md",
            TASK.encode(),
            known_tools=("list_files", "notify"),
            timezone="UTC",
            workspace=tmp_path,
        )
        assert not problems
        return ModelPlanner(config, task), task

    return make


def _spec(name, argument):
    schema = {
        "type": "object",
        "properties": {argument: {"type": "string"}},
        "required": [argument],
        "additionalProperties": False,
    }
    return ToolSpec(name=name, description=f"{name} does what it says.", args_schema=schema, effect="read")


TOOLS = (_spec("list_files", "path"), _spec("notify", "text"))


def _view(task, taken=(), rejected=None):
    sections = (Section(name="instruction", text=task.instruction, tokens=0, stable=True),)
    context = Context(
        sections=sections, text=task.instruction, tokens=0, budget=1500, factor=1.0, digest="", manifest=(), left_out=()
    )
    return View(
        session="S",
        task="triage",
        step=len(taken) + 1,
        context=context,
        tools=TOOLS,
        taken=taken,
        recorded={},
        slot={"date": "2026-11-22"},
        last={},
        rejected=rejected,
        steps_left=4,
        tokens_left=6000,
    )


@needs_server
@needs_model
def test_sessions_with_a_real_weak_model_stay_within_every_bound(planner):
    asked, task = planner(temperature=0.8)
    before = asked.factor
    for _ in range(2):
        budget = Budget(task.bounds)
        taken, rejected = [], None
        while budget.steps_left:
            view = _view(task, tuple(taken), rejected)
            request = asked.request(view)
            if budget.reserve(request) is not None:
                break
            reply = asyncio.run(asked.propose(view, request, SECONDS))
            assert reply.failed is None, reply
            charged = budget.settle(reply)
            # the reservation held: our count times the factor covered the model's own tokenizer and template
            assert charged.over == 0, (request.prompt_tokens, reply.usage)
            assert reply.usage.output_tokens <= request.completion_cap
            budget.use_step()
            rejected = None
            match reply.move:
                case Finish():
                    break
                case Malformed():
                    rejected = reply.move.detail
                case Proposal():
                    result = ["a.log", "b.log"]
                    taken.append(
                        Taken(
                            step=1,
                            proposal=reply.move,
                            action="A",
                            decision="auto",
                            reason="",
                            status="succeeded",
                            result=result,
                        )
                    )
        assert 0 < budget.tokens_used <= task.bounds.tokens
        assert asked.factor >= before  # strange words of its own may teach it a higher one: every reservation held


@needs_server
@needs_model
def test_timeout_and_a_killed_server_are_each_one_failed_call(planner):
    asked, task = planner()
    asyncio.run(local_process.endpoint(GGUF, CONTEXT_TOKENS))
    late = asyncio.run(asked.propose(_view(task), asked.request(_view(task)), 0.01))
    assert (late.failed, late.usage) == ("timeout", None)
    process, _url = local_process._running[GGUF, CONTEXT_TOKENS, 1]
    process.kill()
    process.wait()
    again = asyncio.run(asked.propose(_view(task), asked.request(_view(task)), SECONDS))
    assert again.failed is None
    assert local_process._running[GGUF, CONTEXT_TOKENS, 1][0] is not process


@needs_server
@needs_model
def test_server_process_is_gone_with_its_parent():
    code = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        "from perdure.daemon.planners import local_process\n"
        f"asyncio.run(local_process.endpoint(Path({str(GGUF)!r}), 512))\n"
        "[(process, url)] = local_process._running.values()\n"
        "print(process.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        server = int(parent.stdout.readline())
        handle = os.pidfd_open(server)
        parent.send_signal(signal.SIGKILL)
    ended, _, _ = select.select([handle], [], [], 60)
    os.close(handle)
    assert ended


@needs_server
@needs_model
def test_command_line_serves_the_openai_format_and_says_when_it_is_ready():
    command = [sys.executable, "-m", "perdure.daemon.planners.local_server", "--model", str(GGUF), "--context", "512"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        ready = process.stdout.readline().decode().split()
        assert ready[0] == "ready"
        assert ready[1].startswith("http://127.0.0.1:")
        body = json.dumps({"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 5}).encode()
        request = urllib.request.Request(f"{ready[1]}/v1/chat/completions", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert answer["choices"][0]["message"]["role"] == "assistant"
        assert answer["usage"]["completion_tokens"] <= 5
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"# not a model", "no GGUF file"), (b"GGUF" + b"\0" * 64, "bad.gguf"), (None, "No such file")],
)
def test_file_that_is_no_model_is_one_readable_error(tmp_path, content, words):
    file = tmp_path / "bad.gguf"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(PerdureError) as caught:
        asyncio.run(local_process.endpoint(file, 512))
    assert words in str(caught.value) or "xllamacpp is not installed" in str(caught.value)
    assert "make local-model" in caught.value.hint


def test_server_that_is_never_ready_is_not_waited_for_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(local_process, "READY_SECONDS_MAX", 0.2)
    file = tmp_path / "pipe.gguf"
    os.mkfifo(file)  # whoever opens it to read waits for a writer
    with pytest.raises(PerdureError, match=r"was not ready within 0\.2 s"):
        asyncio.run(local_process.endpoint(file, 512))
    assert (file, 512, 1) not in local_process._running


def test_check_names_a_missing_model_file(planner, tmp_path):
    asked, task = planner(file=tmp_path / "gone.gguf")
    config = type("C", (), {"model": asked._chain[0]})
    found = " ".join(problem.found for problem in check_model(task, config))
    assert "no model file" in found or "xllamacpp is not installed" in found
