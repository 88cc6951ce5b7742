"""`python -m tests.crash.remembering live DIRECTORY SESSIONS`: tells a ledger of sessions, and compacts, assembles, recalls and
indexes after each as the daemon does; says on standard output where it is. `… judge DIRECTORY`: whether memory holds exactly
what the ledger leads to, and recall with the index says what recall without it says; prints what is wrong, as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path

from tests.memory.conftest import DAY, Past, request

from perdure.errors import PerdureError
from perdure.memory import index, query_vectors
from perdure.memory import memory as memory_room
from perdure.memory.memory import Memory
from perdure.state import events as e
from perdure.state import projections as p

INDEXED_SECONDS_MAX = 240.0
SUBJECTS = (
    "the disk of db-1 is nearly full, vacuum freed little",
    "a brute force attack against sshd from many addresses",
    "the backup of mail took four hours and ended late",
    "the certificate of the shop expires next week",
    "kernel messages of a failing fan in rack seven",
    "the nightly import found seven duplicate invoices",
)
QUERIES = (
    "running out of storage",
    "intruders guessing passwords",
    "slow archive of e-mail",
    "TLS renewal due",
    "overheating hardware",
    "the same bill twice",
)


async def live(directory: Path, sessions: int) -> None:
    past = Past(directory)
    _recover(past)
    memory = _open(past)
    for number in range(past.ledger.head.seq, past.ledger.head.seq + sessions):
        mark = f"mark{number}x"
        topics = [SUBJECTS[(number + step) % len(SUBJECTS)] for step in range(3)]
        past.at += DAY // 4
        past.session(
            *(past.action("read_file", {"path": f"inbox/{number}.log"}, f"{topic}, {mark}") for topic in topics),
            says=f"looked at {mark}",
        )
        print("compacting", flush=True)
        await memory.compact("triage", scope="triage")
        print("assembling", flush=True)
        context = await memory.assemble(request(QUERIES[number % len(QUERIES)], now=past.now()))
        found = await memory.recall("triage", mark, 3)
        if context.tokens == 0 or not found or mark not in found[0].text:
            print(f"FORGOTTEN {mark}: {[each.text[:80] for each in found]}", flush=True)
        print("indexing", flush=True)
        await memory.indexed(INDEXED_SECONDS_MAX)
    await memory.close()
    past.close()


def _recover(past: Past) -> None:
    """Close what a kill left open."""
    for row in p.open_intents(past.ledger.reader):
        past.ledger.commit(
            e.ActionEnded(
                action=row.action, session=row.session, task=row.task, tool=row.tool, attempt=row.attempt,
                status="unknown", duration_us=1,
            )
        )  # fmt: skip
    for row in p.open_sessions(past.ledger.reader):
        (due,) = past.ledger.reader.rows("SELECT due FROM slots WHERE slot = ?", row.slot)[0]
        past.ledger.commit(
            e.SessionClosed(
                session=row.session, task=row.task, slot=row.slot, status="interrupted", reason="crash", steps=0, tokens=0,
                cost_usd=0.0, duration_us=1,
            ),
            e.SlotClosed(
                slot=row.slot, task=row.task, kind="manual", due=due, outcome="ran", session=row.session
            ),
        )  # fmt: skip


async def judge(directory: Path) -> list[str]:
    past = Past(directory)
    memory = _open(past)
    await memory.compact("triage", scope="triage")
    with tempfile.TemporaryDirectory(prefix="perdure-judge-", dir=directory.parent) as scratch:
        anew, unindexed = Path(scratch) / "anew", Path(scratch) / "unindexed"
        for copy in (anew, unindexed):
            copy.mkdir()
            for name in ("ledger.db", "ledger.db-wal", "anchor"):
                with contextlib.suppress(FileNotFoundError):
                    shutil.copy(directory / name, copy / name)
        for name in ("memory.db", "memory.db-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(directory / name, unindexed / name)
        wrong = await _compared_with_the_ledger(directory, anew)
        other = Past(unindexed)
        exact_memory = _open(other)
        exact = await _answers(exact_memory)
        assert exact_memory.index_status is not None
        if exact_memory.index_status.state == "ready":
            wrong.append("the exact search was not exact: its index was ready by then")
        await exact_memory.close()
        other.close()
    await memory.indexed(INDEXED_SECONDS_MAX)
    status = memory.index_status
    assert status is not None
    if status.state != "ready":
        wrong.append(f"the index is {status.state}: {status.reason}")
    vectors = _rows(directory, "SELECT COUNT(*) FROM vectors")[0][0]
    if status.vectors != vectors:
        wrong.append(f"the index holds {status.vectors} vectors and memory.db {vectors}")
    answers = await _answers(memory)
    wrong += [
        f"{query!r}: {mine} with the index, {theirs} without"
        for query, mine, theirs in zip(QUERIES, answers, exact, strict=True)
        if mine != theirs or not mine
    ]
    await memory.close()
    past.close()
    return wrong


async def _compared_with_the_ledger(directory: Path, anew: Path) -> list[str]:
    """Memory made anew from the ledger alone, against the one that was killed."""
    past = Past(anew)
    memory = Memory.open(anew, ledger=past.ledger, now=past.now, embedding="none")
    await memory.compact("triage", scope="triage")
    await memory.close()
    past.close()
    sql = "SELECT id, text FROM records ORDER BY id"
    mine, theirs = dict(_rows(directory, sql)), dict(_rows(anew, sql))
    wrong = [f"record {id} is lost" for id in theirs.keys() - mine.keys()]
    wrong += [f"record {id} comes from nowhere" for id in mine.keys() - theirs.keys()]
    wrong += [f"record {id} says something else" for id in mine.keys() & theirs.keys() if mine[id] != theirs[id]]
    if len(_rows(directory, "SELECT id FROM records JOIN vectors ON record = id")) != len(mine):
        wrong.append("not every record has its vector")
    return wrong


async def _answers(memory: Memory) -> list[list[str]]:
    return [[found.id for found in await memory.recall("triage", query, 5)] for query in QUERIES]


def _open(past: Past) -> Memory:
    def alarm(code: str, words: str) -> None:
        print(f"alarm {code}: {words}", file=sys.stderr)

    # A loaded machine may need long to start the index's process; what is judged here is no time-out.
    memory_room.EMBED_SECONDS_MAX = query_vectors.SECONDS_MAX = INDEXED_SECONDS_MAX
    index.FOLD_MIN = 30  # so that stores are folded, and killed while they are, in these small lives
    return Memory.open(past.directory, ledger=past.ledger, now=past.now, embedding="minilm", alarm=alarm)


def _rows(directory: Path, sql: str) -> list:
    with contextlib.closing(sqlite3.connect(directory / "memory.db")) as db:
        return db.execute(sql).fetchall()


if __name__ == "__main__":
    if sys.argv[1] == "judge":
        print(json.dumps(asyncio.run(judge(Path(sys.argv[2])))))
    else:
        try:
            asyncio.run(live(Path(sys.argv[2]), int(sys.argv[3])))
        except PerdureError as error:
            print(f"REFUSED {error}", flush=True)
            sys.exit(1)
