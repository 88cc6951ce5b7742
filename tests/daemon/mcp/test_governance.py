"""Policies, planners and people see a server's tools as a person accepted them, with or without the server."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.daemon.mcp.outside import Outside, until
from tests.daemon.stage import events

from perdure.daemon.cli.app import perdure
from perdure.daemon.mcp.acceptance import accept
from perdure.daemon.runtime import Runtime
from perdure.daemon.sandbox.strays import find_strays
from perdure.daemon.service import operate_alone
from perdure.daemon.workspace import load_workspace
from perdure.errors import PerdureError, Problems
from perdure.state import projections
from perdure.state.projections import EscalationRow

RULES = """
version: 1
rules:
  - {{name: short notes, tools: [odd__note], when: "{when}", decide: auto}}
"""


@pytest.fixture
async def outside(tmp_path: Path) -> Outside:
    stage = Outside(tmp_path / "w")
    await stage.accept()
    return stage


async def cli(stage: Outside, *arguments: str, input: str | None = None) -> Result:
    """The command line, in this process but off the loop."""
    return await asyncio.to_thread(CliRunner().invoke, perdure, ["-w", str(stage.directory), *arguments], input=input)


async def test_a_cold_start_without_the_server_checks_policies_against_what_was_accepted(outside: Outside) -> None:
    outside.setting(f'"{sys.executable}"', '"/nowhere/at/all"')
    outside.note()
    outside.write("policies/outside.yaml", RULES.format(when="args.line.size() < 20"))
    loaded = load_workspace(outside.directory)
    assert loaded.specs["odd__note"].source == "mcp:odd"
    for wrong, found in (("args.line < 20", "no matching overload"), ("args.recipient == 'x'", "recipient")):
        outside.write("policies/outside.yaml", RULES.format(when=wrong))
        with pytest.raises(Problems) as problems:
            load_workspace(outside.directory)
        assert found in str(problems.value)
    outside.write("policies/outside.yaml", RULES.format(when="args.line.size() < 20"))
    async with outside.runtime() as runtime:  # and a session that calls it fails, plainly
        await outside.run(runtime, "work")
        assert not events(runtime, "action.intended")
        assert "no such program" in str(
            [runtime.ledger.reader.payload(e.seq) for e in events(runtime, "step.rejected")]
        )


async def test_what_no_rule_decides_asks(outside: Outside) -> None:
    outside.note()
    outside.write("policies/outside.yaml", RULES.format(when="args.line == 'something else'"))
    async with outside.runtime() as runtime:
        assert (await outside.run(runtime, "work")).status == "parked"
        spec = runtime.tools["odd__note"].spec
        assert (spec.effect, spec.trusted) == ("once", False)  # whatever readOnlyHint claims
    assert outside.effects == 0


async def test_only_what_was_seen_can_be_accepted(outside: Outside) -> None:
    outside.mode("changed")
    async with outside.runtime() as runtime:
        await runtime.servers.discover()
        with pytest.raises(PerdureError, match="not, or no longer, listed as you saw it"):
            accept(runtime.ledger, 0, tools={"odd": {"note": "sha256:" + "0" * 64}})
        (row,) = [row for row in projections.outside_tools(runtime.ledger.reader, "odd") if row.tool == "note"]
        assert row.accepted_hash != row.listed_hash
        accept(runtime.ledger, 1000, tools={"odd": {"note": row.listed_hash}})
        (row,) = [row for row in projections.outside_tools(runtime.ledger.reader, "odd") if row.tool == "note"]
        assert (row.accepted_hash, row.accepted_uid) == (row.listed_hash, 1000)
    assert sorted(load_workspace(outside.directory).specs["odd__note"].args_schema["properties"]) == [
        "line",
        "recipient",
    ]


async def asked_about(outside: Outside, runtime: Runtime, mode: str) -> EscalationRow:
    """The question that a session asks whose tool changed in this way after it was accepted."""
    outside.mode(mode)
    await runtime.servers.discover()
    assert (await outside.run(runtime, "work")).status == "parked"
    (question,) = projections.escalations(runtime.ledger.reader)
    return question


async def test_an_approval_covers_the_definition_that_was_shown(outside: Outside) -> None:
    outside.note()
    async with outside.runtime() as runtime:
        question = await asked_about(outside, runtime, "changed-words")
        outside.mode("changed")  # and then it changes once more
        await runtime.servers.discover()
    await operate_alone(
        outside.directory,
        "answer",
        {"escalation": question.escalation, "answer": "approve", "note": "", "always": False},
    )
    async with outside.runtime() as runtime:
        await outside.run_open_slots(runtime)
    assert outside.effects == 0


async def test_a_question_shows_how_the_tool_differs_from_what_was_accepted(outside: Outside) -> None:
    outside.note()
    async with outside.runtime() as runtime:
        question = await asked_about(outside, runtime, "changed")
        row = projections.outside_tool(runtime.ledger.reader, "odd", "note")
        assert row is not None
    shown = await cli(outside, "inbox", "show", question.escalation)
    assert "changed since it was accepted" in shown.stdout
    assert "inputSchema.properties.recipient" in shown.stdout
    told = json.loads((await cli(outside, "--json", "inbox", "show", question.escalation)).stdout)
    assert told["not_accepted"]["hash"] == row.listed_hash
    recipient = next(each for each in told["not_accepted"]["changes"] if each["at"].endswith(".recipient"))
    assert recipient["was"] is None
    await outside.accept()
    assert "changed since" not in (await cli(outside, "inbox", "show", question.escalation)).stdout


async def test_accept_shows_and_asks_and_the_daemon_takes_it_up(tmp_path: Path) -> None:
    outside = Outside(tmp_path / "w")
    before = await cli(outside, "tools", "accept", "odd", input="n\n")
    assert before.exit_code != 0
    assert "odd__note" in before.stdout
    assert "readOnlyHint: True" in before.stdout
    daemon = subprocess.Popen(  # noqa: ASYNC220 — it is killed with a signal
        [sys.executable, "-m", "perdure.daemon.cli", "-w", str(outside.directory), "run"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not json.loads((await cli(outside, "--json", "status")).stdout)["daemon"]["answers"]:
            assert daemon.poll() is None
        told = await cli(outside, "--json", "tools", "accept", "odd", "--yes")
        assert told.exit_code == 0, told.output
        assert "odd__note" in json.loads(told.stdout)["accepted"]
        outside.note()
        while (await cli(outside, "session", "run", "work")).exit_code != 0:  # until the new task is in force
            assert daemon.poll() is None
        assert outside.effects == 1
        listed = json.loads((await cli(outside, "--json", "tools")).stdout)["tools"]
        note = next(tool for tool in listed if tool["tool"] == "odd__note")
        assert (note["standing"], note["source"], note["effect"]) == ("accepted", "mcp:odd", "once")
        assert note["claims"] == {"readOnlyHint": True}
        assert [rule["name"] for rule in note["rules"]] == ["outside"]
        assert "the server's word" in (await cli(outside, "tools", "odd__note")).stdout
        assert find_strays(outside.directory / "state")  # the server runs ...
    finally:
        daemon.send_signal(signal.SIGKILL)
        await asyncio.to_thread(daemon.wait)
    await until(lambda: not find_strays(outside.directory / "state"))  # ... and goes, however the daemon does


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[mcp.a]\n", "either `command` or `url`"),
        ('[mcp.a]\ncommand = ["x"]\nurl = "http://h/"\n', "either `command` or `url`"),
        ('[mcp.a]\nurl = "ftp://h/"\n', "http:// or https://"),
        ('[mcp.a]\nurl = "http://u:p@h/"\n', "no password"),
        ('[mcp.a]\nurl = "http://h/"\nenv = {A = "b"}\n', "nothing is started here"),
        ('[mcp.a]\ncommand = ["x"]\nheaders = {A = "b"}\n', "no `headers` beside `command`"),
        ('[mcp.a]\nurl = "http://h/"\nheaders = {Host = "b"}\n', "a header of your own"),
        ('[mcp.A]\ncommand = ["x"]\n', "small letters"),
        ('[mcp.a__b]\ncommand = ["x"]\n', "single _"),
        ('[mcp.a]\ncommand = ["x"]\n[mcp.a.tools.t]\neffect = "probeable"\n', "probe ="),
        ('[mcp.a]\ncommand = ["x"]\n[mcp.a.tools.t]\nprobe = {tool = "u", expect = "ok"}\n', "a probe changes nothing"),
        ('[mcp.a]\ncommand = ["x"]\n[tools.a__t]\ncommand = ["/bin/true"]\n', "a server name other than"),
        ('[mcp.a]\ncommand = ["x"]\n[mcp.a.tools.t]\nefect = "read"\n', "effect"),
    ],
)
def test_mistakes_in_the_configuration_are_found_at_load(tmp_path: Path, text: str, says: str) -> None:
    stage = Outside(tmp_path / "w")
    stage.write("perdure.toml", text)
    with pytest.raises(Problems) as problems:
        load_workspace(stage.directory)
    assert says in "\n".join(str(problem) for problem in problems.value.problems)


async def test_settings_that_do_not_fit_a_tool_are_found_at_load(outside: Outside) -> None:
    text = (outside.directory / "perdure.toml").read_text()
    for wrong in ('paths = {nothing = "read"}', 'idempotency_key = "nothing"', 'free_text = ["nothing"]'):
        outside.write("perdure.toml", f"{text}\n[mcp.odd.tools.note]\n{wrong}\n")
        with pytest.raises(Problems) as problems:
            load_workspace(outside.directory)
        assert "nothing" in str(problems.value)
