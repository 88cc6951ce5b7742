"""`make soak`: months of simulated life with seeded faults; prints what happened, or the seed that plays the failure again."""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

import structlog

from .soak import Failed, Progress, soak

SEED = 20261122


class Shown:
    """Progress on the error stream: one line that is written over on a terminal, a line for every `every` days elsewhere."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._terminal = sys.stderr.isatty()
        self._started = self._before = time.monotonic()
        self._events = 0

    def __call__(self, reached: Progress) -> None:
        if not self._terminal and reached.day % self._every:
            return
        now = time.monotonic()
        rate = (reached.events - self._events) / max(now - self._before, 1e-9)
        self._before, self._events = now, reached.events
        words = (
            f"day {reached.day} of {reached.days}, {reached.lives} lives, {reached.sessions} sessions, "
            f"{reached.events} events, {rate:.0f} events/s, {now - self._started:.0f} s"
        )
        print(
            f"\r\x1b[K{words}" if self._terminal else words,
            end="" if self._terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def over(self) -> None:
        if self._terminal:
            print(file=sys.stderr)


def contexts(count: int, seed: int) -> int:
    """Check generated contexts; a failure prints its case, and the seed is in what it prints."""
    from .contexts import check_contexts

    started, processor = time.monotonic(), time.process_time()

    def tell(done: int) -> None:
        if sys.stderr.isatty() or done % 10_000 == 0 or done >= count:
            words = f"{done:,} of {count:,} contexts, {time.monotonic() - started:.0f} s"
            end = "\r" if sys.stderr.isatty() and done < count else "\n"
            print(words, end=end, file=sys.stderr, flush=True)

    done = check_contexts(count, seed, tell)
    seconds, spent = time.monotonic() - started, time.process_time() - processor
    print(
        f"{done:,} contexts from seed {seed} on in {seconds:.0f} s ({spent:.0f} s of processor): none above its budget, pinned text"
    )
    print(
        "  in each byte for byte, the same bytes when assembled again; what did not fit was refused with both numbers"
    )
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--days", type=int, default=165)
    parser.add_argument(
        "--directory", type=Path, help="where the workspace is made anew; its path is part of the ledger"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--again", action="store_true", help="run it twice and compare the ledgers")
    parser.add_argument(
        "--contexts", type=int, metavar="N", help="instead: assemble N generated contexts and check each"
    )
    given = parser.parse_args()
    if given.contexts is not None:
        return contexts(given.contexts, given.seed)
    logging.disable(logging.CRITICAL)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    memory = Path("/dev/shm")
    directory = given.directory or (memory if memory.is_dir() else Path(tempfile.gettempdir())) / "perdure-soak"
    lock = directory.with_name(f"{directory.name}.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"another run lives in {directory}: give --directory", file=sys.stderr)
        return 2
    started, processor = time.monotonic(), time.process_time()
    shown = Shown(every=5)
    try:
        report = soak(given.seed, given.days, directory.resolve(), shown)
        seconds, processor = time.monotonic() - started, time.process_time() - processor
        same = None
        if given.again:
            shown.over()
            same = soak(given.seed, given.days, directory.resolve(), Shown(every=5)).hash == report.hash
    except Failed as failed:
        shown.over()
        print(f"FAILED: {failed}", file=sys.stderr)
        return 1
    shown.over()
    if given.json:
        print(json.dumps({**report.__dict__, "seconds": round(seconds, 1)}))
        return 0
    print(
        f"seed {report.seed}: {report.days} days in {seconds:.0f} s ({processor:.0f} s of processor time), {report.lives} lives of the daemon"
    )
    print(
        f"  {report.sessions} sessions, {report.slots} slots, {report.events} events, {report.effects} effects, {report.questions} questions"
    )
    for name in ("outcomes", "statuses", "actions", "answers", "faults"):
        rows = ", ".join(f"{key} {count}" for key, count in sorted(getattr(report, name).items()))
        print(f"  {name}: {rows}")
    print(f"  every invariant held after each event and at the end; the ledger ends in {report.hash}")
    if same is not None:
        print("  the same seed made the same ledger, byte for byte" if same else "  NOT THE SAME LEDGER AGAIN")
    return 0 if same is not False else 1


if __name__ == "__main__":
    sys.exit(main())
