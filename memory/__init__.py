"""Memory: what the ledger holds, made small enough to think with. Derived, rebuildable, within its budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perdure.memory.memory import Memory

__all__ = ["Memory"]


def __getattr__(name: str) -> object:
    """`from perdure.memory import Memory` loads SQLite, numpy and the index's client only when it is asked for."""
    if name == "Memory":
        from perdure.memory.memory import Memory

        return Memory
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
