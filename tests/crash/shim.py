"""The preloaded shim: built once with the C compiler, and driven from inside the program under test."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
MODES = ("kill", "kill-after", "torn", "enospc", "disk-full", "eio")
KINDS_MAX = 65536
NO_DATA, TAKES_SPACE, WRITES = range(3)  # what a call does
NEEDS = {"torn": WRITES, "enospc": TAKES_SPACE, "disk-full": TAKES_SPACE}  # what a call must do at least, to be hit


def build() -> Path | None:
    """The shared library, built if it is not there yet; None where there is no C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    name = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"perdure-shim-{os.getuid()}-{name}.so"
    if not library.exists():
        unborn = library.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", unborn, SOURCE, "-ldl"], check=True)
        unborn.rename(library)
    return library


class Shim:
    """The shim as loaded into this process by LD_PRELOAD."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        self._library.shim_calls.restype = self._library.shim_fired.restype = ctypes.c_long
        self._library.shim_kinds.restype = ctypes.c_void_p

    def arm(self, directory: Path, call: int, mode: str) -> None:
        """Watch `directory`; at its `call`th state-changing call (0: never) do `mode`."""
        self._library.shim_arm(os.fsencode(directory), ctypes.c_long(call), MODES.index(mode))

    def trace(self, file: int) -> None:
        """Record every watched call to this file descriptor."""
        self._library.shim_trace(file)

    def note(self, text: str) -> None:
        """Put a remark of the observer into the trace."""
        self._library.shim_note(text.encode())

    def disarm(self) -> None:
        self._library.shim_disarm()

    @property
    def calls(self) -> bytes:
        """The watched calls since `arm`, each as what it does."""
        count = min(int(self._library.shim_calls()), KINDS_MAX)
        return ctypes.string_at(self._library.shim_kinds(), count)

    @property
    def fired(self) -> bool:
        """Whether the fault happened (a torn write needs a write, a full disk too)."""
        return bool(self._library.shim_fired())
