"""`make bench-memory`: all-evidence recall on LoCoMo within a budget, and what memory costs as it grows.

The data set (../shared/data/locomo10.json, CC BY-NC 4.0) is read, never copied, and the product knows nothing of it: turns are
put into a store as records, questions go through `perdure.memory.recall.search`, and what comes back is packed, best first,
as the assembly packs it. A question counts when ALL turns that hold its evidence are inside the budget.

    python tests/benchmarks/bench_memory.py recall      # the table of ../shared/memory.md
    python tests/benchmarks/bench_memory.py growth      # assembly, compaction and search at 1 k, 10 k, 100 k records
"""

from __future__ import annotations

import functools
import hashlib
import json
import pickle
import re
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from perdure.memory import tokens
from perdure.memory.catalogue import Catalogue
from perdure.memory.embedding import MiniLM
from perdure.memory.keys import embedded, keys
from perdure.memory.recall import CANDIDATES, Weights, search
from perdure.memory.store import Record, Store

LOCOMO = Path(__file__).parents[2] / ".." / "shared" / "data" / "locomo10.json"
BUDGETS = (1_000, 2_000, 4_000, 8_000)
TUNED_ON = 5  # the first conversations; the rest are held out
GOAL = (72.0, 81.0, 88.0, 94.0)
SCOPE = "talk"


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
    """A 95 % bootstrap interval of a share, in percent."""
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


def recall(weights: Weights | None = None) -> np.ndarray:
    """The table: all questions, and the held-out half."""
    model = functools.cache(MiniLM)
    cache = Path(tempfile.gettempdir()) / "perdure-bench-memory"
    cache.mkdir(exist_ok=True)
    tables = []
    with tempfile.TemporaryDirectory() as directory:
        for conversation in conversations():
            texts = [record.text for record in conversation.records]
            name = hashlib.sha256(json.dumps([keys(text) for text in texts]).encode()).hexdigest()[:16]
            turns = once(cache / f"{name}-turns", lambda texts=texts: embedded(texts, model().embed))
            questions = [question.text for question in conversation.questions]
            asked = once(cache / f"{conversation.name}-asked", lambda questions=questions: model().embed(questions))
            store = filled(Path(directory), conversation, turns)
            tables.append(measure(conversation, store, asked, weights or Weights()))
            store.close()
    everything, held_out = np.concatenate(tables), np.concatenate(tables[TUNED_ON:])
    for name, hits in (("all", everything), (f"held out ({len(held_out)})", held_out)):
        shares = " / ".join(f"{share * 100:.1f}" for share in hits.mean(axis=0))
        low_high = ", ".join("{:.1f}–{:.1f}".format(*interval(hits[:, column])) for column in range(len(BUDGETS)))
        print(f"{name:>16}: {shares}  at {' / '.join(map(str, BUDGETS))} tokens (95 %: {low_high})")
    return everything


WORDS = [
    f"{a}{b}{c}"
    for a in ("disk", "login", "mail", "host", "cron", "nginx", "sshd")
    for b in "abcdefgh"
    for c in range(200)
]


def synthetic(count: int) -> Iterator[Record]:
    """Records with words as frequent as words are (Zipf), ten to a session."""
    chance = np.random.default_rng(1)
    order = np.minimum(chance.zipf(1.3, (count, 30)), len(WORDS)) - 1
    for seq in range(1, count + 1):
        text = " ".join(WORDS[place] for place in order[seq - 1])
        yield Record(
            id=f"r{seq}", seq=seq, at=1_700_000_000_000_000 + seq * 60_000_000, task=SCOPE, session=f"s{seq // 10}", kind="action",
            speaker="tool", untrusted=True, text=text, tokens=tokens.count(text + "\n"), sources=(seq,),
        )  # fmt: skip


def growth(sizes: Sequence[int] = (1_000, 10_000, 100_000), queries: int = 60) -> None:
    """Search and assembly (exact vectors, the query's embedding included) and writing, as the memory grows."""
    from perdure.memory.assembly import Material, assemble
    from perdure.memory.context import ContextRequest, Pinned
    from perdure.memory.recall import CANDIDATES, ExactVectors

    model = MiniLM()
    with tempfile.TemporaryDirectory() as directory:
        for size in sizes:
            store = Store.open(Path(directory) / f"{size}.db", identity="growth")
            chance = np.random.default_rng(2)
            begun = time.perf_counter()
            with store.transaction():
                for record in synthetic(size):
                    store.add_record(record)
            each_us = (time.perf_counter() - begun) / size * 1e6
            for start in range(0, size, 5_000):
                ids = [f"r{seq}" for seq in range(start + 1, min(start + 5_000, size) + 1)]
                vectors = chance.standard_normal((len(ids), 384)).astype(np.float32)
                with store.transaction():
                    store.add_vectors(ids, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
            exact = ExactVectors()
            exact.nearest(store, SCOPE, vectors[0], 1)
            took = []
            for _ in range(queries):
                query = " ".join(WORDS[place] for place in np.minimum(chance.zipf(1.3, 8), len(WORDS)) - 1)
                begun = time.perf_counter()
                vector = model.embed([query])[0]
                found = search(
                    store,
                    SCOPE,
                    query,
                    vector=vector,
                    candidates=exact.nearest(store, SCOPE, vector, CANDIDATES),
                    now=2 * 10**15,
                )
                request = ContextRequest(
                    task=SCOPE, session="S", scope=SCOPE, query=query, budget=8_000, overhead=500, factor=1.2, now=2 * 10**15,
                    pinned=[Pinned(kind="instruction", text="Go on.")],
                )  # fmt: skip
                assemble(request, Material(standing=[], story=[], facts=[], superseded=frozenset(), recalled=found))
                took.append((time.perf_counter() - begun) * 1_000)
            half, most = np.percentile(took, [50, 95])
            megabytes = store.path.stat().st_size / 1e6
            print(
                f"{size:>7} records: assembly p50 {half:.0f} ms, p95 {most:.0f} ms; a record written in {each_us:.0f} µs; {megabytes:.0f} MB"
            )
            store.close()


if __name__ == "__main__":
    start = time.perf_counter()
    {"recall": recall, "growth": growth}[sys.argv[1] if len(sys.argv) > 1 else "recall"]()
    print(f"{time.perf_counter() - start:.0f} s; SQLite {sqlite3.sqlite_version}", file=sys.stderr)
