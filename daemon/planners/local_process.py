"""The local model's server as a child of this process: started at the first call, shared by all sessions, gone with us.

A child of its own because a model file can crash the library that loads it."""

from __future__ import annotations

import asyncio
import atexit
import os
import subprocess
import sys
from pathlib import Path
from threading import Lock, Timer

from perdure.errors import PerdureError

READY_SECONDS_MAX = 120.0
HINT = "Install the extra perdure[local] and name a GGUF file as `file` in [model]; `make local-model` gets a small one"

_running: dict[tuple[Path, int, int], tuple[subprocess.Popen[bytes], str]] = {}
_starting = Lock()


async def endpoint(file: Path, context_tokens: int, answers: int = 1) -> str:
    """The base URL of the server for this model, started where it does not run; it gives up to `answers` answers to a prompt
    at once. Raises PerdureError with what it said."""
    return await asyncio.to_thread(_endpoint, file, context_tokens, answers)


def stop() -> None:
    """End all servers that this process started, and wait for them."""
    with _starting:
        while _running:
            _, (process, _url) = _running.popitem()
            _end(process)


atexit.register(stop)  # a killed process needs none: the child ends when its standard input closes


def _endpoint(file: Path, context_tokens: int, answers: int) -> str:
    with _starting:
        found = _running.get((file, context_tokens, answers))
        if found is not None:
            process, url = found
            if process.poll() is None:
                return url
            _end(process)
            del _running[file, context_tokens, answers]
        process, url = _start(file, context_tokens, answers)
        _running[file, context_tokens, answers] = (process, url)
        return url


def _start(file: Path, context_tokens: int, answers: int) -> tuple[subprocess.Popen[bytes], str]:
    command = [sys.executable, "-m", "perdure.daemon.planners.local_server", "--model", str(file), "--port", "0"]
    command += ["--context", str(context_tokens), "--answers", str(answers), "--until-stdin-closes"]
    # nothing of our environment: keys have no business in a process that parses a downloaded file
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    assert process.stdout is not None
    patience = Timer(READY_SECONDS_MAX, process.kill)  # nobody could start another while this one is waited for
    patience.start()
    line = process.stdout.readline().decode(errors="replace").strip()
    patience.cancel()
    if not line.startswith("ready http://127.0.0.1:"):
        process.kill()
        assert process.stderr is not None
        said = process.stderr.read(4096).decode(errors="replace").strip().splitlines()
        _end(process)
        silent = f"it ended without a word, or was not ready within {READY_SECONDS_MAX:g} s and was ended"
        raise PerdureError("start the local model", str(file), said[-1] if said else silent, HINT)
    return process, f"{line.removeprefix('ready ')}/v1"


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
