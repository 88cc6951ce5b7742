"""A daemon killed in the middle of a tool's effect: what a second start does with it, by effect class.

The observer is the tool's own target: a file to which the program appends one line for every time that it really acted.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.daemon.stage import Stage

from perdure.daemon import operations
from perdure.state import projections
from perdure.state.reading import LedgerReader

TOOL = """
import os, time
def hang_if(name):              # the file says where the daemon is to be killed
    if os.path.exists(name):
        open("work/ready", "w").close()
        time.sleep(3600)
hang_if("work/hang-before")
with open("work/effects.log", "a") as file:
    file.write("acted\\n")
hang_if("work/hang-after")
"""

CONFIG = """
timezone = "UTC"
[memory]
embedding = "none"
[tools.act]
command = ["{python}", "act.py"]
effect = "{effect}"
write = ["work"]
timeout = "60s"
{probe}
"""

PROBE = 'probe = {command = ["/bin/grep", "-q", "acted", "work/effects.log"], happened = "exit == 0"}'


def _stage(directory: Path, effect: str, mode: str) -> Stage:
    stage = Stage(directory)
    probe = PROBE if effect == "probeable" else ""
    stage.write("perdure.toml", CONFIG.format(python=sys.executable, effect=effect, probe=probe))
    stage.write("policies/act.yaml", "version: 1\nrules:\n  - {name: acting, tools: [act], decide: auto}\n")
    stage.write("act.py", TOOL)
    stage.write("work/effects.log", "")
    stage.write(f"work/hang-{mode}", "")
    steps = "\n  - {do: act, on_error: continue}\n  - {do: write_file, args: {path: reports/done.md, text: done}}\n"
    stage.playbook("work", steps, tools="act, write_file")
    return stage


def _start(stage: Stage, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PERDURE_WORKSPACE": str(stage.directory)}
    command = [sys.executable, "-m", "perdure.daemon.cli", *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=stage.directory
    )


@pytest.fixture
def kill_in_the_middle(eventually: Callable[..., object]) -> Callable[[Stage], None]:
    """Runs the task `work` as a process of its own, and kills it while its tool acts."""

    def kill(stage: Stage) -> None:
        process = _start(stage, "session", "run", "work")
        assert process.stdout is not None

        def ready() -> bool:
            assert process.poll() is None, process.stdout.read().decode()
            return (stage.directory / "work/ready").exists()

        eventually(ready)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        for path in (stage.directory / "work").glob("hang-*"):
            path.unlink()

    return kill


def _effects(stage: Stage) -> int:
    return (stage.directory / "work/effects.log").read_text().count("acted")


@pytest.mark.parametrize(("mode", "effects"), [("before", 1), ("after", 2)])
async def test_an_idempotent_action_runs_again_under_its_own_key(
    tmp_path: Path, kill_in_the_middle: Callable[[Stage], None], mode: str, effects: int
) -> None:
    stage = _stage(tmp_path / "w", "idempotent", mode)
    kill_in_the_middle(stage)
    async with stage.runtime() as runtime:
        (ending,) = await stage.run_open_slots(runtime)
        assert ending.status == "unverified"
        (row,) = [row for row in projections.actions(runtime.ledger.reader) if row.tool == "act"]
        assert (row.status, row.attempt) == ("succeeded", 2)
    assert _effects(stage) == effects
    assert (stage.directory / "reports/done.md").read_text() == "done"


@pytest.mark.parametrize(("mode", "attempts"), [("before", 2), ("after", 1)])
async def test_a_probeable_action_is_probed_and_runs_again_only_if_it_did_not_happen(
    tmp_path: Path, kill_in_the_middle: Callable[[Stage], None], mode: str, attempts: int
) -> None:
    stage = _stage(tmp_path / "w", "probeable", mode)
    kill_in_the_middle(stage)
    assert _effects(stage) == 2 - attempts
    async with stage.runtime() as runtime:
        (ending,) = await stage.run_open_slots(runtime)  # the interrupted session is taken up again
        assert ending.status == "unverified"
        (row,) = [row for row in projections.actions(runtime.ledger.reader) if row.tool == "act"]
        assert (row.status, row.attempt) == ("succeeded", attempts)
    assert (stage.directory / "reports/done.md").read_text() == "done"
    assert _effects(stage) == 1


@pytest.mark.parametrize("mode", ["before", "after"])
async def test_a_once_action_asks_a_person_and_is_never_repeated_by_itself(
    tmp_path: Path, kill_in_the_middle: Callable[[Stage], None], mode: str
) -> None:
    stage = _stage(tmp_path / "w", "once", mode)
    kill_in_the_middle(stage)
    seen = _effects(stage)
    for _ in range(2):  # a second start does not ask twice
        async with stage.runtime() as runtime:
            (question,) = projections.escalations(runtime.ledger.reader)
            (row,) = projections.unknown_actions(runtime.ledger.reader)
            assert row.action == question.action
            assert await stage.run_open_slots(runtime) == []
            assert _effects(stage) == seen


@pytest.mark.parametrize(("answer", "more"), [("approve", 1), ("deny", 0)])
async def test_the_answer_about_an_unknown_outcome_counts_once(
    tmp_path: Path, kill_in_the_middle: Callable[[Stage], None], answer: str, more: int
) -> None:
    stage = _stage(tmp_path / "w", "once", "after")
    kill_in_the_middle(stage)
    async with stage.runtime() as runtime:
        (question,) = projections.escalations(runtime.ledger.reader)
        said = {"escalation": question.escalation, "answer": answer}
        operations.answer(runtime.ledger, runtime.identifiers, runtime.now(), 0, **said)
        (ending,) = await stage.run_open_slots(runtime)
        assert ending.status == "unverified"  # the playbook went on with its second step
    async with stage.runtime() as runtime:
        assert await stage.run_open_slots(runtime) == []
        assert not projections.unknown_actions(runtime.ledger.reader)
        assert not projections.escalations(runtime.ledger.reader)
    assert _effects(stage) == 1 + more
    assert (stage.directory / "reports/done.md").read_text() == "done"


async def test_no_tool_process_outlives_a_killed_daemon(
    tmp_path: Path, kill_in_the_middle: Callable[[Stage], None]
) -> None:
    stage = _stage(tmp_path / "w", "once", "before")
    kill_in_the_middle(stage)
    async with stage.runtime():
        pass
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            assert str(stage.directory).encode() not in words or b"act.py" not in words


async def test_the_ledger_of_a_killed_daemon_verifies(
    tmp_path: Path, kill_in_the_middle: Callable[[Stage], None]
) -> None:
    stage = _stage(tmp_path / "w", "probeable", "after")
    kill_in_the_middle(stage)
    async with stage.runtime():
        pass
    process = _start(stage, "--json", "verify")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out.decode()
    assert json.loads(out)["ok"] is True
    with LedgerReader.open(stage.directory / "state" / "ledger.db") as reader:
        assert not projections.open_intents(reader)
