"""What every event has in common: as it is before it is written, and as it is read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, ClassVar, Literal, TypeAlias

JSON: TypeAlias = "None | bool | int | float | str | list[JSON] | dict[str, JSON]"

SlotKind = Literal["scheduled", "watch", "manual", "resume", "follow-up"]
SlotOutcome = Literal["ran", "late", "coalesced", "skipped", "missed", "refused", "held"]
SessionStatus = Literal["succeeded", "unverified", "failed", "parked", "limited", "interrupted"]
EffectClass = Literal["read", "idempotent", "probeable", "once"]
Decided = Literal["auto", "escalate", "deny"]
ActionStatus = Literal["succeeded", "failed", "unknown"]

RESUME_TASK = "resume_task"  # the tool of a question about a task that the circuit breaker stopped: may it go on?


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the ledger as read back. `at` is microseconds UTC; `payload` is None when absent or erased."""

    seq: int
    at: int
    type: str
    body: Mapping[str, Any]
    payload_hash: str | None
    hash: str


@dataclass(slots=True, kw_only=True, eq=False)
class Draft:
    """An event before it is written; subclasses name the type and the body's fields (None fields are left out). Not frozen:
    that takes two thirds of this module's time to load, and of each draft's to be made."""

    type: ClassVar[str]
    payload: JSON = None

    def covered(self) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        """(names, sorted; values) of what the chain covers: all but the payload."""
        kind = type(self)
        if kind not in _readers:
            names = tuple(sorted(field.name for field in fields(kind) if field.name != "payload"))
            one = len(names) == 1
            _readers[kind] = names, (lambda draft: (getattr(draft, names[0]),)) if one else attrgetter(*names)
        names, values = _readers[kind]
        return names, values(self)


_readers: dict[type[Draft], tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]] = {}
