"""A running daemon whose machine's clock is set ahead, and back."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from tests.daemon.stage import Stage
from tests.end_to_end.conftest import Daemon

from perdure.state.reading import LedgerReader

HOUR = 3_600
WRITE = "\n  - {do: write_file, args: {path: reports/one.md, text: done}}\n"


@pytest.fixture
def shift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that says by how many seconds the wall clock of programs started from here is shifted."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler: nothing here shows that a clock may be set while the daemon runs")
    library, file = tmp_path / "clock_shift.so", tmp_path / "shift"
    source = Path(__file__).with_name("clock_shift.c")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    file.write_text("0")
    monkeypatch.setenv("CLOCK_SHIFT", str(file))
    monkeypatch.setenv("LD_PRELOAD", str(library))
    return file


async def test_a_clock_set_ahead_and_back_is_told_of_and_nothing_stands_still(
    stage: Stage, daemon: Daemon, shift: Path
) -> None:
    stage.playbook("hourly", WRITE, tools="write_file", extra="schedule: {every: 1h}\n")
    await daemon.start()

    def seen(*types: str) -> int:
        with LedgerReader.open(stage.directory / "state/ledger.db") as reader:
            return sum(1 for _ in reader.events(types=types))

    shift.write_text(str(3 * HOUR))
    await daemon.until(lambda: seen("slot.closed") >= 2)  # two that were missed, and one that ran
    shift.write_text("0")
    await daemon.until(lambda: seen("alarm.raised") == 1)
    (shown,) = [task for task in daemon.ask("schedule", "show")["tasks"] if task["task"] == "hourly"]
    assert shown["next"][0] > shown["slots"][0]["last_due_at"]  # not one that was accounted for and will not run
    (status,) = daemon.ask("status")["next"]
    assert status["due_at"] == shown["next"][0]
