"""The child process that owns Chroma and onnxruntime: `python -P -m perdure.memory.index_server DIRECTORY PARENT IDLE`.

Opening a damaged Chroma store can kill whoever opens it; here that is nobody's loss. It answers messages (frames.py) on
standard input and output, embeds in one thread and searches in another, so that neither waits for the other, and exits when
idle, when the daemon ends, or at the end of its input.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

Message: TypeAlias = tuple[dict[str, Any], bytes]

PR_SET_PDEATHSIG = 1
# The WAL takes so many vectors before Chroma writes the HNSW segment: with its default a kill destroys the store for good. What
# stands in the WAL is taken in again at every start, and looked through at every write; `fold` puts an end to that, in a copy. A
# collection made anew from many vectors writes its segment with the last of them (`segment_at`), before the store is in use; then
# `settle` sees to it that it writes no second one.
SYNC_THRESHOLD = 1_000_000
SYNC_NOW = 2  # the least that Chroma takes
SEARCH_BREADTH = 200  # HNSW's ef: wide enough that small collections are searched exactly
URGENT, LATER = 0, 1


class Server:
    """Two lanes of work, one output."""

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._sending = threading.Lock()
        self._embedding: queue.PriorityQueue[tuple[int, int, Message]] = queue.PriorityQueue()
        self._indexing: queue.PriorityQueue[tuple[int, int, Message]] = queue.PriorityQueue()
        self.last_message = threading.Event()
        self._unanswered = 1  # getting ready
        self._counting = threading.Lock()

    def serve(self) -> None:
        """Read messages until the input ends."""
        # Imported before there is a second thread: two threads that import parts of numpy at once get half of it.
        import onnxruntime  # noqa: F401  as said
        import tokenizers  # noqa: F401  as said

        import perdure.memory.embedding  # noqa: F401  as said
        from perdure.memory.frames import receive

        for name, lane, do in (("embed", self._embedding, self._embed()), ("index", self._indexing, self._index())):
            threading.Thread(target=self._work, args=(lane, do), name=name, daemon=True).start()
        order = 0
        self.last_message.set()
        self._count(-1)
        while (message := receive(self._incoming)) is not None:
            self.last_message.set()
            self._count(1)
            order += 1
            lane = self._embedding if message[0]["do"] == "embed" else self._indexing
            lane.put((URGENT if message[0].get("urgent") else LATER, order, message))

    def _work(
        self, lane: queue.PriorityQueue[tuple[int, int, Message]], do: Callable[[dict[str, Any], bytes], Message]
    ) -> None:
        from perdure.memory.frames import send

        while True:
            _, _, (header, blob) = lane.get()
            try:
                answer, data = do(header, blob)
                answer["ok"] = True
            except Exception as error:  # noqa: BLE001  whatever Chroma or onnxruntime raises goes back as words
                kind = type(error).__name__
                answer, data = {"ok": False, "kind": kind, "error": f"{kind}: {error}"[:2_000]}, b""
            with self._sending:
                send(self._outgoing, {**answer, "id": header["id"]}, data)
            self.last_message.set()
            self._count(-1)

    @property
    def busy(self) -> bool:
        """Whether something asked is not answered yet."""
        with self._counting:
            return self._unanswered > 0

    def _count(self, change: int) -> None:
        with self._counting:
            self._unanswered += change

    @staticmethod
    def _embed() -> Callable[[dict[str, Any], bytes], Message]:
        model: list[Any] = []

        def do(header: dict[str, Any], _: bytes) -> Message:
            if not model:
                from perdure.memory.embedding import MiniLM

                model.append(MiniLM())
            return {}, model[0].embed(header["texts"]).astype("<f4").tobytes()

        return do

    @staticmethod
    def _index() -> Callable[[dict[str, Any], bytes], Message]:
        chroma: list[Chroma] = []

        def do(header: dict[str, Any], blob: bytes) -> Message:
            if header["do"] == "open":
                chroma[:] = [Chroma(Path(header["directory"]), header["identity"])]
                return {"collections": chroma[0].names()}, b""
            if header["do"] == "fold":
                Chroma(Path(header["directory"]), header["identity"]).fold()
                return {}, b""
            if not chroma:
                raise RuntimeError("no index is open")
            return chroma[0].do(header, blob)

        return do


class Chroma:
    """One Chroma store: a collection for each task, named by it, holding ids and unit vectors and nothing else."""

    def __init__(self, directory: Path, identity: str) -> None:
        import chromadb
        from chromadb.config import Settings

        directory.mkdir(parents=True, exist_ok=True)
        self._identity = identity
        self._client = chromadb.PersistentClient(str(directory), settings=Settings(anonymized_telemetry=False))
        self._collections: dict[str, Any] = {}  # looking one up costs two statements of SQL

    def names(self) -> list[str]:
        """The collections of this ledger and model; others are dropped."""
        self._collections = {}
        for collection in self._client.list_collections():
            if (collection.metadata or {}).get("identity") == self._identity:
                self._collections[collection.name] = collection
            else:
                self._client.delete_collection(collection.name)
        return list(self._collections)

    def fold(self) -> None:
        """Write the HNSW segments, so that the WAL is empty. A kill meanwhile destroys the store: only for one that is not in
        use yet, and in a process that writes nothing else, for it goes on with this threshold."""
        for name in self.names():
            collection = self._collections[name]
            collection.modify(configuration={"hnsw": {"sync_threshold": SYNC_NOW}})
            collection.get(limit=1, include=[])  # whoever reads first takes the WAL in
            collection.modify(configuration={"hnsw": {"sync_threshold": SYNC_THRESHOLD}})

    def settle(self) -> None:
        """Collections that were made anew with a segment write no further one, from the next process on."""
        for collection in self._collections.values():
            if (collection.configuration["hnsw"] or {}).get("sync_threshold") != SYNC_THRESHOLD:
                collection.modify(configuration={"hnsw": {"sync_threshold": SYNC_THRESHOLD}})

    def do(self, header: dict[str, Any], blob: bytes) -> Message:
        """One request on one collection, or a query of several."""
        import numpy as np

        ids: list[str] = header.get("ids", [])
        match header["do"]:
            case "settle":
                self.settle()
            case "ids":
                return {"ids": self._collection(header).get(include=[])["ids"]}, b""
            case "upsert":
                vectors = np.frombuffer(blob, dtype="<f4").reshape(len(ids), -1)
                collection = self._collection(header)
                if collection.count() == 0:
                    # A collection that is written in bulk before it is first asked takes all of it in again, one by one, at its
                    # next write: 70 s of processor for 10,000 vectors. One that was asked in time does not.
                    collection.upsert(ids=ids[:1], embeddings=vectors[:1])
                    _nearest(collection, vectors[:1], 1)
                collection.upsert(ids=ids, embeddings=vectors)
            case "delete":
                self._collection(header).delete(ids=ids)
            case "vectors":
                found = self._collection(header).get(ids=ids, include=["embeddings"])
                return {"ids": found["ids"]}, np.asarray(found["embeddings"], dtype="<f4").tobytes()
            case "query":
                vector = np.frombuffer(blob, dtype="<f4").reshape(1, -1)
                asked = [self._collections[name] for name in header["collections"] if name in self._collections]
                limit = int(header["limit"])
                return {"ids": [id for each in asked for id in _nearest(each, vector, limit)]}, b""
            case unknown:
                raise ValueError(f"unknown request {unknown}")
        return {}, b""

    def _collection(self, header: dict[str, Any]) -> Any:
        name = header["collection"]
        if name not in self._collections:
            self._collections[name] = self._client.get_or_create_collection(
                name,
                embedding_function=None,
                metadata={"identity": self._identity},
                configuration={
                    "hnsw": {
                        "space": "cosine",
                        "sync_threshold": header.get("segment_at") or SYNC_THRESHOLD,
                        "ef_search": SEARCH_BREADTH,
                    }
                },
            )
        return self._collections[name]


def _nearest(collection: Any, vector: Any, limit: int) -> list[str]:
    # Where there are fewer it names them all. Asking it how many there are takes longer than asking for the nearest.
    ids: list[str] = collection.query(query_embeddings=vector, n_results=limit, include=[])["ids"][0]
    return ids


def main(arguments: list[str]) -> int:
    """Serve until idle for IDLE seconds, until PARENT ends, or until the input ends."""
    parent, idle_seconds = int(arguments[0]), float(arguments[1])
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above
        return 0
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)  # a terminal's Ctrl-C is for the daemon, which closes our input
    # Libraries may print: the protocol keeps the real standard output for itself.
    outgoing = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    server = Server(os.fdopen(os.dup(0), "rb"), outgoing)
    threading.Thread(target=_end_after, args=(server.serve,), name="messages", daemon=True).start()
    while server.last_message.wait(idle_seconds) or server.busy:
        server.last_message.clear()
    return 0


def _end_after(serve: Callable[[], None]) -> None:
    try:
        serve()
    finally:
        os._exit(0)  # the daemon is gone or wants us gone; Chroma's and onnxruntime's threads are not worth waiting for


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except Exception as error:  # noqa: BLE001  the last words go to the log that the daemon reads
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.stderr.flush()
        code = 1
    os._exit(code)
