"""`make soak`: months of simulated life with seeded faults; prints what happened, or the seed that plays the failure again."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

import structlog

from .soak import Failed, soak

SEED = 20261122


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--days", type=int, default=165)
    parser.add_argument(
        "--directory", type=Path, help="where the workspace is made anew; its path is part of the ledger"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--again", action="store_true", help="run it twice and compare the ledgers")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    memory = Path("/dev/shm")
    directory = given.directory or (memory if memory.is_dir() else Path(tempfile.gettempdir())) / "perdure-soak"
    started = time.monotonic()
    try:
        report = soak(given.seed, given.days, directory.resolve())
        same = soak(given.seed, given.days, directory.resolve()).hash == report.hash if given.again else None
    except Failed as failed:
        print(f"FAILED: {failed}", file=sys.stderr)
        return 1
    seconds = time.monotonic() - started
    if given.json:
        print(json.dumps({**report.__dict__, "seconds": round(seconds, 1)}))
        return 0
    print(f"seed {report.seed}: {report.days} days in {seconds:.0f} s, {report.lives} lives of the daemon")
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
