"""`make bench-reliability`: what each mechanism does to a planner that is right with probability p a step; table, plot, JSON.

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
from .plot import svg
from .workflows import FALSE_ALARM, FLOOR, MISS, ROWS, Cell

SEED = 20261122
STEPS, PROBABILITIES = (5, 10, 20, 50), (0.70, 0.85, 0.95)
VALIDATED = ((5, 0.85), (10, 0.85))
VALIDATED_ROWS = ("bounds only", "+ postconditions", "+ confidence floor", "+ voting k=3", "all (k=5, 1 retry)")


def in_memory_cell(job: tuple[int, int, float, int, int, bool, str]) -> Cell:
    row, steps, p, workflows, seed, correlated, directory = job
    place = Path(directory) / f"{row}-{steps}-{p}-{correlated}"
    return in_memory.cell(ROWS[row], steps, p, workflows, seed, place, correlated=correlated)


def sessions_cell(job: tuple[int, int, float, int, int, str]) -> Cell:
    from . import through_sessions

    row, steps, p, workflows, seed, directory = job
    return through_sessions.cell(ROWS[row], steps, p, workflows, seed, Path(directory) / f"real-{row}-{steps}-{p}")


def record(mode: str, row: int, steps: int, p: float, cell: Cell, bare: Cell) -> dict[str, Any]:
    """One cell as numbers: shares with their standard errors, tokens as multiples."""
    n = cell.workflows
    full = sum(in_memory.prompt_tokens(done) + in_memory.ANSWER_TOKENS for done in range(steps + 1))
    proven, silent = cell.proven / n, cell.silent / n
    return {
        "mode": mode, "row": ROWS[row].name, "steps": steps, "p": p, "workflows": n, "proven": proven,
        "proven_error": math.sqrt(proven * (1 - proven) / n), "silent": silent,
        "silent_error": math.sqrt(silent * (1 - silent) / n), "escalations": cell.escalations / n,
        "tokens": cell.tokens / n, "tokens_of_bare": cell.tokens / n / (bare.tokens / bare.workflows),
        "tokens_of_whole_bare": cell.tokens / n / full,
    }  # fmt: skip


def line(one: dict[str, Any]) -> str:
    return (
        f"  {one['row']:<20} {one['steps']:>3} {one['proven']:>9.2%} ±{one['proven_error']:.2%} {one['silent']:>9.3%} "
        f"±{one['silent_error']:.3%} {one['escalations']:>8.3f} {one['tokens_of_bare']:>7.2f} {one['tokens_of_whole_bare']:>7.2f}"
        f" {one['workflows']:>7}"
    )


HEAD = (
    f"  {'':<20} {'n':>3} {'proven':>16} {'silent wrong':>18} {'asked':>7} {'tokens':>8} {'whole':>7} {'workflows':>8}"
)


def show(records: list[dict[str, Any]]) -> None:
    titles = {
        "independent": "in memory, draws err independently",
        "correlated": "in memory, the draws of a step err together",
        "sessions": "through real sessions, ledger and tools, draws err independently",
    }
    for mode, title in titles.items():
        for p in sorted({one["p"] for one in records if one["mode"] == mode}):
            print(f"\np = {p:.2f}, {title}\n{HEAD}")
            for one in records:
                if one["mode"] == mode and one["p"] == p:
                    print(line(one))
    print(
        f"\nverifier: misses {MISS:.0%}, false alarms {FALSE_ALARM:.0%}; floor of a session's confidence {FLOOR}; at most 25 draws;"
        "\ntokens: against the bare loop's own; whole: against a bare loop that never ends early by a false claim"
    )


def verdicts(records: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    """The check of the experiment and its goals, each with whether it is met."""

    def one(mode: str, row: str, steps: int, p: float = 0.85) -> dict[str, Any] | None:
        keys = (mode, row, steps, p)
        return next((r for r in records if (r["mode"], r["row"], r["steps"], r["p"]) == keys), None)

    found: list[tuple[str, bool]] = []
    if (bare := one("independent", "bare loop", 10)) is not None:
        off = abs(bare["proven"] - 0.85**10)
        error = math.sqrt(0.85**10 * (1 - 0.85**10) / bare["workflows"])
        found.append(
            (
                f"bare loop, p 0.85, 10 steps: {bare['proven']:.2%}, expected {0.85**10:.2%} ± {error:.2%}",
                off < 3 * error,
            )
        )
    for steps, goal in ((10, 0.99), (50, 0.97)):
        if (row := one("independent", ROWS[-1].name, steps)) is not None:
            found.append((f"all, {steps} steps: proven {row['proven']:.2%}, goal {goal:.0%}", row["proven"] >= goal))
            found.append((f"all, {steps} steps: silent wrong {row['silent']:.3%}, goal 0.1 %", row["silent"] <= 0.001))
            text = f"all, {steps} steps: {row['tokens_of_bare']:.2f} × the bare loop's tokens, goal 8"
            found.append((text, row["tokens_of_bare"] <= 8))
            text = f"all, {steps} steps: {row['tokens_of_whole_bare']:.2f} × the tokens of a bare loop that ends late, goal 8"
            found.append((text, row["tokens_of_whole_bare"] <= 8))
    for steps in STEPS:
        if (row := one("correlated", ROWS[-1].name, steps)) is not None:
            through = row["silent"] / (1 - 0.85**steps)
            error = math.sqrt(MISS * (1 - MISS) / (row["workflows"] * (1 - 0.85**steps)))
            text = f"all, correlated, {steps} steps: {through:.2%} of the wrong get through silently, verifier misses {MISS:.0%}"
            found.append((text, through <= MISS + 3 * error))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.reliability", description=__doc__)
    parser.add_argument("--workflows", type=int, default=10_000, help="for each cell in memory")
    parser.add_argument("--quick", action="store_true", help="500 workflows for each cell, 20 through real sessions")
    parser.add_argument("--sessions", type=int, default=200, help="for each cell through real sessions; 0: none")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("build/reliability"), help="where JSON and plot go")
    parser.add_argument("--p", type=float, nargs="+", default=PROBABILITIES)
    given = parser.parse_args()
    if given.quick:
        given.workflows, given.sessions = 500, min(20, given.sessions)
    memory = Path("/dev/shm")  # a disk of memory, where there is one
    given.output.mkdir(parents=True, exist_ok=True)
    place = str((memory if memory.is_dir() else given.output) / "perdure-reliability")
    started = time.monotonic()
    keys = [("independent", row, steps, p) for p in given.p for row in range(len(ROWS)) for steps in STEPS]
    keys += [("correlated", row, steps, 0.85) for row in range(len(ROWS)) for steps in STEPS]
    names = {row.name: index for index, row in enumerate(ROWS)}
    real = [("sessions", names[name], steps, p) for steps, p in VALIDATED for name in VALIDATED_ROWS if given.sessions]
    with ProcessPoolExecutor(given.workers) as pool:
        large = {
            key: pool.submit(in_memory_cell, (*key[1:], given.workflows, given.seed, key[0] == "correlated", place))
            for key in keys
        }
        small = {key: pool.submit(sessions_cell, (*key[1:], given.sessions, given.seed, place)) for key in real}
        cells = {}
        for number, (key, job) in enumerate({**large, **small}.items(), 1):
            cells[key] = job.result()
            print(
                f"\r{number} of {len(keys) + len(real)} cells, {time.monotonic() - started:.0f} s",
                end="",
                file=sys.stderr,
            )
    records = [
        record(mode, row, steps, p, cell, cells["correlated" if mode == "correlated" else "independent", 0, steps, p])
        for (mode, row, steps, p), cell in cells.items()
    ]
    print(file=sys.stderr)
    show(records)
    checks = verdicts(records)
    for words, met in checks:
        print(f"{'met   ' if met else 'MISSED'} {words}")
    report = {"seed": given.seed, "rows": [asdict(row) for row in ROWS], "cells": records, "checks": checks}
    (given.output / "reliability.json").write_text(json.dumps(report, indent=1))
    (given.output / "reliability.svg").write_text(svg(records))
    print(
        f"\n{given.output / 'reliability.json'}, {given.output / 'reliability.svg'}; {time.monotonic() - started:.0f} s"
    )
    return 0 if checks and checks[0][1] else 1


if __name__ == "__main__":
    sys.exit(main())
