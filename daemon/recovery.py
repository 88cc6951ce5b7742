"""What a start does with what a crash left: tool processes ended, intents settled, sessions closed, work taken up again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from perdure.daemon import operations
from perdure.daemon.breaker import trip
from perdure.daemon.questions import tell_of_untold
from perdure.daemon.resumption import chain
from perdure.daemon.sandbox.strays import end_strays
from perdure.daemon.scheduler import ended, free, opened
from perdure.daemon.settlement import REPEATABLE, mark_unknown, settle
from perdure.daemon.untold import tell_of_untold_endings
from perdure.state import projections
from perdure.state.events import AlarmRaised, Draft, ModelReplied, SessionClosed

if TYPE_CHECKING:
    from perdure.daemon.runtime import Runtime
    from perdure.state.projections import SessionRow

GIVEN_UP = "not-taken-up-again"
RESUMES_MAX = 3  # an interrupted session is taken up again this often in a row, then a person must look


async def recover(runtime: Runtime) -> int:
    """Bring the ledger to rest after a crash; returns how many things had to be settled. Crash-safe: every part finds what
    is left by looking at the ledger, so that it may be cut off and run again."""
    reader = runtime.ledger.reader
    count = 0
    await asyncio.to_thread(end_strays, runtime.config.state_dir)
    for row in projections.open_intents(reader):
        await mark_unknown(runtime, row, "the daemon ended while this ran")
        count += 1
    for row in projections.unknown_actions(reader):
        if row.effect not in REPEATABLE:  # those are for the session that goes on
            await settle(runtime, row)
    for session in projections.open_sessions(reader):
        await _close(runtime, session)
        count += 1
    await _close_abandoned_slots(runtime)
    operations.expire(runtime.ledger, runtime.now())
    taken_up = {slot.resumes for slot in projections.slots(reader, open_only=True)}
    for row in projections.unknown_actions(reader):
        if row.effect in REPEATABLE and row.attempt_session not in taken_up:
            await settle(runtime, row)
    for task in runtime.tasks:
        await trip(runtime, task)  # a crash may have come between the third failure and its question
    await tell_of_untold(runtime)
    await tell_of_untold_endings(runtime)
    return count


async def _close_abandoned_slots(runtime: Runtime) -> None:
    """A slot whose session failed, cut off before its next try, ends with that session."""
    for slot in projections.slots(runtime.ledger.reader, open_only=True):
        if slot.session is not None:
            await runtime.ledger.write(ended(slot, "ran", session=slot.session))


async def _close(runtime: Runtime, row: SessionRow) -> None:
    """Close a session that a crash cut off, charge its open model calls in full, and open a slot that goes on from it."""
    reader = runtime.ledger.reader
    drafts: list[Draft] = []
    spent = projections.spend(reader, 0, session=row.session)  # open reservations count in full
    drafts += [
        ModelReplied(
            session=row.session,
            task=row.task,
            call=call.call,
            status="crashed",
            charged_tokens=call.tokens,
            charged_usd=call.usd,
            error="the daemon ended before the reply",
        )
        for call in projections.open_calls(reader, row.session)
    ]
    asked = [
        action
        for action in projections.unknown_actions(reader)
        if action.attempt_session == row.session and action.effect not in REPEATABLE
    ]
    now = runtime.now()
    reason = "the daemon ended while this session ran"
    if asked:
        reason += f"; waits for a person to say what became of {asked[0].tool} ({asked[0].action})"
    drafts.append(
        SessionClosed(
            session=row.session,
            task=row.task,
            slot=row.slot,
            status="parked" if asked else "interrupted",
            reason=reason,
            steps=projections.proposed(reader, row.session),
            tokens=spent.tokens,
            cost_usd=spent.usd,
            duration_us=max(0, now - row.opened_at),
        )
    )
    slot = projections.slot(reader, row.slot)
    if slot is not None and slot.outcome is None:
        drafts.append(ended(slot, "ran", session=row.session))
    if not asked:  # otherwise the answer opens the slot that goes on
        drafts += go_on_from(runtime, row)
    await runtime.ledger.write(*drafts)
    await tell_if_given_up(runtime, drafts)


def go_on_from(runtime: Runtime, row: SessionRow) -> list[Draft]:
    """The slot that takes an interrupted session up again, unless one is open already. None for a dry run or a person's own
    command; instead of one that was taken up often enough, an alarm."""
    reader = runtime.ledger.reader
    if row.dry_run or row.planner == "person":
        return []
    if any(slot.resumes == row.session for slot in projections.slots(reader, task=row.task, open_only=True)):
        return []
    interruptions = 1
    for earlier in reversed(chain(reader, row.resumes)):
        if earlier.status != "interrupted":
            break
        interruptions += 1
    if interruptions > RESUMES_MAX:
        text = f"{row.task} was interrupted {interruptions} times in a row and is not taken up again by itself"
        return [AlarmRaised(code=GIVEN_UP, about=row.session, payload={"text": text})]
    due = free(reader, row.task, "resume", runtime.now())
    return [opened(row.task, "resume", due, cause=row.escalation, resumes=row.session)]


async def tell_if_given_up(runtime: Runtime, drafts: Sequence[Draft]) -> None:
    """Tell a person of work that `go_on_from` does not take up again."""
    for draft in drafts:
        if isinstance(draft, AlarmRaised) and draft.code == GIVEN_UP and draft.about is not None:
            text = f"It was interrupted more than {RESUMES_MAX} times in a row. Look: perdure ledger show {draft.about}"
            await runtime.notifier.notify(draft.about, "a session is not taken up again", text, kind="alarm")
