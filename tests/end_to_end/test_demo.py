"""The main job as `make run` shows it: a real daemon, three sessions, one question for each address, a proven record."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

CLI = [sys.executable, "-m", "perdure.daemon.cli"]


def perdure(*arguments: str, cwd: Path, seconds: float = 250) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CLI, *arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=seconds)


def listed(workspace: Path, *arguments: str) -> dict:
    done = perdure("-w", str(workspace), *arguments, "--json", cwd=workspace)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_demo_does_the_main_job_and_its_question_can_be_answered(tmp_path: Path) -> None:
    done = perdure("demo", "ws", cwd=tmp_path)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    workspace = tmp_path / "ws"

    sessions = listed(workspace, "session", "list")["sessions"]
    assert len(sessions) >= 3
    assert {each["status"] for each in sessions} == {"succeeded"}

    # three sessions, each with something new; the two addresses from outside, one question each
    questions = listed(workspace, "inbox")["questions"]
    assert len(questions) == 2
    assert {each["state"] for each in questions} == {"open"}
    assert max(each["joined"] for each in questions) >= 1
    first = min(questions, key=lambda each: each["seq"])["escalation"]
    assert re.search(r"perdure .*approve \w+", said)
    report = next((workspace / "reports").glob("*.md")).read_text()
    assert "Memory knows 2 earlier sessions" in report or "Memory knows 3 earlier sessions" in report
    assert (workspace / "reports" / report.split("](")[1].split(")")[0]).read_text().startswith("<svg ")
    assert {path.name[11:] for path in (workspace / "incidents").iterdir()} >= {
        "ssh-203.0.113.47.md",
        "ssh-198.51.100.23.md",
    }
    assert (workspace / "blocked.txt").read_text() == ""

    # the answer blocks the address, once
    assert perdure("-w", str(workspace), "approve", first, cwd=tmp_path).returncode == 0
    for _ in range(2):  # a session of the schedule that is due longer comes first
        run = perdure("-w", str(workspace), "run", "--sessions", "1", cwd=tmp_path)
        assert run.returncode == 0, run.stdout + run.stderr
        if (workspace / "blocked.txt").read_text():
            break
    assert (workspace / "blocked.txt").read_text() == "203.0.113.47\n"
    assert perdure("-w", str(workspace), "verify", cwd=tmp_path).returncode == 0


def test_bring_appends_an_instalment_as_a_log_source_would(tmp_path: Path) -> None:
    from perdure.daemon.cli.demo import _bring, _free
    from perdure.daemon.init import init_workspace

    init_workspace(tmp_path / "ws", example="log-triage", machine_logs=[])
    log = tmp_path / "ws" / "logs" / "auth.log"
    before = log.read_bytes()
    brought = _bring(tmp_path / "ws", 2)
    assert brought == sum(path.read_bytes().count(b"\n") for path in (tmp_path / "ws" / "feed" / "2").iterdir())
    assert log.read_bytes() == before + (tmp_path / "ws" / "feed" / "2" / "auth.log").read_bytes()
    assert _bring(tmp_path / "ws", 9) == 0
    assert _free(tmp_path / "ws") == tmp_path / "ws-2"
    assert _free(tmp_path / "new") == tmp_path / "new"
