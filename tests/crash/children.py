"""A forked child of this preloaded process that does one thing, with one fault in it."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

from perdure.errors import PerdureError

from .shim import KINDS_MAX, Shim

PR_SET_PDEATHSIG = 1
STOPPED = 3  # exit status of a child that stopped because it was told of the fault
CRASHED = (-signal.SIGKILL, STOPPED)


class Child:
    """Does `work` in a process of its own, with the fault `mode` at its `call`-th call below `directory` (0: none)."""

    def __init__(self, work: Callable[[], None], directory: Path, call: int = 0, mode: str = "kill") -> None:
        self._result = mmap.mmap(-1, 9 + KINDS_MAX)
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                ctypes.CDLL(None).prctl(
                    PR_SET_PDEATHSIG, signal.SIGKILL
                )  # a run that is ended early leaves none behind
                shim = Shim()
                code = _with_fault(work, shim, directory, call, mode)
                calls = shim.calls
                self._result[0:9] = len(calls).to_bytes(8, "little") + (b"\1" if shim.fired else b"\0")
                self._result[9 : 9 + len(calls)] = calls
            except BaseException:  # noqa: BLE001 - a child never goes on in its parent's code
                traceback.print_exc()
            finally:
                os._exit(code)

    def wait(self) -> tuple[int, bytes, bool]:
        """Its exit status, its calls (each as what it does, shim.py; empty if it was killed) and whether the fault happened."""
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        fired = self._result[8:9] == b"\1" or code == -signal.SIGKILL
        calls = self._result[9 : 9 + int.from_bytes(self._result[0:8], "little")]
        self._result.close()
        return code, calls, fired

    def ended(self) -> bool:
        """Whether it has come to its end; it is still to be waited for."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self) -> None:
        """End it, and wait until it has ended."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()


def _with_fault(work: Callable[[], None], shim: Shim, directory: Path, call: int, mode: str) -> int:
    shim.arm(directory, call, mode)
    try:
        work()
    except (PerdureError, OSError):
        if not shim.fired:
            raise
        return STOPPED
    finally:
        shim.disarm()
    return 0
