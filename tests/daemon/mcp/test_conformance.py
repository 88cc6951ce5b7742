"""The conformance suite's client scenarios, but for OAuth, against Perdure as a whole."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.daemon.mcp.outside import REPOSITORY, node, node_server

HERE = Path(__file__).parent
SCENARIOS = ("initialize", "tools_call", "elicitation-sep1034-client-defaults", "sse-retry")


def suite() -> list[str]:
    entry = node_server("conformance")
    return [str(node()), str(entry)]


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_a_client_scenario_holds_or_stands_in_the_baseline(tmp_path: Path, scenario: str) -> None:
    client = f"{sys.executable} {HERE / 'drivers' / 'conformance_client.py'}"
    command = [
        *suite(), "client", "--command", client, "--scenario", scenario, "--timeout", "90000",
        "--expected-failures", str(HERE / "conformance-baseline.yaml"), "--output-dir", str(tmp_path), "--verbose",
    ]  # fmt: skip
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "src")])
    ended = await asyncio.to_thread(
        subprocess.run, command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout[-6_000:] + ended.stderr[-3_000:]


async def test_the_suite_has_no_scenario_that_we_do_not_know() -> None:
    listed = await asyncio.to_thread(
        subprocess.run, [*suite(), "list", "--client"], capture_output=True, text=True, check=True
    )
    found = {line.split()[1] for line in listed.stdout.splitlines() if line.startswith("  - ")}
    assert {name for name in found if not name.startswith("auth/")} == set(SCENARIOS)
