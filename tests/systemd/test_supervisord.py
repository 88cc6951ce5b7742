"""The shipped supervisord.conf, run by a real supervisord over a stand-in that beats as the daemon does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure.daemon.supervision import Supervision
from perdure.systemd.watchdog import Watchdog

STAND_IN = f"""#!{sys.executable}
import os, signal, sys, threading
from pathlib import Path
from perdure.daemon.supervision import Supervision

workspace = Path(sys.argv[2])
assert sys.argv[1:] == ["--workspace", str(workspace), "run"], sys.argv
tell = os.environ["PERDURE_STATE"]
supervision = Supervision(heartbeat=Path(tell) / "heartbeat")
stop = threading.Event()

def hang(*_):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
    (workspace / "hangs").touch()
    while True:
        signal.pause()

signal.signal(signal.SIGUSR1, hang)
signal.signal(signal.SIGUSR2, lambda *_: os._exit(2))
signal.signal(signal.SIGTERM, lambda *_: stop.set())
while not stop.is_set():
    supervision.beat()
    stop.wait(0.1)
(workspace / "stopped-cleanly").touch()
"""


@pytest.fixture
def stand_in(home: Path) -> Path:
    program = home / "stand-in"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    return program


def test_supervisord_starts_it_again_and_its_watchdog_ends_a_silent_one(
    supervised: Callable[..., Any], stand_in: Path, home: Path, eventually: Callable[..., Any]
) -> None:
    with supervised(stand_in, home) as running:

        def beating_after(pid: int) -> int | None:
            info = running.info()
            alive = info["statename"] == "RUNNING" and info["pid"] != pid
            beaten = (running.state / "heartbeat").exists() and (running.state / "heartbeat").read_text().startswith(
                f"{info['pid']} "
            )
            return info["pid"] if alive and beaten else None

        first = eventually(lambda: beating_after(0))
        os.kill(first, signal.SIGKILL)
        second = eventually(lambda: beating_after(first))

        running.signal("USR1")  # it hangs, deaf to SIGTERM
        eventually((home / "hangs").exists)
        running.age_heartbeat(second)
        third = eventually(lambda: beating_after(second))
        assert f"perdure ({second}) has been silent" in (running.state / "watchdog.log").read_text()
        assert "Fatal Python error: Aborted" in (running.state / "perdure.log").read_text()

        running.signal("USR2")  # "a file needs a person"
        eventually(lambda: running.info()["statename"] == "EXITED")
        assert running.info()["exitstatus"] == 2
        assert running.info()["pid"] == 0 != third
        running.start()
        assert not (home / "stopped-cleanly").exists()
    assert (home / "stopped-cleanly").exists()


def test_what_supervisord_writes_is_for_its_user_alone(
    supervised: Callable[..., Any], stand_in: Path, home: Path, eventually: Callable[..., Any]
) -> None:
    with supervised(stand_in, home) as running:
        eventually(lambda: running.info()["statename"] == "RUNNING")
        open_to_others = [path.name for path in running.state.iterdir() if path.stat().st_mode & 0o077]
        assert open_to_others == []


class Recording:
    """supervisord's answers, for the cases that take a minute to bring about."""

    def __init__(self, **info: Any) -> None:
        self.info = {"statename": "RUNNING", "pid": os.getpid(), "now": 1000, "start": 0, **info}
        self.sent: list[str] = []

    def getProcessInfo(self, _name: str) -> dict[str, Any]:  # noqa: N802 — supervisord's name
        return self.info

    def signalProcess(self, _name: str, signal: str) -> bool:  # noqa: N802 — supervisord's name
        self.sent.append(signal)
        return True


def look_twice(supervisor: Recording, heartbeat: Path, seconds: float) -> list[str]:
    watchdog = Watchdog(
        program="perdure", heartbeat=heartbeat, seconds=seconds, seconds_to_start=300, say=lambda _text: None
    )
    watchdog.look(supervisor)
    watchdog.look(supervisor)
    return supervisor.sent


def test_a_daemon_that_beats_is_left_alone_however_long_it_has_run(tmp_path: Path) -> None:
    Supervision({}, heartbeat=tmp_path / "heartbeat").beat()
    assert look_twice(Recording(), tmp_path / "heartbeat", 60) == []


def test_a_silent_daemon_is_aborted_then_killed(tmp_path: Path) -> None:
    (tmp_path / "heartbeat").write_text(f"{os.getpid()} {time.monotonic_ns() - 61 * 10**9}\n")
    assert look_twice(Recording(), tmp_path / "heartbeat", 60) == ["ABRT", "KILL"]


def test_a_starting_daemon_has_its_time_from_its_start(tmp_path: Path) -> None:
    (tmp_path / "heartbeat").write_text(f"{os.getpid() + 1} 1\n")  # the one before it
    assert look_twice(Recording(now=299), tmp_path / "heartbeat", 60) == []
    assert look_twice(Recording(now=301), tmp_path / "heartbeat", 60) == ["ABRT", "KILL"]


def test_a_stopped_daemon_is_nobodys_concern(tmp_path: Path) -> None:
    assert look_twice(Recording(statename="STOPPED", pid=0), tmp_path / "heartbeat", 60) == []


def test_the_listener_says_how_to_call_it() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "perdure.systemd.watchdog", "--help"], capture_output=True, text=True, check=True
    )
    assert "STATE/heartbeat" in shown.stdout
