"""Starting the index's child process, talking to it, and noticing that it died."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any, BinaryIO, cast

from perdure.errors import PerdureError
from perdure.memory.frames import receive, send

# What the child needs of the environment. Keys of model providers are not among it.
INHERITED = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "XDG_CACHE_HOME",
    "LD_LIBRARY_PATH",
    "VIRTUAL_ENV",
    "PYTHONPATH",
    "PYTHONHOME",
)
IDLE_SECONDS = 120.0


class ChildFailed(PerdureError):
    """The child refused, died, or did not answer in time (`kind` TimeoutError); what it was asked can be asked again. `kind`
    names the child's own exception, where it raised one."""

    def __init__(self, operation: str, object: str, cause: str, hint: str, kind: str = "") -> None:
        super().__init__(operation, object, cause, hint)
        self.kind = kind


class IndexChild:
    """One running child process. `dead` becomes true when it has gone, for whatever reason."""

    def __init__(self, log: Path, idle_seconds: float = IDLE_SECONDS) -> None:
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
        environment |= {"ANONYMIZED_TELEMETRY": "False", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        with log.open("wb") as words:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "perdure.memory.index_server", str(os.getpid()), str(idle_seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                env=environment,
                cwd=log.parent,
            )
        self.pid = self._process.pid
        self.dead = False
        self._exit_code: int | None = None
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[tuple[dict[str, Any], bytes]]] = {}
        self._listener = threading.Thread(target=self._listen, name="perdure-index-answers", daemon=True)
        self._listener.start()

    def ask(self, do: str, *, blob: bytes = b"", seconds_max: float, **details: Any) -> tuple[dict[str, Any], bytes]:
        """One request and its answer. Raises ChildFailed."""
        answer: Future[tuple[dict[str, Any], bytes]] = Future()
        with self._lock:
            if self.dead:
                raise _failed(do, "the index process is gone")
            number = next(self._numbers)
            self._waiting[number] = answer
            try:
                send(cast("BinaryIO", self._process.stdin), {"id": number, "do": do, **details}, blob)
            except OSError as error:
                self._waiting.pop(number, None)
                self.dead = True
                raise _failed(do, f"the index process is gone ({error.strerror})") from error
        try:
            header, data = answer.result(seconds_max)
        except FutureTimeout as error:
            self._waiting.pop(number, None)
            cause = f"the index process did not answer within {seconds_max:g} s"
            raise _failed(do, cause, TimeoutError.__name__) from error
        if not header["ok"]:
            raise _failed(do, str(header["error"]), str(header.get("kind", "")))
        return header, data

    @property
    def exit_code(self) -> int | None:
        """How it ended; 0 when it was idle, None while it runs. A kill by `close` does not count."""
        return self._exit_code

    def close(self) -> None:
        """End it and wait until it has ended. Nothing in it is worth keeping."""
        if self.dead:
            self._exit_code = self._process.wait()
        else:
            self._process.kill()
            self._process.wait()
            self._exit_code = 0
        self._listener.join()
        for stream in (self._process.stdin, self._process.stdout):
            try:
                if stream is not None:
                    stream.close()
            except BrokenPipeError:  # a request that it never read
                pass

    def _listen(self) -> None:
        stream = cast("BinaryIO", self._process.stdout)
        try:
            while (message := receive(stream)) is not None:
                waiting = self._waiting.pop(int(message[0]["id"]), None)
                if waiting is not None:
                    waiting.set_result(message)
        except (OSError, ValueError, KeyError):  # what it says is no message: it is as good as dead
            self._process.kill()
        with self._lock:
            self.dead = True
            left, self._waiting = self._waiting, {}
        for future in left.values():
            future.set_exception(_failed("ask", "the index process died"))


def _failed(do: str, cause: str, kind: str = "") -> ChildFailed:
    return ChildFailed(do, "the vector index", cause, "Memory searches exactly in SQLite meanwhile", kind)
