"""`make bench-memory`: all-evidence recall on LoCoMo within a budget, and what memory costs as it grows.

The data set (../shared/data/locomo10.json, CC BY-NC 4.0) is read, never copied, and the product knows nothing of it: turns are
put into a store as records, questions go through `perdure.memory.recall.search`, and what comes back is packed, best first.
A question counts when ALL turns that hold its evidence are inside the budget. The budget is that of the turns alone: names,
times and headings that a context puts around them (some ten tokens a line), its story and its facts are not counted.

    python -m tests.benchmarks.bench_memory recall           # the table
    python -m tests.benchmarks.bench_memory growth [SIZE…]   # what memory costs at 1,000, 10,000, 100,000 records
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import os
import pickle
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tests.memory.conftest import Past

from perdure.memory import tokens
from perdure.memory.catalogue import Catalogue
from perdure.memory.context import ContextRequest, Pinned
from perdure.memory.embedding import DIMENSIONS, MiniLM
from perdure.memory.keys import embedded, keys, reduced
from perdure.memory.memory import Memory
from perdure.memory.recall import CANDIDATES, Weights, search
from perdure.memory.store import Claim, Record, Store, Summary
from perdure.memory.summaries import PERIODS, Extractive, period, period_id, session_id, summarised

LOCOMO = Path(__file__).parents[2] / ".." / "shared" / "data" / "locomo10.json"
BUDGETS = (1_000, 2_000, 4_000, 8_000)
TUNED_ON = 5  # the first conversations; the rest are held out
GOAL = (72.0, 81.0, 88.0, 94.0)
SCOPE = "talk"
PLAIN = Weights(words=0.5, keys=0.0, sharpness=1.0, spread_from=1_000_000, session=0.2, subject=1.0, dated=1.0)


@dataclass(frozen=True)
class Question:
    text: str
    evidence: frozenset[str]


@dataclass(frozen=True)
class Conversation:
    name: str
    records: list[Record]
    ids: dict[str, str]  # the data set's name of a turn -> our record's id
    questions: list[Question]


def conversations(path: Path = LOCOMO) -> Iterator[Conversation]:
    """Turns as records of people, in the order of time; questions of all categories but the unanswerable one."""
    for sample in json.loads(path.read_text()):
        talk = sample["conversation"]
        records: list[Record] = []
        ids: dict[str, str] = {}
        numbers = sorted(int(m[1]) for key in talk if (m := re.fullmatch(r"session_(\d+)", key)))
        for number in numbers:
            when = datetime.strptime(talk[f"session_{number}_date_time"], "%I:%M %p on %d %B, %Y").replace(tzinfo=UTC)
            for place, turn in enumerate(talk[f"session_{number}"]):
                seq = len(records) + 1
                picture = f" [shares {turn['blip_caption']}]" if turn.get("blip_caption") else ""
                text = f"{turn['speaker']}: {turn['text']}{picture}"
                ids[turn["dia_id"]] = f"r{seq}"
                records.append(
                    Record(
                        id=f"r{seq}", seq=seq, at=int(when.timestamp() + place) * 1_000_000, task=SCOPE, session=f"s{number}", kind="answer",
                        speaker="person", untrusted=False, text=text, tokens=tokens.count(text + "\n"), sources=(seq,),
                    )
                )  # fmt: skip
        questions = []
        for asked in sample["qa"]:
            if asked["category"] == 5 or not asked.get("evidence"):
                continue
            named = {part for each in asked["evidence"] for part in re.findall(r"D\d+:\d+", each)}
            questions.append(Question(asked["question"], frozenset(ids.get(name, name) for name in named)))
        yield Conversation(sample["sample_id"], records, ids, questions)


def filled(directory: Path, conversation: Conversation, vectors: list[bytes]) -> Store:
    store = Store.open(directory / f"{conversation.name}.db", identity=conversation.name)
    with store.transaction():
        for record in conversation.records:
            store.add_record(record)
        store.add_vectors([record.id for record in conversation.records], vectors)
    return store


def inside(ranked: Sequence[Record], budget: int) -> set[str]:
    """What fits, best first, passing over what is too long."""
    spent, taken = 0, set()
    for record in ranked:
        if spent + record.tokens <= budget:
            spent += record.tokens
            taken.add(record.id)
    return taken


def measure(conversation: Conversation, store: Store, asked: np.ndarray, weights: Weights) -> np.ndarray:
    """One row a question: whether all its evidence is inside each budget."""
    now = conversation.records[-1].at
    catalogue = Catalogue(store)
    catalogue.refresh()
    visible = catalogue.visible(SCOPE)
    rows = []
    for question, vector in zip(conversation.questions, asked, strict=True):
        found = search(
            catalogue,
            SCOPE,
            question.text,
            vector=vector,
            candidates=catalogue.nearest(vector, visible, CANDIDATES),
            now=now,
            weights=weights,
        )
        ranked = [each.record for each in found]
        rows.append([question.evidence <= inside(ranked, budget) for budget in BUDGETS])
    return np.array(rows, dtype=bool)


def interval(hits: np.ndarray, rounds: int = 2_000) -> tuple[float, float]:
    """A 95 % bootstrap interval of a mean, in percent; of differences by question it is a paired one."""
    drawn = np.random.default_rng(0).integers(0, len(hits), (rounds, len(hits)))
    low, high = np.percentile(hits[drawn].mean(axis=1) * 100, [2.5, 97.5])
    return float(low), float(high)


def once(cache: Path, make: Callable[[], Any]) -> Any:
    """A value made once and kept beside the machine's temporary files: embedding is nine tenths of the time."""
    if cache.exists():
        return pickle.loads(cache.read_bytes())
    value = make()
    cache.write_bytes(pickle.dumps(value))
    return value


def recall() -> None:
    """The table: all questions, and the held-out half, and what each is above scores fused without keys, names and dates."""
    model = functools.cache(MiniLM)
    cache = Path(tempfile.gettempdir()) / "perdure-bench-memory"
    cache.mkdir(exist_ok=True)
    hits: list[np.ndarray] = []
    plain: list[np.ndarray] = []
    with tempfile.TemporaryDirectory() as directory:
        for conversation in conversations():
            texts = [record.text for record in conversation.records]
            name = hashlib.sha256(json.dumps([keys(text) for text in texts]).encode()).hexdigest()[:16]
            turns = once(cache / f"{name}-turns", lambda texts=texts: embedded(texts, model().embed))
            questions = [question.text for question in conversation.questions]
            asked = once(cache / f"{conversation.name}-asked", lambda questions=questions: model().embed(questions))
            store = filled(Path(directory), conversation, turns)
            hits.append(measure(conversation, store, asked, Weights()))
            plain.append(measure(conversation, store, asked, PLAIN))
            store.close()
    print(f"all evidence inside {' / '.join(map(str, BUDGETS))} tokens, in % (95 %); goal {' / '.join(map(str, GOAL))}")
    for name, of, than in (
        ("all", np.concatenate(hits), np.concatenate(plain)),
        ("tuned on", np.concatenate(hits[:TUNED_ON]), np.concatenate(plain[:TUNED_ON])),
        ("held out", np.concatenate(hits[TUNED_ON:]), np.concatenate(plain[TUNED_ON:])),
    ):
        print(f"{name:>9}, {len(of):,}: {_row(of)}\n{'above plain':>15}: {_row(of.astype(int) - than)}")


def _row(values: np.ndarray) -> str:
    cells = []
    for column in range(len(BUDGETS)):
        low, high = interval(values[:, column])
        cells.append(f"{values[:, column].mean() * 100:.1f} ({low:.1f} to {high:.1f})")
    return " / ".join(cells)


WORDS = [
    f"{a}{b}{c}"
    for a in ("disk", "login", "mail", "host", "cron", "nginx", "sshd")
    for b in "abcdefgh"
    for c in range(200)
]
QUERIES = 60
NOW = 1_790_000_000_000_000
KEYS_EACH = 2  # sentences of a record that have a vector of their own
STEPS = 10  # records of a session
MINUTE = 60_000_000
FACT_EACH = 10  # every tenth record is a fact, about one of so many things:
THINGS = 2_000
OTHERS = 5  # further tasks, which have every fourth session
FIRST_SEQ = 10_000_000  # above whatever the small ledger beside it comes to


def synthetic(count: int) -> Iterator[tuple[Record, Claim | None]]:
    """Records with words as frequent as words are (Zipf), a minute apart, ten to a session, up to an hour before NOW; three
    sessions of four are the task's own, and every tenth record is a fact that something was found to be so."""
    chance = np.random.default_rng(1)
    order = np.minimum(chance.zipf(1.3, (count, 30)), len(WORDS)) - 1
    things = chance.integers(0, THINGS, count)
    for number in range(count):
        seq, at, session = FIRST_SEQ + number, NOW - (count - number + 60) * MINUTE, number // STEPS
        task = SCOPE if session % 4 else f"other-{session // 4 % OTHERS}"
        text = " ".join(WORDS[place] for place in order[number])
        claim = None
        if number % FACT_EACH == 0:
            thing, value = WORDS[things[number]], " ".join(text.split()[:4])
            claim = Claim(
                seq=seq, at=at, task=task, subject=thing, attribute="state", value=value, speaker="agent" if number % 100 else "person"
            )  # fmt: skip
            text = f"{thing} — state: {value}"
        record = Record(
            id=f"r{seq}", seq=seq, at=at, task=task, session=f"s{session}", kind="action" if claim is None else "fact",
            speaker="tool" if claim is None else claim.speaker, untrusted=claim is None, text=text, tokens=tokens.count(text),
            sources=(seq,),
        )  # fmt: skip
        yield record, claim


def told(store: Store, count: int) -> None:
    """The summaries of all that has closed, as compaction leaves them: each session, day, week and month of each task."""
    clock = NOW - 61 * MINUTE
    for session in range(count // STEPS):
        records = store.session_records(f"s{session}")
        task, start, end = str(records[0].task), records[0].at, records[-1].at
        put(store, summarised(session_id(f"s{session}"), task, "session", start, end, records, Extractive()))
    for level in PERIODS:
        start, end = period(level, NOW - (count + 60) * MINUTE)
        while end <= clock:
            for task in store.tasks_between(start, end):
                records = store.records_between(task, start, end)
                put(
                    store,
                    summarised(period_id(task, level, start, "UTC"), task, level, start, end, records, Extractive()),
                )
            start, end = period(level, end)
    store.set_setting("clock", str(clock))


def put(store: Store, summary: Summary | None) -> None:
    if summary is not None:
        store.put_summary(summary)


def fill(path: Path, identity: str, size: int) -> float:
    """A memory.db of that many records with made-up vectors (embedding 100,000 texts takes longer than anybody waits); returns
    the microseconds of processor time that writing one record took."""
    chance = np.random.default_rng(2)
    store = Store.open(path, identity=identity)
    begun = time.process_time()
    with store.transaction():
        for record, claim in synthetic(size):
            store.add_record(record)
            if claim is not None:
                store.add_claim(claim)
    each_us = (time.process_time() - begun) / size * 1e6
    with store.transaction():
        told(store, size)
    for start in range(0, size, 2_000):
        ids = [f"r{FIRST_SEQ + number}" for number in range(start, min(start + 2_000, size))]
        vectors = chance.standard_normal((len(ids), 1 + KEYS_EACH, DIMENSIONS)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
        with store.transaction():
            store.add_vectors(ids, [each[0].tobytes() + reduced(each[1:]).tobytes() for each in vectors])
    store.close()
    return each_us


class Meter:
    """Wall and processor time of a piece of work, this process's and the index process's together."""

    def __init__(self, memory: Memory) -> None:
        self._processes = [each for each in (os.getpid(), memory.index_process) if each is not None]
        self.wall_ms: list[float] = []
        self.processor_ms: list[float] = []

    def _processor(self) -> float:
        """Seconds on a processor of all threads, to the nanosecond."""
        threads = (each for process in self._processes for each in Path(f"/proc/{process}/task").glob("*/schedstat"))
        return sum(int(each.read_text().split()[0]) for each in threads) / 1e9

    @asynccontextmanager
    async def once(self) -> AsyncIterator[None]:
        processor, wall = self._processor(), time.perf_counter()
        yield
        self.wall_ms.append((time.perf_counter() - wall) * 1_000)
        self.processor_ms.append((self._processor() - processor) * 1_000)

    def __str__(self) -> str:
        wall, processor = (np.percentile(each, [50, 95]) for each in (self.wall_ms, self.processor_ms))
        return f"p50 {wall[0]:.0f}, p95 {wall[1]:.0f} ms (processor {processor[0]:.0f}, {processor[1]:.0f})"


def asked(query: str) -> ContextRequest:
    return ContextRequest(
        task=SCOPE, session="S", scope=SCOPE, query=query, budget=8_000, overhead=500, factor=1.2, now=NOW,
        pinned=[Pinned(kind="instruction", text="Go on.")],
    )  # fmt: skip


def spin() -> None:
    """About as long as an assembly takes, and always the same: how far its times spread is the machine's doing."""
    total = 0
    for number in range(550_000):
        total += number * number


async def assemblies(memory: Memory, by: str, seed: int) -> tuple[Meter, Meter, Meter]:
    """Contexts for queries of which none comes twice, each query's embedding included; for each the same once more, as a task
    asks at every session; and a loop beside each, as the floor of how steady the machine is."""
    chance = np.random.default_rng(seed)
    first, again, floor = Meter(memory), Meter(memory), Meter(memory)
    slow = 0
    for _ in range(QUERIES):
        query = " ".join(WORDS[place] for place in np.minimum(chance.zipf(1.3, 8), len(WORDS)) - 1)
        for meter in (first, again):
            async with meter.once():
                context = await memory.assemble(asked(query))
            slow += context.candidates_by != by
        async with floor.once():
            spin()
    if slow:
        print(f"          ({slow} of {2 * QUERIES} were not by {by})")
    return first, again, floor


def session(past: Past) -> None:
    past.session(*(past.action("read_file", {"path": f"{n}.log"}, f"line {n}") for n in range(STEPS)), task=SCOPE)


async def one_session(past: Past, memory: Memory) -> str:
    """What a session waits for before it begins: compaction of what the last one did, and its context."""
    session(past)
    begun = time.perf_counter()
    await memory.compact(SCOPE, scope=SCOPE)
    compacted = time.perf_counter()
    context = await memory.assemble(asked("disk login mail"))
    took = f"{(compacted - begun) * 1e3:.0f} + {(time.perf_counter() - compacted) * 1e3:.0f} ms"
    return f"{took} (by {context.candidates_by})"


async def cold(past: Past) -> tuple[str, str]:
    """Compaction and context of the first session after a start, and of one after the index's process ended for want of work."""
    memory = past.memory("minilm", index_idle_seconds=1.0)
    try:
        first = await one_session(past, memory)
        await memory.indexed(1_200)
        if memory.index_process is not None:
            await asyncio.to_thread(psutil.Process(memory.index_process).wait, 120)
        return first, await one_session(past, memory)
    finally:
        await memory.close()


async def grown(directory: Path, size: int) -> None:
    """One size: the index built, assembly with it and without, compaction of what is new, memory held, and all that cold."""
    past = Past(directory)
    each_us = fill(directory / "memory.db", next(iter(past.ledger.reader.events(limit=1))).hash, size)
    memory = past.memory("minilm")
    try:
        await memory.recall(SCOPE, "warm up")  # reads the columns, starts the process, loads the model
        begun = time.perf_counter()
        await memory.indexed(1_200)
        rebuilt = size / (time.perf_counter() - begun)
        index, index_again, floor = await assemblies(memory, "index", 3)
        memory.use_index = False
        exact, exact_again, _ = await assemblies(memory, "exact", 4)
        memory.use_index = True
        before = past.ledger.head.seq
        compaction = Meter(memory)
        for _ in range(10):
            session(past)
            async with compaction.once():
                await memory.compact(SCOPE, scope=SCOPE)
                await memory.indexed(60)
        events = (past.ledger.head.seq - before) / 10
        each_event = np.median(compaction.processor_ms) / events * 1_000
        held = psutil.Process().memory_info().rss / 1e6
        child = psutil.Process(memory.index_process).memory_info().rss / 1e6 if memory.index_process else 0.0
        await memory.close()
        after_start, after_idle = await cold(past)
        print(
            f"{size:>8,} records, {size // FACT_EACH:,} claims, {1 + OTHERS} tasks, with their summaries:\n"
            f"          assembly by the index {index}; the same query again {index_again}\n"
            f"          a bare loop between them, always the same {floor}\n"
            f"          by exact search {exact}; again {exact_again}\n"
            f"          compaction + assembly of the first session after a start {after_start}\n"
            f"          and of one after the index process had ended {after_idle}\n"
            f"          compaction and indexing {each_event:.0f} µs of processor an event ({events:.0f} events a session, embedding"
            f" included)\n"
            f"          index built at {rebuilt:,.0f} vectors/s; a record written in {each_us:.0f} µs of processor\n"
            f"          memory held: {held:.0f} MB and the index process {child:.0f} MB; memory.db"
            f" {(directory / 'memory.db').stat().st_size / 1e6:.0f} MB",
            flush=True,
        )
    finally:
        await memory.close()
        past.close()


def growth(sizes: Sequence[int] = (1_000, 10_000, 100_000)) -> None:
    """What memory costs as it grows, each size in a process of its own, so that what one holds is not another's."""
    as_the_daemon = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # perdure.memory sets it, but numpy was here first
    for size in [int(each) for each in sys.argv[2:]] or sizes:
        subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.bench_memory", "grown", str(size)], check=True, env=as_the_daemon
        )


def grown_alone() -> None:
    """One size, in this process."""
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(grown(Path(directory), int(sys.argv[2])))


if __name__ == "__main__":
    start = time.perf_counter()
    {"recall": recall, "growth": growth, "grown": grown_alone}[sys.argv[1] if len(sys.argv) > 1 else "recall"]()
    print(f"{time.perf_counter() - start:.0f} s; SQLite {sqlite3.sqlite_version}", file=sys.stderr)
