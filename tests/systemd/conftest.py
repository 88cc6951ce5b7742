"""supervisord running the project's own supervisord.conf, for a stand-in or for the daemon itself."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from supervisor import childutils

BIN = Path(sys.executable).parent


@dataclass
class Supervised:
    state: Path
    process: subprocess.Popen[bytes]

    def ask(self, operation: str, *arguments: Any) -> Any:
        with childutils.getRPCInterface({"SUPERVISOR_SERVER_URL": f"unix://{self.state}/supervisord.sock"}) as server:
            return getattr(server.supervisor, operation)(*arguments)

    def info(self) -> dict[str, Any]:
        try:
            return self.ask("getProcessInfo", "perdure")
        except OSError:  # not up yet, or gone
            return {"statename": "UNREACHABLE", "pid": 0}

    def signal(self, name: str) -> None:
        self.ask("signalProcess", "perdure", name)

    def start(self) -> None:
        self.ask("startProcess", "perdure")


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory with a short name: a Unix socket's path has 107 characters at most."""
    made = Path(tempfile.mkdtemp(prefix="perdure-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def supervised(repository: Path, home: Path) -> Callable[..., Any]:
    """A context manager that runs supervisord; `program` is what stands where `perdure` would."""

    @contextmanager
    def run(program: Path, workspace: Path, seconds_silent_max: int) -> Iterator[Supervised]:
        programs = home / "bin"
        programs.mkdir()
        (programs / "perdure").write_text(f'#!/bin/sh\nexec "{program}" "$@"\n')
        (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        for name in ("perdure", "python"):
            (programs / name).chmod(0o755)
        state = workspace / "state"
        state.mkdir(mode=0o700, parents=True)
        text = (repository / "systemd" / "supervisord.conf").read_text()
        assert "--seconds 60" in text
        configuration = home / "supervisord.conf"
        configuration.write_text(text.replace("--seconds 60", f"--seconds {seconds_silent_max}"))
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(home),
            "PERDURE_BIN": str(programs),
            "PERDURE_WORKSPACE": str(workspace),
            "PERDURE_STATE": str(state),
        }
        with subprocess.Popen(
            [BIN / "supervisord", "-c", configuration], env=environment, cwd=home, umask=0o077
        ) as process:
            try:
                yield Supervised(state, process)
            finally:
                process.send_signal(signal.SIGTERM)
                assert process.wait(timeout=60) == 0

    return run
