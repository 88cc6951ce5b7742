"""Memory, as the daemon sees it: compact, assemble, recall. One thread owns memory.db; the event loop never waits for SQLite."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from perdure.errors import PerdureError
from perdure.memory import assembly
from perdure.memory.compaction import Compaction, CompactionUnsuccessful
from perdure.memory.context import Context, ContextRequest
from perdure.memory.embedding import Vectors
from perdure.memory.facts import Fact, settle
from perdure.memory.index import IndexStatus, VectorIndex
from perdure.memory.recall import CANDIDATES, ExactVectors, Found, Weights, query_terms, search
from perdure.memory.store import WORKSPACE, MemoryDamaged, Receipt, Store
from perdure.memory.story import story
from perdure.state.events import CompactionFailed, CompactionFinished
from perdure.state.ledger import Ledger, LedgerReader

Embedding = Literal["minilm", "none"]

EMBED_AT_ONCE = 128  # new records that a compaction embeds itself; more are left to the index's own thread
EMBED_SECONDS_MAX = 10.0  # the child's start included: a second on an idle machine
QUERY_SECONDS_MAX = 10.0
FACTS_MAX = 200  # facts that an assembly looks at

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalled:
    """One record that answers a query. `source` names ledger events; `untrusted` marks a tool's words."""

    id: str
    text: str
    score: float
    source: str
    at: int
    kind: str = ""
    speaker: str = ""
    untrusted: bool = False
    why: str = ""


class Memory:
    """The memory room's front door. Every method may be called from the daemon's event loop."""

    def __init__(
        self,
        ledger: Ledger,
        ledger_path: Path,
        now: Callable[[], int],
        alarm: Callable[[str, str], None],
        worker: ThreadPoolExecutor,
    ) -> None:
        self._ledger = ledger
        self._ledger_path = ledger_path
        self._now = now
        self._alarm = alarm
        self._worker = worker
        self._exact = ExactVectors()
        self._store: Store
        self._reader: LedgerReader
        self._index: VectorIndex | None = None
        self._compacting = asyncio.Lock()
        self._closed = False
        self.weights = Weights()

    @classmethod
    def open(
        cls,
        state_dir: Path,
        *,
        ledger: Ledger,
        now: Callable[[], int],
        embedding: Embedding = "minilm",
        alarm: Callable[[str, str], None] | None = None,
        index_idle_seconds: float = 120.0,
    ) -> Memory:
        """Open memory.db and the index under `state_dir`, made again from the ledger where they are missing or damaged.

        `alarm(code, words)` is called from any thread when a person must know. Raises PerdureError where memory.db is of a
        newer Perdure.
        """
        alarm = alarm or _silent
        worker = ThreadPoolExecutor(1, thread_name_prefix="perdure-memory")
        memory = cls(ledger, state_dir / "ledger.db", now, alarm, worker)
        try:
            worker.submit(memory._open_store, state_dir / "memory.db").result()
        except BaseException:
            worker.shutdown()
            raise
        if embedding == "minilm":
            memory._index = VectorIndex(
                state_dir / "index", identity=worker.submit(memory._identity).result(), on_store=memory._on_store, now=now,
                alarm=alarm, idle_seconds=index_idle_seconds,
            )  # fmt: skip
        return memory

    async def close(self) -> None:
        """End the index's process and close memory.db; closing twice is no mistake."""
        if self._closed:
            return
        self._closed = True
        if self._index is not None:
            await asyncio.to_thread(self._index.close)
        await self._in_worker(self._close_store)
        self._worker.shutdown()

    # -- compaction -----------------------------------------------------------------------------------------------------

    async def compact(self, task: str, *, scope: str, session: str | None = None) -> CompactionFinished:
        """Read what the ledger has gained, and write the receipt into it. Raises CompactionUnsuccessful, after
        CompactionFailed has been written; memory then stands where the last good compaction left it."""
        async with self._compacting:
            try:
                receipts = await self._in_worker(lambda: self._compact(task, session))
            except Exception as error:
                reason = str(error) if isinstance(error, PerdureError) else f"{type(error).__name__}: {error}"
                await self._ledger.write(CompactionFailed(session=session, task=task, reason=reason[:2_000]))
                if isinstance(error, CompactionUnsuccessful):
                    raise
                hint = "Free disk space or run `perdure verify`; memory stands where the last good compaction left it"
                raise CompactionUnsuccessful("compact memory for", task, reason, hint) from error
            drafts = [_draft(receipt) for receipt in receipts]
            if drafts:
                await self._ledger.write(*drafts)
            await self._in_worker(lambda: self._receipts_written(receipts))
            if self._index is not None:
                self._index.poke()
            return (
                drafts[-1]
                if drafts
                else _draft(_nothing_new(task, session, await self._in_worker(lambda: self._store.watermark)))
            )

    def _compact(self, task: str, session: str | None) -> list[Receipt]:
        self._check_ledger()
        head = self._reader.head().seq
        compaction = Compaction(self._store, self._reader, self._now)
        compaction.run(task, session, head)
        seen = self._reader.events(after=head, until=head)
        del seen
        self._remember_head()
        self._embed_new()
        written = {
            event.body["until"]
            for event in self._reader.events(types=["compaction.finished"], after=self._oldest_unwritten())
        }
        unwritten = self._store.unwritten_receipts()
        already = [receipt for receipt in unwritten if receipt.until in written]
        self._receipts_written(already)
        return [receipt for receipt in unwritten if receipt.until not in written]

    def _oldest_unwritten(self) -> int:
        return min((receipt.until for receipt in self._store.unwritten_receipts()), default=self._reader.head().seq)

    def _receipts_written(self, receipts: Sequence[Receipt]) -> None:
        if receipts:
            with self._store.transaction():
                for receipt in receipts:
                    self._store.receipt_written(receipt)

    def _check_ledger(self) -> None:
        """Memory that is ahead of the ledger, or beside it, was made from a history that no longer is: begin again."""
        mark = self._store.watermark
        known = self._store.setting("watermark_hash")
        event = next(iter(self._reader.events(after=mark - 1, until=mark)), None) if mark else None
        if mark and known is not None and (event is None or event.hash != known):
            self._alarm(
                "memory-rebuilt",
                "memory.db tells of events that the ledger does not have; it is made again from the ledger",
            )
            path = self._store.path
            self._store.close()
            _remove(path)
            self._store = Store.open(path, identity=self._identity())
            self._exact.drop()

    def _remember_head(self) -> None:
        mark = self._store.watermark
        event = next(iter(self._reader.events(after=mark - 1, until=mark)), None) if mark else None
        if event is not None:
            with self._store.transaction():
                self._store.set_setting("watermark_hash", event.hash)

    def _embed_new(self) -> None:
        if self._index is None or self._index.embedding_failure is not None:
            return
        rows = self._store.without_vector(EMBED_AT_ONCE + 1)
        if not rows or len(rows) > EMBED_AT_ONCE:
            return  # nothing new, or so much that the index's own thread does it while sessions go on
        vectors = self._index.embed([text for _, text in rows], urgent=True, seconds_max=EMBED_SECONDS_MAX)
        if vectors is not None:
            with self._store.transaction():
                self._store.add_vectors([id for id, _ in rows], vectors)

    # -- assembly and recall --------------------------------------------------------------------------------------------

    async def assemble(self, request: ContextRequest) -> Context:
        """The context for a session. Raises assembly.ContextTooSmall."""
        return await self._in_worker(lambda: self._assemble(request))

    def _assemble(self, request: ContextRequest) -> Context:
        held = settle(self._store.claims(request.scope))
        material = assembly.Material(
            standing=self._store.pins(request.scope),
            story=story(self._store, request.scope),
            facts=_by_relevance(held, request.query)[:FACTS_MAX],
            superseded=frozenset(f"r{fact.id[1:]}" for fact in held if fact.standing == "superseded"),
            recalled=self._search(request.scope, request.query, request.now),
        )
        return assembly.assemble(request, material)

    async def recall(self, scope: str, query: str, limit: int = 10) -> list[Recalled]:
        """What memory knows about `query`, best first."""
        return await self._in_worker(lambda: self._recall(scope, query, limit))

    def _recall(self, scope: str, query: str, limit: int) -> list[Recalled]:
        return [
            Recalled(
                id=found.record.id, text=found.record.text, score=found.score, at=found.record.at, kind=found.record.kind,
                source=" ".join(f"#{seq}" for seq in found.record.sources), speaker=found.record.speaker,
                untrusted=found.record.untrusted, why=found.why,
            )
            for found in self._search(scope, query, self._now())[:limit]
        ]  # fmt: skip

    def _search(self, scope: str, query: str, now: int) -> list[Found]:
        vector = self._query_vector(query)
        candidates: list[str] = []
        if vector is not None and self._index is not None:
            tasks = self._store.tasks_with_vectors() if scope == WORKSPACE else [scope, ""]
            nearest = self._index.candidates(
                [task for task in tasks if task in self._store.tasks_with_vectors()], vector, CANDIDATES
            )
            if nearest is None:
                candidates = self._exact.nearest(self._store, scope, vector, CANDIDATES)
            else:
                candidates = nearest
                self._exact.drop()
        return search(self._store, scope, query, vector=vector, candidates=candidates, now=now, weights=self.weights)

    def _query_vector(self, query: str) -> Vectors | None:
        if self._index is None or self._index.embedding_failure is not None or not query.strip():
            return None
        if self._store.count("vectors") == 0:
            return None
        vectors = self._index.embed([query], urgent=True, seconds_max=QUERY_SECONDS_MAX)
        return None if vectors is None else vectors[0]

    async def facts(
        self,
        scope: str,
        subject: str | None = None,
        attribute: str | None = None,
        current: bool = True,
        limit: int = 100,
    ) -> list[Fact]:
        """Facts, newest first; with `current` only those that hold and those that dispute them."""
        return await self._in_worker(lambda: self._facts(scope, subject, attribute, current, limit))

    def _facts(self, scope: str, subject: str | None, attribute: str | None, current: bool, limit: int) -> list[Fact]:
        facts = settle(self._store.claims(scope, subject, attribute))
        return [fact for fact in reversed(facts) if not current or fact.standing != "superseded"][:limit]

    # -- the index --------------------------------------------------------------------------------------------------------

    @property
    def index_status(self) -> IndexStatus | None:
        """How the vector index is; None where embedding is off."""
        return None if self._index is None else self._index.status

    async def indexed(self, seconds_max: float) -> bool:
        """Wait until the vector index holds everything; for benchmarks and tests. Sessions never do."""
        if self._index is None:
            return True
        self._index.poke()
        return await asyncio.to_thread(self._index.wait, seconds_max)

    # -- the worker -------------------------------------------------------------------------------------------------------

    def _open_store(self, path: Path) -> None:
        self._reader = LedgerReader.open(self._ledger_path)
        try:
            self._store = Store.open(path, identity=self._identity())
        except MemoryDamaged as damage:
            kept = path.with_name(f"memory.db.damaged-{self._now() // 1_000_000}")
            path.replace(kept)
            _remove(path)
            self._alarm(
                "memory-rebuilt",
                f"memory.db was put aside as {kept.name} and is made again from the ledger: {damage.cause}",
            )
            self._store = Store.open(path, identity=self._identity())

    def _identity(self) -> str:
        first = next(iter(self._reader.events(limit=1)), None)
        return "" if first is None else first.hash

    def _close_store(self) -> None:
        self._store.close()
        self._reader.close()

    def _on_store(self, work: Callable[[Store], T]) -> T:
        future: Future[T] = self._worker.submit(lambda: work(self._store))
        return future.result()

    async def _in_worker(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)


def _by_relevance(facts: Sequence[Fact], query: str) -> list[Fact]:
    """Facts that hold or are disputed: those that share most words with the query first, then a person's, then the newest."""
    words = set(query_terms(query))

    def rank(fact: Fact) -> tuple[int, int, int, str]:
        shared = len(words & set(query_terms(f"{fact.subject} {fact.attribute} {fact.value}")))
        return (-shared, 0 if fact.speaker == "person" else 1, -fact.valid_from, fact.id)

    return sorted((fact for fact in facts if fact.standing != "superseded"), key=rank)


def _draft(receipt: Receipt) -> CompactionFinished:
    return CompactionFinished(
        session=receipt.session, task=receipt.task, after=receipt.after, until=receipt.until, events=receipt.events,
        records=receipt.records, facts=receipt.facts, summaries=receipt.summaries, tokens_before=receipt.tokens_before,
        tokens_after=receipt.tokens_after, duration_us=receipt.duration_us,
    )  # fmt: skip


def _nothing_new(task: str, session: str | None, mark: int) -> Receipt:
    return Receipt(
        task=task, session=session, after=mark, until=mark, events=0, records=0, facts=0, summaries=0, tokens_before=0,
        tokens_after=0, duration_us=0,
    )  # fmt: skip


def _remove(path: Path) -> None:
    for each in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
        each.unlink(missing_ok=True)


def _silent(code: str, words: str) -> None:
    """Nobody asked to be told."""
