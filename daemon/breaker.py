"""The circuit breaker of a task: the same failure three sessions running stops it, loudly, until a person lets it go on.

Its state is the pause in the ledger, so that it survives a restart."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from perdure.state import projections
from perdure.state.events import Paused

if TYPE_CHECKING:
    from perdure.daemon.runtime import Runtime
    from perdure.state.ledger import LedgerReader
    from perdure.state.projections import SessionRow

FAILURES_MAX: Final = 3
SESSIONS_READ_MAX: Final = 60
STEPS_SHOWN_MAX: Final = 6
REASON_CHARACTERS: Final = 300
_CHANGING = re.compile(r"\b[0-9A-HJKMNP-TV-Z]{26}\b|\b[0-9a-f]{12,64}\b|\d+")


async def trip(runtime: Runtime, task: str) -> bool:
    """Pause the task where its last sessions all failed in the same way, and tell a person what was tried. Returns whether
    that happened now."""
    reader = runtime.ledger.reader
    if projections.paused(reader, task) is not None:
        return False
    failed = same_failures(reader, task)
    if len(failed) < FAILURES_MAX:
        return False
    reason = f"failed {len(failed)} sessions running in the same way: {failed[0].reason}"[:REASON_CHARACTERS]
    tried = "\n".join(f"- session {row.session}: {_tried(reader, row)}" for row in failed)
    text = f"{task} {reason}\nIt starts no more sessions until somebody runs `perdure resume {task}`. What was tried:\n{tried}"
    await runtime.alarm("breaker", text, about=task, drafts=(Paused(task=task, by="breaker", reason=reason),))
    return True


def same_failures(reader: LedgerReader, task: str) -> list[SessionRow]:
    """The last sessions of different slots, newest first, as far back as they failed in the same way; none from before a
    person let the task go on."""
    since = max(
        (event.seq for event in reader.events(types=("resumed",), task=task, newest_first=True, limit=1)), default=0
    )
    everything = next(
        (
            event.seq
            for event in reader.events(types=("resumed",), newest_first=True, limit=1)
            if "task" not in event.body
        ),
        0,
    )
    found: list[SessionRow] = []
    slots: set[str] = set()
    for row in projections.sessions(reader, task=task, limit=SESSIONS_READ_MAX):
        if row.seq_opened <= max(since, everything):
            break
        if row.dry_run or row.slot in slots or row.status is None:
            continue
        if row.status not in ("failed", "limited") or (found and shape(row.reason) != shape(found[0].reason)):
            break
        slots.add(row.slot)
        found.append(row)
    return found


def shape(reason: str | None) -> str:
    """A reason without what differs each time: ids, digests, numbers."""
    return _CHANGING.sub("#", (reason or "")[:1_000])


def _tried(reader: LedgerReader, row: SessionRow) -> str:
    actions = projections.actions(reader, session=row.session)
    steps = [f"{action.tool} {action.status or action.state}" for action in actions[-STEPS_SHOWN_MAX:]]
    more = len(actions) - len(steps)
    shown = (f"{more} steps, then " if more else "") + (", ".join(steps) or "no step")
    return f"{shown}; {(row.reason or '')[:REASON_CHARACTERS]}"
