"""The vector index's process, and the process that uses it, SIGKILLed at seeded moments of compaction and indexing; and the
index's directory replaced by garbage, by an older copy, by nothing. Memory is compared with one made anew from the ledger, and
recall with exact search from SQLite."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import IO, Self

import psutil

from .progress import Progress

REPOSITORY = Path(__file__).resolve().parents[2]
LIFE_SECONDS_MAX = 400.0
CHILDREN_PER_LIFE = 7  # index processes killed in a life, before that life itself is
LIVES_PER_WORKSPACE = 3
WORDS = ("compacting", "indexing")
MOMENT_SECONDS_MAX = 0.12


def explore(*, kills: int, seed: int, progress: Progress) -> tuple[int, list[str], Counter[str]]:
    """(kills and replacements that happened, broken promises, how many of each)."""
    chance = random.Random(seed)
    places = Counter[str]()
    failures: list[str] = []
    lives = math.ceil(kills / (CHILDREN_PER_LIFE + 1))
    root = Path(tempfile.mkdtemp(prefix="perdure-index-"))
    try:
        workspace = root / "0"
        for life in progress.over(range(lives), lives):
            if life % LIVES_PER_WORKSPACE == 0:
                workspace = root / str(life)
            found = [*_live(workspace, chance, places), *_judged(workspace)]
            failures += [f"life {life}: {text}" for text in found]
            progress.broken = len(failures)
        older = root / "older"
        shutil.copytree(workspace / "index", older)
        for damage in ("garbage", "older copy", "nothing"):
            failures += [f"index replaced by {damage}: {text}" for text in _replaced(workspace, older, damage, chance)]
            places[f"replaced by {damage}"] += 1
    finally:
        shutil.rmtree(root)
    return places.total(), failures, places


def _live(workspace: Path, chance: random.Random, places: Counter[str]) -> list[str]:
    """A process that tells, compacts and indexes; its index process is killed a few times, and then itself."""
    found = []
    with _Life(workspace, sessions=60) as life:
        for victim in [*["index"] * CHILDREN_PER_LIFE, "memory"]:
            killed = False
            while not killed:  # there is not always an index process to kill
                word = chance.choice(WORDS)
                said = life.until(word)
                found += [line for line in said if line.startswith(("REFUSED", "FORGOTTEN"))]
                if not said or said[-1] != word:
                    return [*found, f"it ended by itself before it was killed; its last words: {life.errors()[-300:]}"]
                _wait(life.process, chance.uniform(0, MOMENT_SECONDS_MAX))
                killed = life.kill() if victim == "memory" else life.kill_index()
            places[f"{victim} while {word}"] += 1
    return found


def _replaced(workspace: Path, older: Path, damage: str, chance: random.Random) -> list[str]:
    index = workspace / "index"
    if damage == "garbage":
        for path in index.rglob("*"):
            if path.is_file() and path.name != "current":
                path.write_bytes(chance.randbytes(max(100, path.stat().st_size)))
    else:
        shutil.rmtree(index)
        if damage == "older copy":
            shutil.copytree(older, index)
    with _Life(workspace, sessions=2) as life:
        said = life.until(None)
        found = [line for line in said if line.startswith(("REFUSED", "FORGOTTEN"))]
        if life.process.wait() != 0:
            found.append(f"it ended with status {life.process.returncode}: {life.errors()[-300:]}")
    return [*found, *_judged(workspace)]


def _judged(workspace: Path) -> list[str]:
    process = subprocess.run(
        _command("judge", workspace), cwd=REPOSITORY, env=_environment(), capture_output=True, text=True,
        timeout=LIFE_SECONDS_MAX, check=False, process_group=0,
    )  # fmt: skip
    if process.returncode != 0:
        return [f"judging it failed: {process.stderr[-500:]}"]
    return list(json.loads(process.stdout))


class _Life:
    """One run of `remembering live`, ended with the block."""

    def __init__(self, workspace: Path, *, sessions: int) -> None:
        self._words: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the life
        self.process = subprocess.Popen(
            _command("live", workspace, str(sessions)), cwd=REPOSITORY, env=_environment(), stdout=subprocess.PIPE,
            stderr=self._words, text=True, process_group=0,
        )  # fmt: skip
        self._limit = threading.Timer(
            LIFE_SECONDS_MAX, self.process.kill
        )  # what hangs is killed, and so ended by itself
        self._limit.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._limit.cancel()
        self.kill()
        self._words.close()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def until(self, word: str | None) -> list[str]:
        """What it says up to that word, or up to its end."""
        said = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said.append(line.strip())
            if said[-1] == word:
                break
        return said

    def errors(self) -> str:
        self._words.seek(0)
        return self._words.read()

    def kill(self) -> bool:
        """SIGKILL it; True if that is what it died of."""
        self.process.kill()
        return self.process.wait() == -9

    def kill_index(self) -> bool:
        """SIGKILL its index process, if it has one."""
        for child in psutil.Process(self.process.pid).children():
            if child.status() != psutil.STATUS_ZOMBIE:
                child.kill()
                return True
        return False


def _command(do: str, workspace: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "tests.crash.remembering", do, str(workspace), *more]


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def _wait(process: subprocess.Popen[str], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return
