"""`make bench-reliability`: what each mechanism does to a planner that is right with probability p a step; table, plots, JSON.

The large cells run in memory around Perdure's own policies, votes, confidence and certainty (in_memory.py); a part of them
runs again through real sessions with a real ledger (through_sessions.py), and the table says which is which. Nobody answers
questions here: a workflow that asks a person counts neither as proven nor as silent."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import in_memory
from .page import page
from .plot import svg
from .verdicts import fidelity, verdicts
from .workflows import ROWS, Cell

SEED = 20261122
STEPS, PROBABILITIES = (5, 10, 20, 50), (0.70, 0.85, 0.95)
VALIDATED = ((5, 0.85), (10, 0.85))
VALIDATED_ROWS = ("bounds only", "+ postconditions", "+ confidence floor", "+ voting k=3", "all (k=5, 1 retry)")
REPETITIONS = 40  # of a cell in memory that real sessions are compared with
DOCS = Path(__file__).resolve().parents[3] / "docs"


def in_memory_cell(job: tuple[int, int, float, int, int, bool, str]) -> Cell:
    row, steps, p, workflows, seed, correlated, directory = job
    place = Path(directory) / f"{row}-{steps}-{p}-{correlated}"
    return in_memory.cell(ROWS[row], steps, p, workflows, seed, place, correlated=correlated)


def sessions_cell(job: tuple[int, int, float, int, int, str]) -> Cell:
    from . import through_sessions

    row, steps, p, workflows, seed, directory = job
    return through_sessions.cell(ROWS[row], steps, p, workflows, seed, Path(directory) / f"real-{row}-{steps}-{p}")


def cells_like_sessions(job: tuple[int, int, float, int, int, str]) -> list[Cell]:
    row, steps, p, workflows, seed, directory = job
    place = Path(directory) / f"like-{row}-{steps}-{p}"
    return in_memory.cells_like_sessions(ROWS[row], steps, p, workflows, seed, place, repetitions=REPETITIONS)


def record(mode: str, row: int, steps: int, p: float, cell: Cell, bare: Cell) -> dict[str, Any]:
    """One cell as numbers: shares and means with their standard errors, tokens as multiples."""
    n = cell.workflows
    whole = sum(in_memory.prompt_tokens(done) + in_memory.ANSWER_TOKENS for done in range(steps + 1))
    of_bare = bare.tokens / bare.workflows
    proven, silent = cell.proven / n, cell.silent / n
    asked, shared = cell.escalations / n, cell.shared / n
    spread = [
        math.sqrt(max(0.0, squares / n - mean**2)) for squares, mean in zip(cell.squares, (asked, shared), strict=True)
    ]
    return {
        "mode": mode, "row": ROWS[row].name, "steps": steps, "p": p, "workflows": n, "proven": proven,
        "proven_error": math.sqrt(proven * (1 - proven) / n), "silent": silent,
        "silent_error": math.sqrt(silent * (1 - silent) / n), "escalations": asked,
        "escalations_error": spread[0] / math.sqrt(n), "tokens": cell.tokens / n, "shared": shared,
        "shared_error": spread[1] / math.sqrt(n), "tokens_of_bare": cell.tokens / n / of_bare,
        "tokens_of_whole_bare": cell.tokens / n / whole, "shared_of_bare": shared / of_bare,
        "shared_of_whole_bare": shared / whole,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.reliability", description=__doc__)
    parser.add_argument("--workflows", type=int, default=10_000, help="for each cell in memory")
    parser.add_argument("--quick", action="store_true", help="500 workflows for each cell, 20 through real sessions")
    parser.add_argument("--sessions", type=int, default=200, help="for each cell through real sessions; 0: none")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("build/reliability"), help="where JSON and plots go")
    parser.add_argument("--docs", action="store_true", help="write docs/reliability.md and its pictures, too")
    parser.add_argument("--p", type=float, nargs="+", default=PROBABILITIES)
    given = parser.parse_args()
    if given.quick:
        given.workflows, given.sessions = 500, min(20, given.sessions)
    memory = Path("/dev/shm")  # a disk of memory, where there is one
    given.output.mkdir(parents=True, exist_ok=True)
    place = str((memory if memory.is_dir() else given.output) / "perdure-reliability")
    started = time.monotonic()
    keys = [("independent", row, steps, p) for p in given.p for row in range(len(ROWS)) for steps in STEPS]
    keys += [("correlated", row, steps, 0.85) for row in range(len(ROWS)) for steps in STEPS if 0.85 in given.p]
    names = {row.name: index for index, row in enumerate(ROWS)}
    real = [
        ("sessions", names[name], steps, p)
        for steps, p in VALIDATED
        for name in VALIDATED_ROWS
        if given.sessions and p in given.p
    ]
    with ProcessPoolExecutor(given.workers) as pool:
        small = {key: pool.submit(sessions_cell, (*key[1:], given.sessions, given.seed, place)) for key in real}
        large = {
            key: pool.submit(in_memory_cell, (*key[1:], given.workflows, given.seed, key[0] == "correlated", place))
            for key in keys
        }
        like = {key: pool.submit(cells_like_sessions, (*key[1:], given.sessions, given.seed, place)) for key in real}
        cells = {}
        for number, (key, job) in enumerate({**small, **large}.items(), 1):
            cells[key] = job.result()
            done = f"\r{number} of {len(keys) + len(real)} cells, {time.monotonic() - started:.0f} s"
            print(done, end="", file=sys.stderr)
        alike = {(ROWS[row].name, steps, p): job.result() for (_, row, steps, p), job in like.items()}
    print(file=sys.stderr)
    records = [
        record(mode, row, steps, p, cells[mode, row, steps, p],
               cells["correlated" if mode == "correlated" else "independent", 0, steps, p])
        for mode, row, steps, p in (*keys, *real)
    ]  # fmt: skip
    checks = verdicts(records) + fidelity(records, alike)
    report = {"seed": given.seed, "rows": [asdict(row) for row in ROWS], "cells": records, "checks": checks}
    text = page(report)
    print(text)
    (given.output / "reliability.json").write_text(json.dumps(report, indent=1))
    (given.output / "reliability.md").write_text(text)
    pictures = {"reliability.svg" if p == 0.85 else f"reliability-{p:.2f}.svg": svg(records, p) for p in given.p}
    for directory in (given.output, *([DOCS / "pictures"] if given.docs else [])):
        for name, picture in pictures.items():
            (directory / name).write_text(picture)
    if given.docs:
        (DOCS / "reliability.md").write_text(text)
    print(
        f"{given.output}: reliability.json, reliability.md, {', '.join(pictures)}; {time.monotonic() - started:.0f} s"
    )
    return 0 if checks and checks[0][1] else 1


if __name__ == "__main__":
    sys.exit(main())
