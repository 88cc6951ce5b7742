"""The ledger's events as log lines: what went wrong, and what a person reads to know that all is well. Texts stay out: they
are in the ledger's payloads, where they can be erased."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import structlog

from perdure.state.events import Event

log = structlog.get_logger("perdure.events")

_ALWAYS: Final[Mapping[str, int]] = {
    "daemon.started": logging.INFO,
    "daemon.stopped": logging.INFO,
    "configuration.loaded": logging.INFO,
    "configuration.rejected": logging.ERROR,
    "task.loaded": logging.INFO,
    "task.removed": logging.INFO,
    "paused": logging.WARNING,
    "resumed": logging.INFO,
    "alarm.raised": logging.ERROR,
    "session.opened": logging.INFO,
    "compaction.failed": logging.ERROR,
    "compaction.stopped": logging.CRITICAL,
    "compaction.resumed": logging.INFO,
    "summary.refused": logging.WARNING,
    "step.rejected": logging.WARNING,
    "escalation.opened": logging.WARNING,
    "escalation.answered": logging.INFO,
    "escalation.expired": logging.WARNING,
    "grant.given": logging.WARNING,
    "grant.revoked": logging.INFO,
    "payload.erased": logging.INFO,
}
# Depending on how it went: the field, and for each value worth a line its level.
_BY_OUTCOME: Final[Mapping[str, tuple[str, Mapping[object, int]]]] = {
    "session.closed": (
        "status",
        {
            "succeeded": logging.INFO,
            "unverified": logging.INFO,
            "parked": logging.INFO,
            "failed": logging.ERROR,
            "limited": logging.WARNING,
            "interrupted": logging.WARNING,
        },
    ),
    "slot.closed": (
        "outcome",
        {
            "late": logging.INFO,
            "missed": logging.WARNING,
            "refused": logging.ERROR,
            "skipped": logging.INFO,
            "held": logging.INFO,
        },
    ),
    "action.ended": ("status", {"failed": logging.WARNING, "unknown": logging.ERROR}),
    "action.verified": ("passed", {False: logging.WARNING}),
    "postcondition.checked": ("passed", {False: logging.WARNING}),
    "model.replied": ("status", {"failed": logging.WARNING, "timeout": logging.WARNING, "crashed": logging.WARNING}),
    "notification.sent": ("status", {"failed": logging.ERROR}),
}
_LEFT_OUT: Final = {"digest", "policies", "task_digest", "bounds", "files", "rules", "schedule", "fence"}


def level_of(event: Event) -> int | None:
    """How loud the event is in the log; None where the ledger alone keeps it."""
    if event.type in _ALWAYS:
        return _ALWAYS[event.type]
    if event.type in _BY_OUTCOME:
        field, levels = _BY_OUTCOME[event.type]
        return levels.get(event.body.get(field))
    return None


def tell(events: Sequence[Event], say: Callable[..., Any] | None = None) -> None:
    """Log each event that is worth a line, with its facts as fields. Subscribed to the ledger, so it is durable by then."""
    say = say or log.log
    for event in events:
        level = level_of(event)
        if level is not None:
            facts = {key: value for key, value in event.body.items() if key not in _LEFT_OUT}
            say(level, event.type, seq=event.seq, **facts)
