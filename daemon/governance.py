"""Asking the policies about one action: the facts from the ledger, both passes, and a person's standing refusal."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from perdure.daemon.clock import MICROSECONDS, iso
from perdure.policies.model import Decision, Facts, Grant, Obligations, ProposedAction, RuleHit
from perdure.state import projections

if TYPE_CHECKING:
    from perdure.daemon.planners.moves import Proposal
    from perdure.daemon.runtime import Runtime
    from perdure.daemon.tasks import Task
    from perdure.daemon.tools.model import Prepared

HOUR = 3_600 * MICROSECONDS
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def judge(
    runtime: Runtime, task: Task, session: str, prepared: Prepared, proposal: Proposal, *, steps: int
) -> Decision:
    """The decision on `prepared` under the policies in force now."""
    action = as_policies_see(prepared, proposal)
    facts = gather_facts(runtime, task, session, prepared.spec.name, proposal.confidence, steps)
    obligations = runtime.policies.obligations(action, facts)
    unmet = [*_unmet(obligations, facts), *prepared.unmet]
    if prepared.argv is not None and not prepared.sandboxed:
        unmet.append("no Landlock here, so that the program would run without a sandbox")
    decision = runtime.policies.decide(action, facts, grants=_grants(runtime, task), unmet=unmet)
    refusal = projections.last_answer_for(runtime.ledger.reader, task.name, prepared.digest)
    if (
        decision.decision == "escalate"
        and refusal is not None
        and refusal.state == "denied"
        and refusal.expires > runtime.now()
    ):
        hit = RuleHit(
            name=f"a person refused this ({refusal.escalation})", file="ledger", line=refusal.seq, decide="deny"
        )
        reason = f"uid {refusal.uid} refused exactly this action; the refusal stands until {iso(refusal.expires)}"
        return Decision(decision="deny", rules=(*decision.rules, hit), reason=reason, policies=decision.policies)
    return decision


def as_policies_see(prepared: Prepared, proposal: Proposal) -> ProposedAction:
    """The policies' view of a prepared action."""
    return ProposedAction(
        tool=prepared.spec.name,
        args=prepared.args,
        effect=prepared.effect or prepared.spec.effect,
        provenance=proposal.provenance,
        paths=prepared.paths,
        argv=prepared.argv,
        script=prepared.script,
        cwd=prepared.cwd,
        host=urlsplit(prepared.url).hostname if prepared.url else None,
        method=prepared.method,
    )


def gather_facts(runtime: Runtime, task: Task, session: str, tool: str, confidence: float, steps: int) -> Facts:
    """The documented facts, from the ledger and the clock."""
    reader, now = runtime.ledger.reader, runtime.now()
    local = datetime.fromtimestamp(now / MICROSECONDS, ZoneInfo(runtime.config.timezone))
    so_far = projections.spend(reader, 0, session=session)
    hour, day = projections.spend(reader, now - HOUR), projections.spend(reader, now - 24 * HOUR)
    return Facts(
        task=task.name,
        planner=task.planner,
        confidence=confidence,
        hour=local.hour,
        minute=local.minute,
        weekday=WEEKDAYS[local.weekday()],
        session_steps=steps,
        session_tokens=so_far.tokens,
        session_cost_usd=so_far.usd,
        hour_tokens=hour.tokens,
        hour_cost_usd=hour.usd,
        day_tokens=day.tokens,
        day_cost_usd=day.usd,
        tool_calls_hour=projections.tool_calls(reader, tool, now - HOUR),
        tool_calls_day=projections.tool_calls(reader, tool, now - 24 * HOUR),
        success_rate=projections.success_rate(reader, task.name, tool),
    )


def _unmet(obligations: Obligations, facts: Facts) -> list[str]:
    unmet = []
    if obligations.votes_ahead_by and facts.planner != "playbook" and facts.votes_ahead < obligations.votes_ahead_by:
        unmet.append(f"votes ahead by {facts.votes_ahead}, asked for {obligations.votes_ahead_by}")
    if facts.confidence < obligations.confidence:
        unmet.append(f"confidence {facts.confidence:.2f}, asked for {obligations.confidence:.2f}")
    if obligations.max_per_hour is not None and facts.tool_calls_hour >= obligations.max_per_hour:
        unmet.append(f"{facts.tool_calls_hour} calls in the last hour, at most {obligations.max_per_hour}")
    return unmet


def _grants(runtime: Runtime, task: Task) -> list[Grant]:
    rows = projections.grants(runtime.ledger.reader, task=task.name)
    return [
        Grant(id=row.grant, rule=row.rule, task=row.task, tool=row.tool, pattern=row.pattern)
        for row in rows
        if row.pattern is not None
    ]
