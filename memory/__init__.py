"""Memory: what the ledger holds, made small enough to think with. Derived, rebuildable, within its budget."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

# Vectors are short: more threads take turns waiting for each other (31 ms of processor for a search instead of 12), and add up
# in another order, so that two machines could disagree. OpenBLAS reads it when numpy is first imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

if TYPE_CHECKING:
    from perdure.memory.memory import Memory

__all__ = ["Memory"]


def __getattr__(name: str) -> object:
    """`from perdure.memory import Memory` loads SQLite, numpy and the index's client only when it is asked for."""
    if name == "Memory":
        from perdure.memory.memory import Memory

        return Memory
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
