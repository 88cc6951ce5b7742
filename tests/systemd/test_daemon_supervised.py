"""The daemon itself under the shipped supervisord.conf: killed, hung and stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from perdure.daemon.init import init_workspace
from perdure.daemon.supervision import seconds_since_beat
from perdure.state.ledger import LedgerReader
from perdure.state.verification import verify

BIN = Path(sys.executable).parent


@pytest.mark.slow
def test_the_daemon_comes_back_from_a_kill_and_from_a_hang_and_stops_cleanly(
    supervised: Callable[..., Any], home: Path, eventually: Callable[..., Any]
) -> None:
    workspace = home / "workspace"
    init_workspace(workspace, example="log-triage", machine_logs=[])
    with supervised(BIN / "perdure", workspace) as running:

        def beating_after(pid: int) -> int | None:
            info = running.info()
            if info["statename"] != "RUNNING" or info["pid"] == pid:
                return None
            return info["pid"] if seconds_since_beat(running.state / "heartbeat", info["pid"]) is not None else None

        first = eventually(lambda: beating_after(0))
        command = [BIN / "perdure", "--workspace", workspace, "session", "run", "log-triage"]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr

        os.kill(first, signal.SIGKILL)
        second = eventually(lambda: beating_after(first))
        os.kill(second, signal.SIGSTOP)  # silent, and deaf to SIGABRT too: the second tick kills
        eventually(lambda: psutil.Process(second).status() == psutil.STATUS_STOPPED)
        running.age_heartbeat(second)
        third = eventually(lambda: beating_after(second))
        assert len({first, second, third}) == 3
    with LedgerReader.open(running.state / "ledger.db") as reader:
        lives = [event.type for event in reader.events(types={"daemon.started", "daemon.stopped"})]
    assert lives == ["daemon.started"] * 3 + ["daemon.stopped"]
    assert verify(running.state).ok
