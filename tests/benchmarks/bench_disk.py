"""What a thousand sessions over 165 days take on disk, with and without `memory.keep`, and what compacting costs as they add up.

    python -m tests.benchmarks.bench_disk [SESSIONS]

Each session reads three files, writes one, keeps a fact and closes; memory is compacted before the next, as the daemon does. The
vectors are random (embedding is measured elsewhere), one for each record; the index holds each once more.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from tests.memory.conftest import DAY, Past

from perdure.memory import tokens
from perdure.memory.memory import Memory

SESSIONS = 1_000
DAYS = 165
KEEP_DAYS = 45
WORDS = [f"{a}{b}" for a in ("disk", "login", "mail", "host", "cron", "nginx", "sshd") for b in range(200)]


def a_session(past: Past, chance: random.Random, number: int) -> None:
    said = [" ".join(chance.choices(WORDS, k=40)) for _ in range(3)]
    past.session(
        *(past.action("read_file", {"path": f"inbox/{number}-{part}.log"}, text) for part, text in enumerate(said)),
        past.action("write_file", {"path": f"reports/{number}.md", "text": said[0]}, {"bytes": len(said[0])}),
        past.remember(f"host-{chance.randrange(50)}", "errors", str(chance.randrange(9_000))),
        says=f"session {number}: {said[1][:80]}",
    )


def give_vectors(memory: Memory) -> None:
    store: Any = memory._store
    chance = np.random.default_rng(3)
    ids = [id for id, _ in store.without_vector(100_000)]
    vectors = chance.standard_normal((len(ids), 384)).astype("<f4")
    with store.transaction():
        store.add_vectors(ids, [vector.tobytes() for vector in vectors])


async def measure(directory: Path, count: int, keep_days: int | None) -> None:
    past, chance = Past(directory), random.Random(1)
    memory = past.memory(keep_us=None if keep_days is None else keep_days * DAY)
    spent: list[float] = []
    for number in range(count):
        a_session(past, chance, number)
        past.at += DAYS * DAY // count
        before = time.process_time()
        await memory.compact("triage", scope="triage")
        spent.append(time.process_time() - before)
        await memory._in_worker(lambda: give_vectors(memory))
    sizes = memory._store.sizes()
    await memory.close()
    past.close()
    taken = {name: (directory / name).stat().st_size / count * 1_000 / 1e6 for name in ("ledger.db", "memory.db")}
    kept = "everything" if keep_days is None else f"texts of {keep_days} days"
    disk = ", ".join(f"{name} {size:.1f} MB" for name, size in taken.items())
    tenth = max(1, count // 10)
    first, last = (sum(part) / len(part) * 1e3 for part in (spent[:tenth], spent[-tenth:]))
    print(
        f"memory keeps {kept}: {disk} per 1,000 sessions; {sizes['records']:,} records, {sizes['cold_records']:,} of them told by "
        f"the ledger alone; a compaction took {first:.1f} ms of processor in the first tenth, {last:.1f} ms in the last"
    )


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else SESSIONS
    tokens.count("the tables are loaded once")
    for keep_days in (None, KEEP_DAYS):
        with tempfile.TemporaryDirectory() as directory:
            asyncio.run(measure(Path(directory), count, keep_days))


if __name__ == "__main__":
    main()
