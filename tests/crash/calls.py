"""The system-call sweep with strace, on the unmodified program: killed on entry of its n-th call of a kind. An independent
confirmation of the shim, which it shares nothing with."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from .agents import Observer
from .checks import violations
from .matrix import ROOT
from .progress import Progress

CALLS = ("write", "pwrite64", "fdatasync", "fsync", "ftruncate", "unlink", "rename")
REPOSITORY = Path(__file__).resolve().parents[2]


def missing() -> str | None:
    """Why there is no sweep here; None: there can be."""
    if shutil.which("strace") is None:
        return "there is no strace"
    process = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False)
    return None if process.returncode == 0 else "strace may not trace here"


def explore(*, samples: int, seed: int, progress: Progress) -> tuple[int, list[str]]:
    """(kills that really happened, broken promises); `samples` 0: every call."""
    counts = _counts()
    points = [(call, number) for call in CALLS for number in range(1, counts[call] + 1)]
    if samples:
        points = random.Random(seed).sample(points, min(samples, len(points)))
    happened, failures = 0, []
    for call, number in progress.over(points, len(points)):
        progress.broken = len(failures)
        root = Path(tempfile.mkdtemp(prefix="perdure-strace-", dir=ROOT))
        try:
            inject = f"inject={call}:signal=KILL:when={number}"
            if _run(root, "-e", f"trace={call}", "-e", inject, "-o", "/dev/null") == 0:
                continue
            happened += 1
            if (code := _run(root)) != 0:
                failures.append(f"{call} {number}: the recovery itself ended with status {code}")
                continue
            failures += [f"{call} {number}: {text}" for text in violations(root / "state", Observer(root / "observer"))]
        finally:
            shutil.rmtree(root)
    return happened, failures


def _counts() -> Counter[str]:
    root = Path(tempfile.mkdtemp(prefix="perdure-strace-", dir=ROOT))
    try:
        assert _run(root, "-e", f"trace={','.join(CALLS)}", "-o", str(root / "trace")) == 0
        text = (root / "trace").read_text()
    finally:
        shutil.rmtree(root)
    return Counter(re.findall(r"^\d+\s+(\w+)\(", text, re.MULTILINE))


def _run(root: Path, *traced: str) -> int:
    command = [sys.executable, "-B", "-m", "tests.crash.worker", str(root / "state"), str(root / "observer")]
    prefix = ["strace", "-f", "-qq", *traced] if traced else []
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    process = subprocess.run(
        [*prefix, *command], cwd=REPOSITORY, env=environment, capture_output=True, check=False, process_group=0
    )
    return process.returncode
