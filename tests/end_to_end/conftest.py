"""A real daemon process on a small real workspace."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.daemon.stage import Stage

WAIT_SECONDS = 120.0  # a loaded machine takes its time; what is waited for comes in a second or two elsewhere


class Unanswered(AssertionError):
    """A command that was to succeed did not."""


def _not_waiting(condition: Callable[[], Any], **_: object) -> Any:
    return condition()


class Daemon:
    """`perdure run` on a stage, as a process."""

    def __init__(self, stage: Stage, eventually: Callable[..., Any] | None = None) -> None:
        self.stage = stage
        self._eventually = eventually or _not_waiting
        self.log = stage.directory.parent / "daemon.log"
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self, *arguments: str, tasks: int | None = None) -> None:
        """Start and wait until it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: ASYNC220 - it is started once, and outlives the call
                [sys.executable, "-m", "perdure.daemon.cli", "run", *arguments],
                cwd=self.stage.directory, stdout=log, stderr=log, env=environment(self.stage),
            )  # fmt: skip
        await self.until(lambda: self.ask("status")["daemon"]["answers"])

    def ask(self, *arguments: str, check: bool = True) -> Any:
        """The JSON answer of a command on this workspace."""
        code, out = self.say("--json", *arguments)
        if check and code != 0:
            raise Unanswered(out)
        return json.loads(out)

    def say(self, *arguments: str) -> tuple[int, str]:
        """Exit code and output of a command on this workspace."""
        ended = subprocess.run(
            [sys.executable, "-m", "perdure.daemon.cli", *arguments],
            cwd=self.stage.directory, capture_output=True, env=environment(self.stage), timeout=WAIT_SECONDS, check=False,
        )  # fmt: skip
        return ended.returncode, (ended.stdout + ended.stderr).decode()

    async def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until the condition holds; its value."""

        def holds() -> Any:
            assert self.process is None or self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(KeyError, TypeError, json.JSONDecodeError, Unanswered):
                return condition()

        return self._eventually(holds, seconds_max=WAIT_SECONDS)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        """Wait for the end; the exit code."""
        assert self.process is not None
        code = self.process.wait(timeout=WAIT_SECONDS)
        self.process = None
        return code


def environment(stage: Stage) -> dict[str, str]:
    """The environment of a command on this workspace."""
    return {**os.environ, "PERDURE_WORKSPACE": str(stage.directory), "COLUMNS": "200", "NO_COLOR": "1"}


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """A workspace with one file in its inbox."""
    stage = Stage(tmp_path / "workspace")
    stage.write("inbox/one.log", "a line\n")
    return stage


@pytest.fixture
def daemon(stage: Stage, eventually: Callable[..., Any]) -> Iterator[Daemon]:
    """A daemon for the stage, ended with the test."""
    daemon = Daemon(stage, eventually)
    yield daemon
    if daemon.process is not None:
        daemon.process.kill()
        daemon.process.wait()
