"""A rule on trial changes nothing, and an operator sees what it would have changed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from click.testing import CliRunner
from tests.daemon.stage import Stage

from perdure.daemon.cli.app import perdure

TRIED = """
version: 1
shadow: true
rules:
  - {name: writing asks, tools: [write_file], decide: escalate}
tests:
  - {tool: write_file, args: {path: reports/a.md, text: x}, expect: escalate}
"""


async def test_what_a_shadow_file_would_have_changed_is_shown(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "workspace")
    stage.write("policies/tried.yaml", TRIED)
    steps = (
        "  - {do: write_file, args: {path: reports/a.md, text: x}}\n  - {do: read_file, args: {path: reports/a.md}}\n"
    )
    stage.playbook("work", steps, tools="write_file, read_file")
    async with stage.runtime() as runtime:
        ending = await stage.run(runtime, "work")
        assert ending.status == "unverified"  # it was written: nobody was asked

    async def said(*words: str) -> str:
        outcome = await asyncio.to_thread(CliRunner().invoke, perdure, ["-w", str(stage.directory), *words])
        assert outcome.exit_code == 0, outcome.output
        return outcome.output

    told = json.loads(await said("policy", "shadow", "--json"))
    (flip,) = told["flips"]
    assert (told["decisions"], told["flipped"]) == (2, 1)
    assert (flip["tool"], flip["was"], flip["would_be"], flip["count"]) == ("write_file", "auto", "escalate", 1)
    assert "shadow rules would flip 1" in await said("policy", "shadow")
    assert "with its shadow rules in force: ask a person" in await said("ledger", "show", ending.session)
    assert "shadow rules would: ask a person" in await said("ledger", "tail", "--type", "action.decided")
    assert "shadow: ask a person" in await said("policy", "explain", flip["examples"][0])
