"""`perdure undo ACTION`: bringing back what an action overwrote, moved or deleted — itself an action, with its own record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perdure.daemon.clock import MICROSECONDS
from perdure.daemon.planners.moves import Proposal
from perdure.daemon.scheduler import free, opened
from perdure.daemon.steps import Parked, Rejected, Steps
from perdure.errors import PerdureError
from perdure.state import projections
from perdure.state.events import JSON, SessionClosed, SessionOpened, SessionStatus, SlotClosed
from perdure.state.ledger import LedgerUnwritable

if TYPE_CHECKING:
    from perdure.daemon.runtime import Runtime

REASON_MAX = 2_000
UNDO_SECONDS = 120.0


async def undo(runtime: Runtime, uid: int, *, action: str, force: bool = False) -> JSON:
    """Undo one action for a person. The policies in force may still deny it, and what they escalate is the person's own
    to say: they asked for it."""
    reader = runtime.ledger.reader
    row = projections.action(reader, projections.resolve(reader, "action", action))
    if row is None or row.status is None:
        raise PerdureError(
            "undo", action, "no such action has ended", "See `perdure ledger show SESSION` for its actions"
        )
    task = runtime.tasks.get(row.task)
    if task is None:
        raise PerdureError(
            "undo", action, f"its task {row.task} is gone", "Restore the task's file, or copy from state/undo"
        )
    if any(other.task == row.task for other in projections.open_sessions(reader)):
        hint = "Try again when its session has ended (perdure status); `perdure pause` keeps the next one from starting"
        raise PerdureError("undo", row.action, f"a session of its task {row.task} runs now", hint)
    now, session = runtime.now(), runtime.identifiers.new()
    slot = opened(row.task, "manual", free(reader, row.task, "manual", now), cause=f"undo {row.action} by uid {uid}")
    opening = SessionOpened(
        session=session,
        task=row.task,
        slot=slot.slot,
        planner="person",
        bounds={"steps": 1},
        task_digest=task.digest,
        policies=runtime.policies.digest,
        fence=runtime.ledger.fence,
    )
    await runtime.ledger.write(slot, opening)
    steps = Steps(
        runtime=runtime,
        task=task,
        session=session,
        offered=frozenset({"undo"}),
        seconds_left=lambda: UNDO_SECONDS,
        asked_by=uid,
    )
    args: dict[str, JSON] = {"action": row.action, "force": force} if force else {"action": row.action}
    proposal = Proposal(tool="undo", args=args, provenance={name: ["person"] for name in args}, confidence=1.0)
    status: SessionStatus = "failed"
    reason = ""
    result: JSON = None
    try:
        taken = await steps.take(1, proposal)
        status = "unverified" if taken.status == "succeeded" else "failed"
        reason, result = taken.error or taken.reason, taken.result
    except (Rejected, Parked) as error:
        reason = str(error)
    except LedgerUnwritable:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it was, the session that stands for this command closes
        reason = f"{type(error).__name__}: {error}"
    closing = SessionClosed(
        session=session,
        task=row.task,
        slot=slot.slot,
        status=status,
        reason=reason[:REASON_MAX],
        steps=1,
        tokens=0,
        cost_usd=0.0,
        duration_us=max(0, runtime.now() - now),
    )
    ended = SlotClosed(slot=slot.slot, task=row.task, kind="manual", due=slot.due, outcome="ran", session=session)
    await runtime.ledger.write(closing, ended)
    if status == "failed":
        raise PerdureError("undo", row.action, reason, f"See `perdure ledger show {session}`")
    return {"action": row.action, "session": session, "result": result, "seconds": (runtime.now() - now) / MICROSECONDS}
