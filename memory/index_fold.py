"""An empty log for the vector index: a copy of its store, made aside by a process of its own, in which Chroma has written its
segments. A kill while it writes them destroys what it writes, and that is nobody's store yet."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from perdure.memory.generations import Generations
from perdure.memory.index_child import ChildFailed, IndexChild

FOLD_SECONDS_MAX = 600.0


class Fold:
    """Makes such copies, one at a time. `alarm(code, words)` says that one could not be made."""

    def __init__(self, generations: Generations, log: Path, identity: str, alarm: Callable[[str, str], None]) -> None:
        self._generations = generations
        self._log = log
        self._identity = identity
        self._alarm = alarm
        self._starting = threading.Lock()
        self._closing = False
        self._child: IndexChild | None = None

    def copied(self, generation: str, vectors: int) -> str | None:
        """The copy of a generation that nobody writes to meanwhile and that holds so many vectors, or None where none could be
        made."""
        copy = self._generations.next()
        try:
            self._generations.copy(generation, copy)
            with self._starting:
                if self._closing:
                    raise ChildFailed("fold", copy, "the daemon stops", "The next start looks after it")
                child = self._child = IndexChild(self._log)
            directory = str(self._generations.path(copy))
            child.ask("fold", directory=directory, identity=self._identity, seconds_max=FOLD_SECONDS_MAX)
            self._generations.set_folded(copy, vectors)
        except (ChildFailed, OSError) as error:
            self._generations.remove(copy)
            if not self._closing:
                self._alarm("index-not-folded", f"the vector index goes on with a long log, slowly: {error}")
            return None
        finally:
            self._end()
        return copy

    def close(self) -> None:
        """End what is under way; no more is begun."""
        with self._starting:
            self._closing = True
        self._end()

    def _end(self) -> None:
        with self._starting:
            if self._child is not None:
                self._child.close()
                self._child = None
