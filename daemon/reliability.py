"""How good the confidence numbers have been: Brier score, expected calibration error with its own sampling noise, a plot."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

BINS: Final = 10
TRIALS: Final = 1_000  # perfect scorers that are simulated
SEED: Final = 20_260_101
PLOT_WIDTH: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Proposals whose number lay between `low` and `high`: how many, what was said on average, what was right."""

    low: float
    high: float
    count: int
    said: float
    right: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """`ece` is the mean distance between what was said and what was right, by bins, weighted by their counts. A perfect
    scorer with as many outcomes shows `ece_perfect` on average and stays below `ece_perfect_95` in 95 of 100 cases: a
    difference within that is noise."""

    count: int
    brier: float
    base_rate: float
    ece: float
    ece_perfect: float
    ece_perfect_95: float
    bins: tuple[Bin, ...]


def reliability(said: Sequence[float], right: Sequence[float]) -> Reliability:
    """The figures for numbers and their outcomes (0 to 1). Raises ValueError for none at all."""
    if not said or len(said) != len(right):
        raise ValueError("as many outcomes as numbers, and at least one")
    chance = random.Random(SEED)  # noqa: S311 — a simulation, not a secret
    perfect = sorted(
        _ece(said, [1.0 if chance.random() < value else 0.0 for value in said])
        for _ in range(TRIALS if len(said) <= 5_000 else 100)
    )
    return Reliability(
        count=len(said),
        brier=sum((value - outcome) ** 2 for value, outcome in zip(said, right, strict=True)) / len(said),
        base_rate=sum(right) / len(right),
        ece=_ece(said, right),
        ece_perfect=sum(perfect) / len(perfect),
        ece_perfect_95=perfect[int(0.95 * (len(perfect) - 1))],
        bins=_bins(said, right),
    )


def _bins(said: Sequence[float], right: Sequence[float]) -> tuple[Bin, ...]:
    held: list[list[tuple[float, float]]] = [[] for _ in range(BINS)]
    for value, outcome in zip(said, right, strict=True):
        held[min(BINS - 1, int(value * BINS))].append((value, outcome))
    return tuple(
        Bin(
            low=index / BINS,
            high=(index + 1) / BINS,
            count=len(pairs),
            said=sum(value for value, _ in pairs) / len(pairs),
            right=sum(outcome for _, outcome in pairs) / len(pairs),
        )
        for index, pairs in enumerate(held)
        if pairs
    )


def _ece(said: Sequence[float], right: Sequence[float]) -> float:
    sums = [0.0] * BINS
    for value, outcome in zip(said, right, strict=True):
        sums[min(BINS - 1, int(value * BINS))] += value - outcome
    return sum(abs(one) for one in sums) / len(said)


def plot(bins: Sequence[Bin]) -> list[str]:
    """One line per bin: `#` up to what was right, `|` where it should have been."""
    lines = []
    for one in bins:
        cells = ["#" if cell < round(one.right * PLOT_WIDTH) else "·" for cell in range(PLOT_WIDTH + 1)]
        cells[round(one.said * PLOT_WIDTH)] = "|"
        lines.append(
            f"{one.low:.1f}–{one.high:.1f} {''.join(cells)}  said {one.said:.2f}  right {one.right:.2f}  n {one.count}"
        )
    return lines
