"""Trust by field, for a tool of a server: what the operator vouches for chooses freely, everything else that it says does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.daemon.drawing import model_table
from tests.daemon.mcp.outside import Outside
from tests.daemon.planners import scripted_server as scripted
from tests.daemon.stage import events

ASKS = "addresses that untrusted content chose"
TRUSTED = '[mcp.odd.tools.note]\neffect = "once"\ntrusted = ["structured.page.url", "structured.count"]\n'
POLICY = """
version: 1
use: [egress]
rules:
  - {name: noting, tools: ["odd__*"], decide: auto}
  - {name: anywhere, tools: [http_request], method: {in: [GET]}, decide: auto}
"""
TASK = """---
name: work
planner: model
tools: [odd__note, http_request]
bounds: {steps: 4, context: 6000, tokens: 60000, minutes: 5, cost_usd: 0.5}
---
Note a line, then look.
"""


async def noted(directory: Path, *, trusted: str = TRUSTED, more: str = "") -> Outside:
    """A workspace whose server answers with fields, accepted as it is."""
    outside = Outside(directory, tools=trusted, more=more)
    outside.write("policies/outside.yaml", POLICY)
    await outside.accept()
    outside.mode("fields")
    return outside


async def decided(outside: Outside) -> tuple[list[str], list[str], list[object]]:
    """The sources of the last call's address, the rules that counted, and what the server's call returned."""
    async with outside.runtime() as runtime:
        await outside.run_until_parked(runtime, "work")
        reader = runtime.ledger.reader
        proposed, judged = events(runtime, "action.proposed")[-1], events(runtime, "action.decided")[-1]
        assert proposed.body["tool"] == "http_request"
        (returned, *_) = events(runtime, "action.ended")
        result, payload = reader.payload(returned.seq), reader.payload(proposed.seq)
        assert isinstance(payload, dict)
        assert isinstance(result, dict)
        rules = [rule["name"] for rule in judged.body["rules"]]
        return payload["provenance"]["url"], rules, [returned.body["status"], result["result"]["structured"]["count"]]


@pytest.mark.parametrize(
    ("url", "sources", "asks"),
    [
        ("${said.structured.page.url}", ["trusted:odd__note"], False),
        ("http://ours.test/${said.structured.count}", ["instruction", "trusted:odd__note"], False),
        ("${said.structured.page.note}", ["tool:odd__note"], True),
        ("http://${said.text}/", ["instruction", "tool:odd__note"], True),
        ("http://ours.test/?q=${size(said.structured.page)}", ["instruction", "tool:odd__note"], True),
    ],
)
async def test_a_playbook_takes_addresses_out_of_trusted_fields_only(tmp_path: Path, url, sources, asks) -> None:
    outside = await noted(tmp_path / "w")
    steps = f"""
  - {{do: odd__note, args: {{line: a}}, save: said}}
  - {{do: http_request, args: {{url: "{url}"}}, on_error: continue}}
"""
    outside.playbook("work", steps, tools="odd__note, http_request")
    found, rules, returned = await decided(outside)
    assert returned == ["succeeded", 41]  # by a server that really ran
    assert (found, ASKS in rules) == (sources, asks)
    assert outside.effects == 1


@pytest.mark.parametrize(
    ("trusted", "url", "sources", "asks"),
    [
        (TRUSTED, "http://evil.invalid/in", ["tool:odd__note", "model"], True),
        (TRUSTED, "http://ours.test/41", ["trusted:odd__note", "model"], False),
        (TRUSTED.replace('["structured.page.url", "structured.count"]', "true"), "http://evil.invalid/in", ["trusted:odd__note", "model"], False),
        ("", "http://ours.test/41", ["tool:odd__note", "model"], True),
    ],
)  # fmt: skip
async def test_what_a_model_takes_has_the_trust_of_the_field_it_stands_in(
    tmp_path: Path, trusted, url, sources, asks
) -> None:
    with scripted.serving() as server:
        outside = await noted(tmp_path / "w", trusted=trusted + model_table(server.url))
        outside.write("tasks/work.md", TASK)
        calls = [("odd__note", {"line": "a"}), ("http_request", {"url": url}), ("finish", {"says": "done"})]
        server.script[:] = [scripted.message(calls=[(tool, json.dumps(args))]) for tool, args in calls]
        found, rules, _ = await decided(outside)
    assert (found, ASKS in rules) == (sources, asks)
