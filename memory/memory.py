"""Memory, as the daemon sees it: compact, assemble, recall. One thread owns memory.db; the event loop never waits for SQLite."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from perdure.errors import PerdureError
from perdure.memory import assembly, passes
from perdure.memory.authoring import Author, Brief, brief, fits, judged, refused
from perdure.memory.catalogue import Catalogue, Rows
from perdure.memory.compaction import MODEL_STOPPED, VAIN, Compaction, CompactionUnsuccessful
from perdure.memory.context import Context, ContextRequest
from perdure.memory.embedding import Vectors
from perdure.memory.facts import Fact
from perdure.memory.index import IndexStatus, VectorIndex
from perdure.memory.keys import embedded
from perdure.memory.query_vectors import QueryVectors
from perdure.memory.recall import CANDIDATES, Recalled, Weights, search
from perdure.memory.settled import Settled
from perdure.memory.since import facts_now, gone, known_facts, standing, tells_of
from perdure.memory.store import MemoryDamaged, Receipt, Store
from perdure.memory.story import story
from perdure.memory.summaries import PERIODS
from perdure.memory.words import word_search
from perdure.state.events import CompactionFailed, CompactionFinished, CompactionStopped, SummaryMade, SummaryRefused
from perdure.state.ledger import Ledger, LedgerReader

Embedding = Literal["minilm", "none"]

EMBED_AT_ONCE = 128  # new records that a compaction embeds itself; more are left to the index's own thread
EMBED_SECONDS_MAX = 10.0  # the child's start included: a second on an idle machine
FACTS_MAX = 200  # facts that an assembly looks at

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Near:
    """A query's vector, the records that a vector search named, by place and by name, and which search it was."""

    vector: Vectors | None
    rows: Rows
    ids: Sequence[str]
    by: Literal["index", "exact", "nobody"]


class Memory:
    """The memory room's front door. Every method may be called from the daemon's event loop."""

    def __init__(
        self,
        ledger: Ledger,
        ledger_path: Path,
        now: Callable[[], int],
        alarm: Callable[[str, str], None],
        worker: ThreadPoolExecutor,
        keep_us: int | None = None,
    ) -> None:
        self._ledger = ledger
        self._ledger_path = ledger_path
        self._now = now
        self._alarm = alarm
        self._worker = worker
        self._keep_us = keep_us
        self._store: Store
        self._catalogue: Catalogue
        self._settled: Settled
        self._reader: LedgerReader
        self._index: VectorIndex | None = None
        self._query_vectors: QueryVectors
        self._asking = ThreadPoolExecutor(1, thread_name_prefix="perdure-query")
        self._compacting = asyncio.Lock()
        self._closed = False
        self.weights = Weights()
        self.use_index = True  # False: search the vectors in memory, as while the index is not ready

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
        keep_us: int | None = None,
    ) -> Memory:
        """Open memory.db and the index under `state_dir`, made again from the ledger where they are missing or damaged.

        `alarm(code, words)` is called from any thread when a person must know. The text of what is `keep_us` old leaves
        memory (None: never). Raises PerdureError where memory.db is of a newer Perdure.
        """
        alarm = alarm or _silent
        worker = ThreadPoolExecutor(1, thread_name_prefix="perdure-memory")
        memory = cls(ledger, state_dir / "ledger.db", now, alarm, worker, keep_us)
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
            memory._query_vectors = QueryVectors(memory._index.embed)
        worker.submit(memory._warm_up)
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
        self._asking.shutdown()

    # -- compaction -----------------------------------------------------------------------------------------------------

    async def compact(self, task: str, *, scope: str, session: str | None = None) -> CompactionFinished:
        """Read what the ledger has gained, and write the receipt into it. Raises CompactionUnsuccessful, after
        CompactionFailed has been written, and while compaction is stopped; memory then stands where the last good
        compaction left it."""
        async with self._compacting:
            if (stop := passes.stopped(self._ledger.reader)) is not None:
                cause = f"it was stopped at ledger event #{stop.seq}: {stop.body['reason']}"
                raise CompactionUnsuccessful("compact memory for", task, cause, passes.RESUME)
            if self._index is not None:
                self._index.wake()  # for what is to be embedded in a moment, and for the query of the session
            try:
                receipts = await self._in_worker(lambda: self._compact(task, session))
            except Exception as error:
                reason = str(error) if isinstance(error, PerdureError) else f"{type(error).__name__}: {error}"
                await self._ledger.write(CompactionFailed(session=session, task=task, reason=reason[:2_000]))
                await self._stop_if_useless()
                if isinstance(error, CompactionUnsuccessful):
                    raise
                hint = "Free disk space or run `perdure verify`; memory stands where the last good compaction left it"
                raise CompactionUnsuccessful("compact memory for", task, reason, hint) from error
            drafts = [passes.draft(receipt) for receipt in receipts]
            if drafts:
                await self._ledger.write(*drafts)
            await self._in_worker(lambda: self._receipts_written(receipts))
            if any(receipt.ineffective for receipt in receipts):
                await self._stop_if_useless()
            if self._index is not None:
                self._index.poke()
            if drafts:
                return drafts[-1]
            return passes.nothing_new(task, session, await self._in_worker(lambda: self._store.watermark))

    async def _stop_if_useless(self) -> None:
        """Stop after two ineffective passes in a row, loudly: more of them would change nothing and cost time or money."""
        reasons = passes.ineffective_in_a_row(self._ledger.reader)
        if len(reasons) >= passes.PASSES_MAX:
            await self._stop("compaction", len(reasons), reasons[0])

    async def _stop(self, what: Literal["compaction", "model-summaries"], count: int, reason: str) -> None:
        (event,) = await self._ledger.write(CompactionStopped(what=what, passes=count, reason=reason[:2_000]))
        begun = "memory is no longer compacted" if what == "compaction" else "no model is asked for summaries any more"
        words = f"{begun} since ledger event #{event.seq}, after {count} passes in a row of no use: {reason}\n{passes.RESUME}"
        self._alarm(f"{what}-stopped", words)

    # -- summaries by a model -------------------------------------------------------------------------------------------

    async def summarise(self, task: str, session: str, author: Author) -> bool:
        """Have `author` write what the task's last closed periods come to, check it, and put it, or why it is not kept, into
        the ledger, whence the next compaction takes it. Each period is asked for once. Returns whether any was kept."""
        kept = False
        for asked in await self._in_worker(lambda: self._briefs(task, author.source_tokens_max)):
            draft: SummaryMade | SummaryRefused
            if await self._in_worker(partial(fits, asked)):
                written = await author.write(asked)
                draft = await self._in_worker(partial(judged, asked, written, session))  # its texts may be anything
            else:
                names = f"{len(asked.must_stay)} names and references must stay, too many for {asked.tokens_max} tokens"
                draft = refused(asked, session, "too-much", names)
            await self._ledger.write(draft)
            kept = kept or isinstance(draft, SummaryMade)
        return kept

    async def stop_vain_summaries(self) -> None:
        """Stop asking a model whose answers in two sessions in a row were all of no use; after their compaction."""
        vain, stopped = await self._in_worker(lambda: (self._store.setting(VAIN), self._store.setting(MODEL_STOPPED)))
        if stopped != "1" and int(vain or 0) >= passes.PASSES_MAX:
            await self._stop(
                "model-summaries", int(vain or 0), "no answer of the model passed the checks; see summary.refused"
            )

    def _briefs(self, task: str, source_tokens_max: int) -> list[Brief]:
        """The newest closed period of each level that nobody was asked about, where there is more than its summary holds."""
        if self._store.setting(MODEL_STOPPED) == "1":
            return []
        compaction = Compaction(self._store, self._reader, self._now)
        newest = [each for level in ("session", *PERIODS) for each in self._store.summaries(task, level, limit=1)]
        asked = [
            brief(summary, compaction.records_of(summary), source_tokens_max)
            for summary in newest
            if summary.seq is None and not self._store.attempted(summary.id)
        ]
        return [each for each in asked if each is not None]

    def _compact(self, task: str, session: str | None) -> list[Receipt]:
        self._check_ledger()
        head = self._reader.head().seq
        Compaction(self._store, self._reader, self._now, keep_us=self._keep_us).run(task, session, head)
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
        """Memory that is ahead of the ledger, or beside it, was made from a history that no longer is: begin again. So does a
        file that somebody removed or replaced under the daemon: what is written into it now, nobody would find."""
        if not self._store.is_at_its_place:
            self._begin_again("memory.db was removed or replaced while it was in use; it is made again from the ledger")
            return
        mark = self._store.watermark
        known = self._store.setting("watermark_hash")
        event = next(iter(self._reader.events(after=mark - 1, until=mark)), None) if mark else None
        if mark and known is not None and (event is None or event.hash != known):
            self._begin_again(
                "memory.db tells of events that the ledger does not have; it is made again from the ledger"
            )

    def _begin_again(self, why: str) -> None:
        self._alarm("memory-rebuilt", why)
        path = self._store.path
        self._store.close()
        _remove(path)
        self._store = Store.open(path, identity=self._identity())
        self._catalogue, self._settled = Catalogue(self._store), Settled(self._store)
        if self._index is not None:
            self._index.begin_again()

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
        embed = partial(self._index.embed, urgent=True, seconds_max=EMBED_SECONDS_MAX)
        vectors = embedded([text for _, text in rows], embed)
        if vectors is not None:
            with self._store.transaction():
                self._store.add_vectors([id for id, _ in rows], vectors)

    # -- assembly and recall --------------------------------------------------------------------------------------------

    async def assemble(self, request: ContextRequest, candidates: Sequence[str] | None = None) -> Context:
        """The context for a session; with the `candidates` of an earlier one, as that was. Raises assembly.ContextTooSmall."""
        return await self._in_worker(lambda: self._assemble(request, candidates))

    def _assemble(self, request: ContextRequest, candidates: Sequence[str] | None) -> Context:
        self._catalogue.refresh()
        near = self._near(request.scope, request.query, candidates)  # while it is awaited, all else is looked up
        words = word_search(self._catalogue, self._catalogue.visible(request.scope), request.query, CANDIDATES)
        without = gone(self._store, self._reader)  # where memory could not be brought up to date
        with facts_now(self._settled, self._store, self._reader, request.scope, without) as facts:
            relevant = facts.relevant(request.query, FACTS_MAX)
            told = [each for each in story(self._store, request.scope) if not tells_of(each, without)]
            found = near()
            recalled = search(
                self._catalogue, request.scope, request.query, vector=found.vector, candidates=found.rows, now=request.now,
                tokens_max=int(assembly.REACH * request.budget), weights=self.weights, words=words,
            )  # fmt: skip
            material = assembly.Material(
                standing=standing(self._store, self._reader, request.scope, without),
                story=told,
                facts=relevant,
                superseded=facts.superseded,
                disputed=facts.disputed,
                fact_of=facts.fact_of,
                recalled=[each for each in recalled if each.record.seq not in without],
            )
            context = assembly.assemble(request, material)
        return replace(context, candidates=tuple(found.ids), candidates_by=found.by)

    async def recall(self, scope: str, query: str, limit: int = 10) -> list[Recalled]:
        """What memory knows about `query`, best first, without what a person forgot or erased since the last compaction."""
        return await self._in_worker(lambda: self._recall(scope, query, limit))

    def _recall(self, scope: str, query: str, limit: int) -> list[Recalled]:
        self._catalogue.refresh()
        near = self._near(scope, query)()
        found = search(
            self._catalogue, scope, query, vector=near.vector, candidates=near.rows, now=self._now(), weights=self.weights
        )  # fmt: skip
        without = gone(self._store, self._reader)
        there = [each for each in found if each.record.seq not in without][:limit]
        with facts_now(self._settled, self._store, self._reader, scope, without) as facts:
            return [
                Recalled(
                    id=each.record.id, text=each.record.text, score=each.score, at=each.record.at, kind=each.record.kind,
                    source=" ".join(f"#{seq}" for seq in each.record.sources), speaker=each.record.speaker,
                    untrusted=each.record.untrusted, standing=facts.standing(each.record.id), why=each.why,
                )
                for each in there
            ]  # fmt: skip

    def _near(self, scope: str, query: str, candidates: Sequence[str] | None = None) -> Callable[[], _Near]:
        """Asks what is near the query, and returns what waits for the answer: the index's, or, while it is not ready or slow,
        that of the vectors in memory."""
        catalogue, index = self._catalogue, self._index
        nobody = _Near(None, catalogue.rows([]), (), "nobody")
        if index is None or index.embedding_failure is not None or not query.strip() or not catalogue.vectors:
            return lambda: nobody
        synced = index.synced_row
        tasks = catalogue.tasks(scope) if candidates is None and self.use_index else []
        asked = self._asking.submit(lambda: self._ask(index, query, tasks))

        def near() -> _Near:
            vector, found = asked.result()
            if vector is None:
                return nobody
            if candidates is not None:
                return _Near(vector, *catalogue.named(candidates), "index")
            visible = catalogue.visible(scope)
            if found is None:
                rows = catalogue.nearest(vector, visible, CANDIDATES)
                return _Near(vector, rows, catalogue.ids(rows), "exact")
            rows, ids = catalogue.named(found)
            # What the index has not taken in yet is looked through here: a session recalls what the last one did.
            recent = catalogue.nearest(vector, visible & catalogue.newer_than(synced), CANDIDATES)
            return _Near(vector, np.concatenate([rows, recent]), [*ids, *catalogue.ids(recent)], "index")

        return near

    def _ask(self, index: VectorIndex, query: str, tasks: Sequence[str]) -> tuple[Vectors | None, list[str] | None]:
        """The query's vector and what the index finds near it, both from its process; in a thread of its own."""
        vector = self._query_vectors.of(query)
        return vector, index.candidates(tasks, vector, CANDIDATES) if vector is not None and tasks else None

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
        facts = known_facts(self._store, self._reader, scope, subject, attribute)
        return [fact for fact in reversed(facts) if not current or fact.standing != "superseded"][:limit]

    # -- the index --------------------------------------------------------------------------------------------------------

    @property
    def index_status(self) -> IndexStatus | None:
        """How the vector index is; None where embedding is off."""
        return None if self._index is None else self._index.status

    @property
    def index_process(self) -> int | None:
        """The process id of the index, while it runs; for measurements."""
        return None if self._index is None else self._index.pid

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
        self._catalogue, self._settled = Catalogue(self._store), Settled(self._store)

    def _warm_up(self) -> None:
        """Read the columns while nobody waits for them: a second for 100,000 records. What is wrong is told to who needs them."""
        with contextlib.suppress(sqlite3.Error):
            self._catalogue.refresh()

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


def _remove(path: Path) -> None:
    for each in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
        each.unlink(missing_ok=True)


def _silent(code: str, words: str) -> None:
    """Nobody asked to be told."""
