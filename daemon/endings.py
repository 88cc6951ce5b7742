"""How sessions end: with a status, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perdure.state.events import SessionStatus


class Ended(Exception):
    """The session is over: `status` and why. `rule` is for the slot, where it has something to say about it."""

    def __init__(self, status: SessionStatus, reason: str, *, rule: str | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.rule = rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a session ended."""

    session: str
    status: SessionStatus
    reason: str
