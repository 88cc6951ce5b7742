"""A daemon whose disk fills, whose clients misbehave, and whose operator is in a hurry."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.daemon.stage import Stage
from tests.end_to_end.conftest import WAIT_SECONDS, Daemon

from perdure.state.reading import LedgerReader

TICK = "\n  - {do: append_file, args: {path: reports/ticks.log, text: 'x'}}\n"


def count(stage: Stage, *types: str) -> int:
    with LedgerReader.open(stage.directory / "state" / "ledger.db") as reader:
        return sum(1 for _ in reader.events(types=types))


@pytest.fixture
def small_disk(stage: Stage) -> Iterator[Path]:
    """The state directory on a file system of 12 MB."""
    state = stage.directory / "state"
    state.mkdir(mode=0o700)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m,mode=700", "tmpfs", str(state)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield state
    subprocess.run(["umount", "-l", str(state)], check=False)


async def test_a_full_disk_stops_every_action_loudly(stage: Stage, daemon: Daemon, small_disk: Path) -> None:
    told = stage.directory / "told.jsonl"
    config = (stage.directory / "perdure.toml").read_text()
    command = json.dumps([sys.executable, "-c", f"import sys; open({str(told)!r}, 'a').write(sys.stdin.read())"])
    stage.write("perdure.toml", f"{config}\n[notify]\ncommand = {command}\n")
    stage.playbook("tick", TICK, tools="append_file", extra="schedule: {every: 1s}\n")
    await daemon.start()
    await daemon.until((stage.directory / "reports/ticks.log").exists)
    with (small_disk / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4_096)
    assert daemon.ended() == 1
    assert "cannot be written" in daemon.log.read_text() or "cannot write" in daemon.log.read_text()
    assert "nothing runs" in told.read_text()
    code, out = daemon.say("session", "run", "tick")  # nor is a disk that is full a reason to restore a backup
    assert code == 1
    assert "full" in out
    assert "corrupt" not in out
    assert "restore" not in out
    done = (stage.directory / "reports/ticks.log").read_text().count("x")
    (small_disk / "ballast").unlink()
    assert done <= count(stage, "action.intended")  # nothing was done that is not on record
    await daemon.start()
    before = count(stage, "session.closed")
    await daemon.until(lambda: count(stage, "session.closed") > before)
    assert daemon.stop() == 0
    code, out = daemon.say("verify")
    assert code == 0, out


async def test_clients_that_say_nothing_or_hang_on_do_not_keep_the_daemon_from_stopping(
    stage: Stage, daemon: Daemon
) -> None:
    stage.playbook("tick", TICK, tools="append_file")
    await daemon.start()
    path = str(stage.directory / "state" / "control.sock")
    with contextlib.ExitStack() as clients:
        for number in range(80):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(path)
            client.sendall(b"" if number % 2 else b'{"token": "')
        await daemon.until(lambda: daemon.ask("status")["daemon"]["answers"])
        assert daemon.stop() == 0
    assert not Path(path).exists()


async def test_a_hangup_reloads_and_a_second_signal_ends_at_once(stage: Stage, daemon: Daemon) -> None:
    stage.write("hang.py", "import time\nopen('work/ready', 'w').close()\ntime.sleep(3600)\n")
    stage.write("work/empty", "")
    config = (stage.directory / "perdure.toml").read_text()
    tool = f'[tools.hang]\ncommand = [{json.dumps(sys.executable)}, "hang.py"]\neffect = "once"\nwrite = ["work"]\ntimeout = "600s"\n'
    stage.write("perdure.toml", config + tool)
    stage.write("policies/hang.yaml", "version: 1\nrules:\n  - {name: hanging, tools: [hang], decide: auto}\n")
    stage.playbook("wait", "\n  - {do: hang}\n", tools="hang", extra="schedule: {every: 1s}\n")
    await daemon.start("--quiet")
    assert daemon.process is not None
    await daemon.until((stage.directory / "work/ready").exists)
    os.kill(daemon.process.pid, signal.SIGHUP)
    await daemon.until(lambda: daemon.log.read_text().count("reloaded"))
    os.kill(daemon.process.pid, signal.SIGTERM)
    first = daemon.process
    while first.poll() is None:  # the echo of the first signal does not count: say it until it is heard
        os.kill(first.pid, signal.SIGTERM)
        try:
            first.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            continue
    assert first.returncode == 130
    daemon.process = None
    (stage.directory / "hang.py").write_text("pass\n")
    await daemon.start()  # what was open is settled: a person is asked about the outcome that nobody saw
    (question,) = await daemon.until(lambda: daemon.ask("inbox")["questions"])
    assert question["tool"] == "hang"
    assert daemon.stop() == 0


async def test_a_state_directory_far_down_is_reached(tmp_path: Path) -> None:
    stage = Stage(tmp_path / ("deep/" * 20) / "workspace")
    link = tmp_path / "short"
    link.symlink_to(stage.directory)
    stage.playbook("tick", TICK, tools="append_file", extra="schedule: {every: 1s}\n")
    ended = subprocess.run(  # noqa: ASYNC221 - nothing else runs meanwhile
        [sys.executable, "-m", "perdure.daemon.cli", "-w", str(link), "run", "--sessions", "2"],
        capture_output=True, cwd=tmp_path, timeout=WAIT_SECONDS, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr.decode()
    assert len((stage.directory / "reports/ticks.log").read_text()) >= 2


TELL = """#!/bin/sh
if [ -e die ]; then rm die; kill -9 $PPID; exit; fi
cat >>told.jsonl
"""


async def test_a_failure_that_a_crash_kept_from_being_told_is_told_at_the_next_start(
    stage: Stage, daemon: Daemon
) -> None:
    """The program that is to tell of the failure kills the daemon."""
    stage.write("tell.sh", TELL).chmod(0o755)
    config = (stage.directory / "perdure.toml").read_text()
    stage.write("perdure.toml", f'{config}\n[notify]\ncommand = ["{stage.directory}/tell.sh"]\non = ["failed"]\n')
    stage.playbook("fails", "\n  - {do: read_file, args: {path: reports/none.md}}\n", tools="read_file")
    stage.write("die", "")
    await daemon.start()
    daemon.say("session", "run", "fails")
    assert daemon.ended() == -signal.SIGKILL
    assert not (stage.directory / "told.jsonl").exists()
    for _ in range(2):
        await daemon.start()
        assert daemon.stop() == 0
    (told,) = map(json.loads, (stage.directory / "told.jsonl").read_text().splitlines())
    assert told["title"] == "fails: session failed"
    assert "before it could tell" in told["text"]
