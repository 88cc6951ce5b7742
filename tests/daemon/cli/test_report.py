"""`perdure report calibration` says how far confidence can be believed, and says so where nothing is known yet."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner
from tests.daemon.drawing import CONFIG, in_turn, plan
from tests.daemon.stage import Stage
from tests.daemon.test_certainty import POLICY, TASK, TOOLS, append

from perdure.daemon.cli.app import perdure


def asked(stage: Stage, *words: str) -> str:
    result = CliRunner().invoke(perdure, ["-w", str(stage.directory), "report", "calibration", *words])
    assert result.exit_code == 0, result.output
    return result.output


async def test_the_report_counts_what_was_verified(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "workspace")
    stage.write("perdure.toml", CONFIG + TOOLS)
    stage.write("policies/policy.yaml", POLICY)
    stage.write("tasks/report.md", TASK)
    async with stage.runtime() as runtime:
        assert "cold start" in asked(stage)
        plan(runtime, in_turn(*(append(f"{number}") for number in range(6))))
        await stage.run(runtime, "report")
    told = asked(stage)
    assert "Brier score" in told
    assert "a perfect scorer shows" in told
    assert "n 6" in told
    assert "fewer than 20 outcomes: says nothing yet" in told
    assert "6 outcomes (a cold start: fewer than 20)" in " ".join(told.split())
    held = json.loads(asked(stage, "--json"))
    assert held["format"] == "perdure/calibration/1"
    assert held["calibrated"]["count"] == 6
    assert (held["groups"][0]["right"], held["groups"][0]["cold"]) == (1.0, True)
    stage.write("perdure.toml", CONFIG + TOOLS + "\n[confidence]\ncold_below = 6\n")
    assert "cold start" not in asked(stage)
    stage.write("tasks/other.md", TASK.replace("name: report", "name: other"))
    assert json.loads(asked(stage, "--task", "other", "--json"))["calibrated"] is None
