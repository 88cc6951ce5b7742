"""What the daemon tells of its own start is told once, and never as something that an earlier one left untold."""

from __future__ import annotations

import json
from pathlib import Path

from tests.daemon.stage import Stage, events


async def test_an_alarm_of_this_start_is_told_once(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "workspace")
    stage.write("state/memory.db", "this is no database")
    async with stage.runtime() as runtime:
        (raised,) = events(runtime, "alarm.raised")
    lines = (stage.directory / "state/notifications.jsonl").read_text().splitlines()
    (told,) = [message for message in map(json.loads, lines) if message["about"] == raised.body["code"]]
    assert "before it could tell" not in told["text"]
