"""Settling intents whose outcome is unknown, by effect class: never silently repeated, never dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perdure.daemon.clock import MICROSECONDS
from perdure.daemon.governance import judge
from perdure.daemon.planners.moves import Proposal
from perdure.daemon.questions import tell
from perdure.daemon.resumption import recorded_proposal
from perdure.daemon.steps import memory_scope
from perdure.daemon.tools.model import Call, Prepared, Tool, ToolRefused
from perdure.state import projections
from perdure.state.events import JSON, ActionEnded, ActionStatus, EscalationOpened

if TYPE_CHECKING:
    from perdure.daemon.runtime import Runtime
    from perdure.daemon.steps import Steps
    from perdure.daemon.tasks import Task
    from perdure.state.projections import ActionRow

QUESTION_SECONDS = 7 * 86_400  # how long a person has to say whether an action of class `once` may run again
SETTLE_SECONDS = 60.0
REPEATABLE = ("read", "idempotent", "probeable")  # run again where that is safe, by the session that goes on


async def settle(runtime: Runtime, row: ActionRow, steps: Steps | None = None) -> ActionStatus:
    """Settle one action whose outcome is `unknown` in the ledger; returns what it is now.

    read and idempotent run again under the same key, by the `steps` of an open session; probeable is probed, and runs again
    where it did not happen; `once`, and whatever can no longer be prepared as it was or has no session to run again in, asks
    a person.
    """
    task, tool = runtime.tasks.get(row.task), runtime.tools.get(row.tool)
    proposal = recorded_proposal(runtime.ledger.reader, row)
    prepared = _prepare_again(tool, proposal, row)
    if task is None or tool is None or prepared is None:
        why = "the tool, its task or what it would act on has changed, so that it cannot be checked"
    elif row.effect in REPEATABLE:
        happened = await _probe(task, tool, prepared, row) if row.effect == "probeable" else False
        if happened:
            await runtime.ledger.write(_ended(row, "succeeded", "the probe says that it happened"))
            return "succeeded"
        if happened is None:
            why = "its probe cannot tell whether it happened"
        elif row.approval is not None:
            why = "a person approved one attempt, and that was it"
        elif steps is None:
            why = "the session it belonged to was not taken up again"
        elif judge(runtime, task, steps.session, prepared, proposal, steps=row.step).decision.decision == "deny":
            why = "the policies in force now deny running it again"
        else:
            attempt = row.attempt + 1
            await runtime.ledger.write(steps.intent(row.action, prepared, attempt=attempt))
            again = await steps.carry_out(
                row.step,
                proposal,
                row.action,
                tool,
                prepared,
                attempt=attempt,
                reason="run again: its outcome was unknown",
            )
            if again.status in ("succeeded", "failed"):
                return again.status
            why, happened = "it was run again, and again its outcome was not seen", None
            row = projections.action(runtime.ledger.reader, row.action) or row  # as its latest attempt left it
        if row.effect == "probeable" and happened is False:
            said = f"the probe says that it did not happen; not run again: {why}"
            await runtime.ledger.write(_ended(row, "failed", said))
            return "failed"
    else:
        why = "it may have happened or not, and running it twice is not safe"
    if row.effect == "read":  # nothing happened that a person could be asked about
        await runtime.ledger.write(_ended(row, "failed", f"it only read, and is not run again: {why}"))
        return "failed"
    await _ask(runtime, row, proposal, why, parks=steps is not None or row.effect not in REPEATABLE)
    return "unknown"


async def _probe(task: Task, tool: Tool, prepared: Prepared, row: ActionRow) -> bool | None:
    call = Call(
        action=row.action,
        session=row.session,
        attempt=row.attempt,
        seconds_max=SETTLE_SECONDS,
        scope=memory_scope(task),
    )
    return await tool.probe(prepared, call)


async def mark_unknown(runtime: Runtime, row: ActionRow, why: str) -> None:
    """Record that an intent has no outcome that anybody saw."""
    ended = ActionEnded(
        action=row.action,
        session=row.session,
        task=row.task,
        tool=row.tool,
        attempt=row.attempt,
        status="unknown",
        duration_us=0,
        payload={"result": None, "error": why},
    )
    await runtime.ledger.write(ended)


def _prepare_again(tool: Tool | None, proposal: Proposal, row: ActionRow) -> Prepared | None:
    if tool is None:
        return None
    try:
        prepared = tool.prepare(proposal.args)
    except ToolRefused:
        return None
    return prepared if prepared.digest == row.digest else None


def _ended(row: ActionRow, status: ActionStatus, said: str) -> ActionEnded:
    return ActionEnded(
        action=row.action,
        session=row.session,
        task=row.task,
        tool=row.tool,
        attempt=row.attempt,
        status=status,
        duration_us=0,
        settles=True,
        payload={"result": {"settled": said}, "error": None if status == "succeeded" else said},
    )


async def _ask(runtime: Runtime, row: ActionRow, proposal: Proposal, why: str, *, parks: bool) -> None:
    """One question per unknown action: approve runs it again, once; deny lets it rest as it is. `parks`: a session waits."""
    if projections.open_escalation_for(runtime.ledger.reader, row.task, row.digest) is not None:
        return
    answered = projections.last_answer_for(runtime.ledger.reader, row.task, row.digest)
    if (
        answered is not None
        and (answered.action, answered.state) == (row.action, "approved")
        and (answered.valid_until or 0) > runtime.now()
    ):
        return  # the answer is there already, and its slot is about to act on it
    escalation = runtime.identifiers.new()
    reason = f"a crash left the outcome of {row.tool} unknown: {why}. Approve to run it (again), deny to leave it"
    question: dict[str, JSON] = {
        "tool": row.tool,
        "args": dict(proposal.args),
        "provenance": {name: list(sources) for name, sources in proposal.provenance.items()},
        "effect": row.effect,
        "rules": [],
        "reason": reason,
        "says": proposal.says,
        "confidence": row.confidence,
        "unknown_action": row.action,
    }
    await runtime.ledger.write(
        EscalationOpened(
            escalation=escalation,
            action=row.action,
            digest=row.digest,
            session=row.session,
            task=row.task,
            tool=row.tool,
            expires=runtime.now() + QUESTION_SECONDS * MICROSECONDS,
            on_expiry="deny",
            parks=parks,
            payload={"question": question},
        )
    )
    await tell(runtime, escalation)
