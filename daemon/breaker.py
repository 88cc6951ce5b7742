"""The circuit breaker of a task: the same failure three sessions running stops it, and asks a person whether it may go on.

Its state is the pause and the question in the ledger, so that it survives a restart. Nobody's answer is a no: the task stays
stopped."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from perdure.daemon.budget import PASSES_A_CAP
from perdure.daemon.planners.circuits import LEFT_ALONE
from perdure.daemon.questions import tell
from perdure.daemon.resumption import carried_on, chain
from perdure.state import projections
from perdure.state.canonical import digest
from perdure.state.events import JSON, RESUME_TASK, AlarmRaised, EscalationOpened, Paused

if TYPE_CHECKING:
    from perdure.daemon.runtime import Runtime
    from perdure.state.ledger import LedgerReader
    from perdure.state.projections import SessionRow

FAILURES_MAX: Final = 3
SESSIONS_READ_MAX: Final = 60
STEPS_SHOWN_MAX: Final = 6
REASON_CHARACTERS: Final = 300
ASKED_FOR_US: Final = 7 * 86_400_000_000  # how long the question stands; unanswered, the task stays stopped
_ENDED_ELSEWHERE: Final = (None, "parked", "interrupted")  # what goes on from it says how the work ended
_CHANGING = re.compile(r"\b[0-9A-HJKMNP-TV-Z]{26}\b|\b[0-9a-f]{12,64}\b|\d+")


async def trip(runtime: Runtime, task: str) -> bool:
    """Stop the task where its last sessions all failed in the same way, and ask a person, showing what was tried. Returns
    whether that happened now."""
    reader = runtime.ledger.reader
    if projections.paused(reader, task) is not None:
        return False
    failed = same_failures(reader, task)
    if len(failed) < FAILURES_MAX:
        return False
    reason = f"failed {len(failed)} sessions running in the same way: {failed[0].reason}"[:REASON_CHARACTERS]
    tried = [_tried(reader, row) for row in failed]
    question: dict[str, JSON] = {
        "tool": RESUME_TASK,
        "args": {"task": task},
        "reason": f"{task} {reason}",
        "tried": tried,
        "rules": [],
        "answerable": [],
    }
    asked = EscalationOpened(
        escalation=runtime.identifiers.new(),
        action="",
        digest=digest([RESUME_TASK, task, [row.session for row in failed]]),
        session=failed[0].session,
        task=task,
        tool=RESUME_TASK,
        expires=runtime.now() + ASKED_FOR_US,
        on_expiry="deny",
        parks=False,
        payload={"question": question},
    )
    text = f"{task} {reason}. It starts no more sessions until a person lets it go on: question {asked.escalation}"
    alarm = AlarmRaised(code="breaker", about=task, payload={"text": text})
    await runtime.ledger.write(Paused(task=task, by="breaker", reason=reason), asked, alarm)
    await tell(runtime, asked.escalation)
    return True


def same_failures(reader: LedgerReader, task: str) -> list[SessionRow]:
    """The last sessions of different slots, newest first, as far back as they failed in the same way; none from before a
    person let the task go on."""
    since = projections.last_resumed(reader, task)
    found: list[SessionRow] = []
    slots: set[str] = set()
    for row in projections.sessions(reader, task=task, limit=SESSIONS_READ_MAX):
        if row.seq_opened <= since:
            break
        if row.dry_run or row.slot in slots or row.status in _ENDED_ELSEWHERE or _not_its_own(row):
            continue
        if row.status not in ("failed", "limited") or (found and shape(row.reason) != shape(found[0].reason)):
            break
        slots.add(row.slot)
        found.append(row)
    return found


def _not_its_own(row: SessionRow) -> bool:
    """Whether a cap of the workspace's or a provider that is left alone ended it: that is no failure of the task's, and passes
    by itself."""
    reason = row.reason or ""
    return (row.status == "limited" and PASSES_A_CAP in reason) or (row.status == "failed" and LEFT_ALONE in reason)


def shape(reason: str | None) -> str:
    """A reason without what differs each time: ids, digests, numbers."""
    return _CHANGING.sub("#", (reason or "")[:1_000])


def _tried(reader: LedgerReader, row: SessionRow) -> JSON:
    carried = [*carried_on(reader, chain(reader, row.resumes), row.slot), row]
    actions = [action for session in carried for action in projections.actions(reader, session=session.session)]
    steps: list[JSON] = [
        {"step": action.step, "tool": action.tool, "ended": action.status or action.state}
        for action in actions[-STEPS_SHOWN_MAX:]
    ]
    return {
        "session": row.session,
        "slot": row.slot,
        "reason": (row.reason or "")[:REASON_CHARACTERS],
        "earlier_steps": len(actions) - len(steps),
        "steps": steps,
    }
