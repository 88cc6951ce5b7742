"""The check of the experiment, its goals, and whether real sessions say the same as the cells in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from .workflows import MISS, ROWS, Cell

Check = tuple[str, bool]
SIGMAS = 3.0
BARE, ALL = ROWS[0].name, ROWS[-1].name


def one(records: list[dict[str, Any]], mode: str, row: str, steps: int, p: float = 0.85) -> dict[str, Any] | None:
    keys = (mode, row, steps, p)
    return next((r for r in records if (r["mode"], r["row"], r["steps"], r["p"]) == keys), None)


def verdicts(records: list[dict[str, Any]]) -> list[Check]:
    """Each with whether it is met. The first is the check of the experiment itself."""
    found: list[Check] = []
    for p in sorted({r["p"] for r in records}, key=lambda p: abs(p - 0.85)):
        if (bare := one(records, "independent", BARE, 10, p)) is not None:
            error = math.sqrt(p**10 * (1 - p**10) / bare["workflows"])
            words = f"bare loop, p = {p:.2f}, 10 steps: {bare['proven']:.2%} proven, expected {p**10:.2%} ± {error:.2%}"
            found.append((words, abs(bare["proven"] - p**10) < SIGMAS * error))
    for steps, goal in ((10, 0.99), (50, 0.97)):
        if (row := one(records, "independent", ALL, steps)) is not None:
            about = f"p = 0.85, {ALL}, {steps} steps"
            found.append((f"{about}: {row['proven']:.2%} proven, goal {goal:.0%}", row["proven"] >= goal))
            found.append((f"{about}: {row['silent']:.3%} silently wrong, goal 0.1 %", row["silent"] <= 0.001))
            for key, words in (
                ("shared_of_bare", "the bare loop's own tokens, a vote's draws in one call"),
                ("tokens_of_bare", "the bare loop's own tokens, each draw a call"),
                ("shared_of_whole_bare", "a bare loop's that goes to the end, a vote's draws in one call"),
                ("tokens_of_whole_bare", "a bare loop's that goes to the end, each draw a call"),
            ):
                found.append((f"{about}: {row[key]:.2f} × {words}, goal 8", row[key] <= 8))
    for p in sorted({r["p"] for r in records}):
        for steps in sorted({r["steps"] for r in records}):
            if (row := one(records, "correlated", ALL, steps, p)) is not None:
                wrong = 1 - p**steps
                error = math.sqrt(MISS * (1 - MISS) / (row["workflows"] * wrong))
                words = (
                    f"p = {p:.2f}, {ALL}, {steps} steps, correlated: of the wrong {row['silent'] / wrong:.2%} get through "
                    f"silently, the verifier misses {MISS:.0%}"
                )
                found.append((words, row["silent"] / wrong <= MISS + SIGMAS * error))
    return found


def fidelity(records: list[dict[str, Any]], alike: Mapping[tuple[str, int, float], Sequence[Cell]]) -> list[Check]:
    """Real sessions against `alike`, repetitions of the same cell in memory under the same circumstances: within three standard
    errors of one repetition?"""
    found: list[Check] = []
    for real in (r for r in records if r["mode"] == "sessions"):
        cells = alike[real["row"], real["steps"], real["p"]]
        for key in ("proven", "silent", "escalations", "shared"):
            means = [getattr(cell, key) / cell.workflows for cell in cells]
            error = stdev(means) * math.sqrt(1 + 1 / len(means))
            off = abs(real[key] - fmean(means))
            shown = "{:.0f}" if key == "shared" else "{:.3f}"
            words = (
                f"{real['row']}, {real['steps']} steps, p = {real['p']:.2f}: {key} through sessions {shown.format(real[key])}, "
                f"in memory {shown.format(fmean(means))} ({off / error if error else 0:.1f} standard errors)"
            )
            found.append((words, off <= SIGMAS * error or off == 0))
    return found
