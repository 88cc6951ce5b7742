"""supervisord running the project's own supervisord.conf, for a stand-in or for the daemon itself."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
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

    def age_heartbeat(self, pid: int) -> None:
        """A stopped daemon's last beat lies further back than supervisord.conf allows: a minute need not pass, and no pause of a
        busy machine is taken for a hang."""
        (self.state / "heartbeat").write_text(f"{pid} {time.monotonic_ns() - 61 * 10**9}\n")


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
    def run(program: Path, workspace: Path) -> Iterator[Supervised]:
        programs = home / "bin"
        programs.mkdir()
        (programs / "perdure").write_text(f'#!/bin/sh\nexec "{program}" "$@"\n')
        (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        for name in ("perdure", "python"):
            (programs / name).chmod(0o755)
        state = workspace / "state"
        state.mkdir(mode=0o700, parents=True)
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(home),
            "PERDURE_BIN": str(programs),
            "PERDURE_WORKSPACE": str(workspace),
            "PERDURE_STATE": str(state),
        }
        with subprocess.Popen(
            [BIN / "supervisord", "-c", repository / "systemd" / "supervisord.conf"],
            env=environment,
            cwd=home,
            umask=0o077,
        ) as process:
            try:
                yield Supervised(state, process)
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    assert process.wait(timeout=120) == 0
                finally:
                    process.kill()

    return run
