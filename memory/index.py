"""The vector index: embeddings and nearest neighbours from the child process, kept in step with memory.db in the background,
rebuilt into a fresh directory when damaged. Nobody waits for it: while it is not ready, the exact search of recall.py serves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np

from perdure.errors import PerdureError
from perdure.memory.embedding import DIMENSIONS, MODEL_ID, EmbeddingUnavailable, Vectors
from perdure.memory.generations import Generations, collection_name
from perdure.memory.index_child import IDLE_SECONDS, ChildFailed, IndexChild
from perdure.memory.index_fold import Fold
from perdure.memory.keys import embedded
from perdure.memory.store import Store

State = Literal["idle", "starting", "rebuilding", "ready", "failed"]

BATCH_VECTORS = 500
BATCH_TEXTS = 64
EMBED_SECONDS_MAX = 60.0
OPEN_SECONDS_MAX = 120.0  # Chroma takes its log in at the first question: 2.5 s for 10,000 vectors
ASK_SECONDS_MAX = 60.0
QUERY_SECONDS_MAX = 0.03  # an exact search takes less; a healthy index answers 100,000 vectors in a tenth of it
DEATHS_MAX = 5  # in DEATHS_WITHIN_US; then the index rests for as long, and memory searches exactly
DEATHS_WITHIN_US = 600_000_000
DISCARDS_MAX = 4  # stores thrown away within DEATHS_WITHIN_US; then it waits for the next session to try again
RETRIES = 3  # after failures in a row; then it waits for the next session
SAMPLE = 64  # vectors compared one by one in a health check
CHURN_MIN = 2_000  # deleted vectors that a store carries before it is worth building anew
FOLD_MIN = 2_000  # vectors in Chroma's log that are worth a copy of the store without one
FOLD_SHARE = 0.05  # of the vectors; 75,000 in the log cost 65 s of processor at each start, and 0.4 s at each write

T = TypeVar("T")


class OnStore(Protocol):
    """Runs a function of the store in the thread that owns it, and waits for its result."""

    def __call__(self, work: Callable[[Store], T]) -> T: ...


@dataclass(slots=True)
class IndexStatus:
    """How the index is: `vectors` it holds, how often it was rebuilt and its process died since the daemon started."""

    state: State
    vectors: int
    rebuilds: int
    deaths: int
    reason: str = ""


class VectorIndex:
    """Owns the directory `index/` and the child process. Its own thread keeps the index in step; `poke` asks it to."""

    def __init__(
        self,
        directory: Path,
        *,
        identity: str,
        on_store: OnStore,
        now: Callable[[], int],
        alarm: Callable[[str, str], None],
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._generations = Generations(directory)
        self._log = directory.with_suffix(".log")
        self._identity = f"{identity}/{MODEL_ID}"
        self._on_store = on_store
        self._now = now
        self._alarm = alarm
        self._fold_aside = Fold(self._generations, self._log.with_name("index-fold.log"), self._identity, alarm)
        self._idle_seconds = idle_seconds
        self._spawning = threading.Lock()
        self._changed = threading.Condition()
        self._asked = 0  # how often it was asked, and up to which of these it has done
        self._done = 0
        self._wanted = False  # its process, soon
        self._failures = 0  # in a row
        self._closing = False
        self._child: IndexChild | None = None
        self._history = 0  # grows when memory.db was begun again, from another history
        self._history_opened = 0
        # The child that has the current generation open, and the history that this was checked against.
        self._opened_by: tuple[int, int] | None = None
        self._deaths: list[int] = []
        self._discarded: list[int] = []
        self._touching: str = ""  # the generation that a running request works on; a death then blames it
        self.synced_row = 0  # the newest vector of memory.db that it has taken in
        self._deleted = 0
        self._logged = 0  # vectors and deletions that Chroma's log holds
        self.embedding_failure: str | None = None
        self.status = IndexStatus("idle", 0, 0, 0)
        self._thread = threading.Thread(target=self._keep_in_step, name="perdure-index", daemon=True)
        self._thread.start()

    # -- what sessions ask ----------------------------------------------------------------------------------------------

    def embed(self, texts: Sequence[str], *, urgent: bool, seconds_max: float) -> Vectors | None:
        """The texts' vectors, or None when that is not to be had in time; search then goes by words alone."""
        if not texts:
            return np.zeros((0, DIMENSIONS), dtype=np.float32)
        data = b""
        for last in (False, False, True):  # a child that has just died, or made way for another, is started again
            child = None
            try:
                child = self._running()
                _, data = child.ask("embed", texts=list(texts), urgent=urgent, seconds_max=seconds_max)
                break
            except ChildFailed as error:
                if last or child is None or not child.dead:
                    self._note_embedding(error)
                    return None
        vectors = np.frombuffer(data, dtype="<f4")
        if vectors.size != len(texts) * DIMENSIONS or not np.isfinite(vectors).all():
            return None
        return vectors.reshape(len(texts), DIMENSIONS)

    def candidates(self, tasks: Sequence[str], vector: Vectors, limit: int) -> list[str] | None:
        """The ids nearest to `vector` in each of these tasks' collections, or None while the index is not ready or slow."""
        child = self._child
        if self.status.state != "ready" or child is None or child.dead or (child.pid, self._history) != self._opened_by:
            self.poke()
            return None
        try:
            header, _ = child.ask(
                "query", collections=[collection_name(task) for task in tasks], limit=limit,
                blob=vector.astype("<f4").tobytes(), urgent=True, seconds_max=QUERY_SECONDS_MAX,
            )  # fmt: skip
        except ChildFailed as error:
            if error.kind == TimeoutError.__name__:  # it may be busy with what is new: nobody waits for that
                return None
            self.status.state, self.status.reason = "starting", error.cause
            self._opened_by = None
            self.poke()
            return None
        return [str(id) for id in header["ids"]]

    @property
    def pid(self) -> int | None:
        """The child's process id, while it runs."""
        child = self._child
        return None if child is None or child.dead else child.pid

    def wake(self) -> None:
        """It is wanted soon: its process is started, if it does not run, and loads what it needs; returns at once."""
        with self._changed:
            self._wanted = True
            self._changed.notify_all()

    def begin_again(self) -> None:
        """memory.db is another one, made from another history: what is held of the old one is worth nothing. In the store's
        thread."""
        self._history += 1
        self.poke()

    def poke(self) -> None:
        """There may be something new to index; returns at once."""
        with self._changed:
            self._asked += 1
            self._changed.notify_all()

    def wait(self, seconds_max: float) -> bool:
        """Until everything asked so far is indexed; for tests and benchmarks. False when the time is over."""
        with self._changed:
            return self._changed.wait_for(lambda: self._done == self._asked, seconds_max)

    def close(self) -> None:
        """End the thread and the child."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        with self._spawning:
            if self._child is not None:
                self._child.close()
                self._child = None
        self._fold_aside.close()
        self._thread.join()

    # -- the child ------------------------------------------------------------------------------------------------------

    def _running(self) -> IndexChild:
        """The child, started if need be. Raises ChildFailed while it rests after too many deaths."""
        with self._spawning:
            if self._closing:
                raise ChildFailed("use", "the vector index", "memory is closing", "Start Perdure again")
            if self._child is not None and not self._child.dead:
                return self._child
            if self._child is not None:
                self._bury(self._child)
            recent = [at for at in self._deaths if at > self._now() - DEATHS_WITHIN_US]
            if len(recent) >= DEATHS_MAX:
                cause = f"its process died {len(recent)} times within {DEATHS_WITHIN_US // 60_000_000} minutes"
                raise ChildFailed(
                    "start", "the vector index", cause, "Memory searches exactly in SQLite meanwhile; see index.log"
                )
            try:
                self._child = IndexChild(self._log, self._idle_seconds)
            except OSError as error:
                raise ChildFailed(
                    "start", "the vector index", str(error), "Memory searches by words alone meanwhile"
                ) from error
            return self._child

    def _bury(self, child: IndexChild) -> None:
        child.close()
        if child.exit_code == 0:  # it was idle
            return
        self._deaths.append(self._now())
        self.status.deaths += 1
        if len(self._deaths) >= DEATHS_MAX:
            self._alarm(
                "index-died",
                f"the index process died {self.status.deaths} times; see {self._log}",
            )

    def _note_embedding(self, error: ChildFailed) -> None:
        """A model that is missing or wrong stays so until somebody mends it: say it once, ask no more."""
        if self.embedding_failure is None and error.kind == EmbeddingUnavailable.__name__:
            self.embedding_failure = error.cause
            self._alarm("memory-words-only", f"memory searches by words alone: {error.cause}")

    # -- keeping in step ------------------------------------------------------------------------------------------------

    def _keep_in_step(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._asked > self._done or self._wanted or self._closing)
                if self._closing:
                    return
                asked, self._wanted = self._asked, False
            try:
                if asked == self._done:
                    if self.pid is None and self.embedding_failure is None:
                        self.embed(["anything"], urgent=False, seconds_max=EMBED_SECONDS_MAX)
                    continue
                self._embed_backlog()
                self._step()
                if self._logged > max(FOLD_MIN, FOLD_SHARE * self.status.vectors):
                    self._fold()
                self._failures = 0
                self._set_state("ready")
            except ChildFailed as error:
                self._fail(error.cause)
            except (PerdureError, OSError, ValueError, KeyError) as error:
                self._discard(str(error))
            except RuntimeError:  # the store's thread is gone: memory is closing
                if not self._closing:
                    raise
            with self._changed:
                self._done = asked
                self._changed.notify_all()

    def _fail(self, cause: str) -> None:
        """The child died or refused. If it was at work on the store, the store is to blame: the next one builds a new one."""
        if self._closing:
            return
        if self._touching:
            self._discard(cause)
            return
        self._set_state("failed", cause)
        self._failures += 1
        if self._failures <= RETRIES:
            self.poke()

    def _discard(self, cause: str) -> None:
        self._discarded = [at for at in self._discarded if at > self._now() - DEATHS_WITHIN_US] + [self._now()]
        self._touching, self._opened_by = "", None
        self._generations.use_none()
        if len(self._discarded) > DISCARDS_MAX:
            self._alarm("index-failed", f"the vector index cannot be kept, memory searches exactly: {cause}")
            self._set_state("failed", cause)
            return
        self._set_state("starting", cause)
        self._alarm("index-rebuilt", f"the vector index is made again from memory.db: {cause}")
        self.poke()

    def _set_state(self, state: State, reason: str = "") -> None:
        with self._changed:
            self.status.state, self.status.reason = state, reason
            self._changed.notify_all()

    def _embed_backlog(self) -> None:
        while not self._closing and self.embedding_failure is None:
            rows = self._on_store(lambda store: store.without_vector(BATCH_TEXTS))
            if not rows:
                return
            embed = partial(self.embed, urgent=False, seconds_max=EMBED_SECONDS_MAX)
            vectors = embedded([text for _, text in rows], embed)
            if vectors is None:
                raise ChildFailed("embed", "new records", "the index process did not answer", "It is tried again")
            self._on_store(partial(_keep_vectors, ids=[id for id, _ in rows], vectors=vectors))

    def _step(self) -> None:
        """Bring the index to what memory.db holds now."""
        child = self._running()
        if self._opened_by != (child.pid, self._history):
            self._open(child)
        else:
            self._catch_up(child)

    def _open(self, child: IndexChild) -> None:
        """Open the current generation and check it id by id; without one, or with a bad one, build the next."""
        if self.status.state != "rebuilding":
            self._set_state("starting")
        history = self._history
        if history != self._history_opened:
            self._generations.use_none()
            self._history_opened = history
        generation = self._generations.current()
        fresh = generation is None
        if generation is None:
            generation = self._generations.next()
            self._set_state("rebuilding")
            self.status.rebuilds += 1
        self._touching = generation
        child.ask(
            "open",
            directory=str(self._generations.path(generation)),
            identity=self._identity,
            seconds_max=OPEN_SECONDS_MAX,
        )
        row = self._on_store(lambda store: store.last_vector_row())
        self._on_store(_forget_removed)
        total, written = 0, 0
        for task in self._on_store(lambda store: store.tasks_with_vectors()):
            count = self._match(child, task, fresh=fresh)
            total += count
            written += count if count > FOLD_MIN else 0
        if fresh and written:
            child.ask("settle", seconds_max=ASK_SECONDS_MAX)
            self._generations.set_folded(generation, written)
        self._touching = ""
        if fresh:
            self._generations.use(generation)
            if written:
                self._replace_child()
                return
        self._generations.sweep(generation)
        self.synced_row, self._deleted, self._opened_by = row, 0, (child.pid, history)
        self.status.vectors = total
        self._logged = max(0, total - self._generations.folded(generation))
        self._catch_up(child)

    def _match(self, child: IndexChild, task: str, *, fresh: bool) -> int:
        """Make one collection hold exactly what memory.db holds. Raises ValueError when the store is not worth mending."""
        name = collection_name(task)
        wanted = self._on_store(lambda store: store.vector_ids(task))
        held = (
            []
            if fresh
            else [str(id) for id in child.ask("ids", collection=name, seconds_max=OPEN_SECONDS_MAX)[0]["ids"]]
        )
        there, here = set(held), set(wanted)
        missing = [id for id in wanted if id not in there]
        extra = [id for id in held if id not in here]
        if not fresh:
            if len(missing) + len(extra) > max(CHURN_MIN, len(wanted) // 2):
                raise ValueError(f"{len(missing)} vectors are missing and {len(extra)} are not ours")
            self._compare_sample(child, name, [id for id in wanted if id in there])
        for start in range(0, len(extra), BATCH_VECTORS):
            child.ask("delete", collection=name, ids=extra[start : start + BATCH_VECTORS], seconds_max=ASK_SECONDS_MAX)
        for start in range(0, len(missing), BATCH_VECTORS):
            self._upsert(child, name, missing[start : start + BATCH_VECTORS], expected=len(missing) if fresh else 0)
        return len(wanted)

    def _compare_sample(self, child: IndexChild, name: str, ids: list[str]) -> None:
        sample = ids[:: max(1, len(ids) // SAMPLE)][:SAMPLE]
        if not sample:
            return
        header, data = child.ask("vectors", collection=name, ids=sample, seconds_max=ASK_SECONDS_MAX)
        held = dict(zip(header["ids"], np.frombuffer(data, dtype="<f4").reshape(-1, DIMENSIONS), strict=True))
        wanted = self._on_store(lambda store: store.vectors(sample))
        for id, vector in wanted.items():
            if id not in held or float(np.dot(held[id], vector)) < 0.999:
                raise ValueError(f"the vector of {id} is another one than in memory.db")

    def _catch_up(self, child: IndexChild) -> None:
        """Index what came since, drop what was removed."""
        generation = self._generations.current()
        self._touching = generation or ""
        removed = self._on_store(_forget_removed)
        for id, task in removed:
            child.ask("delete", collection=collection_name(task), ids=[id], seconds_max=ASK_SECONDS_MAX)
        self._deleted += len(removed)
        self._logged += len(removed)
        after = self.synced_row
        rows, last = self._on_store(lambda store: store.vectors_after(after))
        by_task: dict[str, list[str]] = {}
        for id, task in rows:
            by_task.setdefault(task, []).append(id)
        for task, ids in by_task.items():
            for start in range(0, len(ids), BATCH_VECTORS):
                self._upsert(child, collection_name(task), ids[start : start + BATCH_VECTORS])
        self._touching = ""
        self.synced_row = last
        self.status.vectors += len(rows) - len(removed)
        self._logged += len(rows)
        if self._deleted > max(CHURN_MIN, self.status.vectors):
            raise ValueError(f"{self._deleted} deleted vectors bloat it")

    def _upsert(self, child: IndexChild, collection: str, ids: list[str], *, expected: int = 0) -> None:
        if self._closing:
            raise ChildFailed("index", "new records", "memory is closing", "They are indexed at the next start")
        vectors = self._on_store(lambda store: store.vectors(ids))
        kept = [id for id in ids if id in vectors]
        if kept:
            blob = np.stack([vectors[id] for id in kept]).astype("<f4").tobytes()
            child.ask(
                "upsert", collection=collection, ids=kept, blob=blob, segment_at=expected if expected > FOLD_MIN else None,
                seconds_max=ASK_SECONDS_MAX,
            )  # fmt: skip

    def _fold(self) -> None:
        """Go on with a copy of the store whose log is empty."""
        generation = self._generations.current()
        self._logged = 0  # where this fails, it is tried again after as many more
        if generation is None or (copied := self._fold_aside.copied(generation, self.status.vectors)) is None:
            return
        self._replace_child(copied)

    def _replace_child(self, generation: str | None = None) -> None:
        """Go on with another process, which holds nothing of what this one took in, and with this generation."""
        with self._spawning:
            if self._closing or self._child is None:
                return
            self._child.close()
            self._child = None
        if generation is not None:
            self._generations.use(generation)
        self._open(self._running())


def _keep_vectors(store: Store, ids: list[str], vectors: list[bytes]) -> None:
    with store.transaction():
        store.add_vectors(ids, vectors)


def _forget_removed(store: Store) -> list[tuple[str, str]]:
    with store.transaction():
        return store.take_removed()
