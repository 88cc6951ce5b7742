"""How far a long run is, on standard error: one line that is written over on a terminal, a line now and then elsewhere. And
its end before its time, by Ctrl-C: each layer then stops after what it is at, and says what it has."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
SECONDS_BETWEEN = 20.0  # lines, where they cannot be written over


class Progress:
    """Counts along. `what` names the run; `broken` is shown with it."""

    cut_short = False  # of all of them

    def __init__(self, what: str, *, quiet: bool = False) -> None:
        self.broken = 0
        self._what = what
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()

    def over(self, items: Iterable[T], total: int) -> Iterator[T]:
        """The `total` items, counted as they are taken, as long as nobody presses Ctrl-C."""
        self._started = self._said = time.monotonic()
        for number, item in enumerate(items, 1):
            yield item
            self._say(number, total)
            if Progress.cut_short:
                break
        if self._terminal and not self._quiet:
            print(file=sys.stderr)

    def _say(self, number: int, total: int) -> None:
        now = time.monotonic()
        if self._quiet or (now - self._said < (0.2 if self._terminal else SECONDS_BETWEEN) and number < total):
            return
        self._said = now
        rate = number / max(now - self._started, 1e-9)
        seconds = (total - number) / rate
        left = f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
        words = f"{self._what}: {number:,} of {total:,}, {rate:.0f}/s, {self.broken} broken, {left} left"
        if self._terminal:
            print(f"\r{words}\x1b[K", end="", file=sys.stderr, flush=True)
        else:
            print(words, file=sys.stderr, flush=True)


def end_on_ctrl_c() -> None:
    """From now on, Ctrl-C is no exception but the end of what is counted along."""

    def cut_short(_: int, __: object) -> None:
        Progress.cut_short = True

    signal.signal(signal.SIGINT, cut_short)
