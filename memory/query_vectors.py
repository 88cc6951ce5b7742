"""The vectors of queries, kept: a task asks the same at each of its sessions, and needs no model for that."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from perdure.memory.embedding import Vectors

KEPT_MAX = 256  # 1.5 KB each
SECONDS_MAX = 10.0


class QueryVectors:
    """Asks `embed` (index.py) for what was not asked before; of many, those asked for last are kept."""

    def __init__(self, embed: Callable[..., Vectors | None]) -> None:
        self._embed = partial(embed, urgent=True)
        self._kept: dict[str, Vectors] = {}

    def of(self, query: str) -> Vectors | None:
        """The vector, or None where it is not to be had in time."""
        vector = self._kept.pop(query, None)
        if vector is None:
            made = self._embed([query], seconds_max=SECONDS_MAX)
            if made is None:
                return None
            vector = made[0]
        self._kept[query] = vector
        if len(self._kept) > KEPT_MAX:
            del self._kept[next(iter(self._kept))]
        return vector
