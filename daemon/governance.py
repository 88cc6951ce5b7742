"""Asking the policies about one action: the facts from the ledger, both passes, and a person's standing refusal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from perdure.daemon.clock import MICROSECONDS, iso
from perdure.policies.decisions import unmet_obligations
from perdure.policies.model import Decision, Facts, Grant, Obligations, ProposedAction, RuleHit
from perdure.state import projections
from perdure.state.events import JSON

if TYPE_CHECKING:
    from perdure.daemon.planners.moves import Proposal
    from perdure.daemon.runtime import Runtime
    from perdure.daemon.tasks import Task
    from perdure.daemon.tools.model import Prepared

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@dataclass(frozen=True, slots=True, kw_only=True)
class Certain:
    """How certain the session is of what it does: by how much the proposal led a vote, the product over what is unverified so
    far, and which steps those are."""

    votes_ahead: int = 0
    session_confidence: float = 1.0
    unverified: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A decision, and the facts it was made on: recorded with it, so that edited policies can be asked again. `unsure`: the
    session has done too much that nobody verified to go on to this."""

    decision: Decision
    facts: Facts
    unsure: bool

    def recorded_facts(self) -> dict[str, JSON]:
        """The facts that are not at their defaults."""
        facts = self.facts  # asdict() would copy each value: a tenth of an action's time
        return {name: value for name, default in _DEFAULTS if (value := getattr(facts, name)) != default}


_DEFAULTS = tuple((fact.name, fact.default) for fact in fields(Facts))


def oblige_finish(runtime: Runtime, task: Task, session: str, steps: int) -> Obligations:
    """What the policies oblige to before a planner may end its session: what they ask of every tool, by `*` or by the name
    `finish`."""
    action = ProposedAction(tool="finish", args={}, effect="read", provenance={})
    return runtime.policies.obligations(action, gather_facts(runtime, task, session, "finish", 1.0, steps))


def oblige(
    runtime: Runtime, task: Task, session: str, prepared: Prepared, proposal: Proposal, steps: int
) -> Obligations:
    """First pass: what must hold before the action may be automatic."""
    facts = gather_facts(runtime, task, session, prepared.spec.name, proposal.confidence, steps)
    return runtime.policies.obligations(as_policies_see(prepared, proposal), facts)


def judge(
    runtime: Runtime,
    task: Task,
    session: str,
    prepared: Prepared,
    proposal: Proposal,
    *,
    steps: int,
    certain: Certain | None = None,
) -> Judgement:
    """The decision on `prepared` under the policies in force now."""
    certain = certain or Certain()
    sure = 1.0 if (prepared.effect or prepared.spec.effect) == "read" else certain.session_confidence
    facts = gather_facts(
        runtime,
        task,
        session,
        prepared.spec.name,
        proposal.confidence,
        steps,
        votes_ahead=certain.votes_ahead,
        session_confidence=sure,
    )
    policies = runtime.policies
    question = policies.question(as_policies_see(prepared, proposal), facts)
    obligations = policies.required(question)
    unsure = doubts(obligations, certain, prepared)
    unmet = [*unmet_obligations(obligations, facts), *unsure, *prepared.unmet]
    if prepared.argv is not None and not prepared.sandboxed:
        unmet.append("no Landlock here, so that the program would run without a sandbox")
    decision = policies.answer(question, grants=_grants(runtime, task), unmet=unmet)
    if decision.decision == "escalate":
        decision = _refused_before(runtime, task, prepared, decision) or decision
    return Judgement(decision=decision, facts=facts, unsure=bool(unsure))


def _refused_before(runtime: Runtime, task: Task, prepared: Prepared, decision: Decision) -> Decision | None:
    """The denial that a person's refusal of exactly this action is, while it stands."""
    refusal = projections.last_answer_for(runtime.ledger.reader, task.name, prepared.digest)
    if refusal is None or refusal.state != "denied" or refusal.expires <= runtime.now():
        return None
    hit = RuleHit(name=f"a person refused this ({refusal.escalation})", file="ledger", line=refusal.seq, decide="deny")
    reason = f"uid {refusal.uid} refused exactly this action; the refusal stands until {iso(refusal.expires)}"
    return Decision(decision="deny", rules=(*decision.rules, hit), reason=reason, policies=decision.policies)


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
        targets=prepared.named,
    )


def gather_facts(
    runtime: Runtime,
    task: Task,
    session: str,
    tool: str,
    confidence: float,
    steps: int,
    *,
    votes_ahead: int = 0,
    session_confidence: float = 1.0,
) -> Facts:
    """The documented facts, from the ledger and the clock."""
    recent, now = runtime.recent, runtime.now()
    local = datetime.fromtimestamp(now / MICROSECONDS, ZoneInfo(runtime.config.timezone))
    so_far, hour, day = recent.spent(session, now)
    calls_hour, calls_day = recent.calls(tool, now)
    return Facts(
        task=task.name,
        planner=task.planner,
        confidence=confidence,
        session_confidence=session_confidence,
        votes_ahead=votes_ahead,
        tainted=_tainted(runtime, session),
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
        tool_calls_hour=calls_hour,
        tool_calls_day=calls_day,
        success_rate=runtime.recent.success_rate(task.name, tool),
    )


def _tainted(runtime: Runtime, session: str) -> bool:
    """Whether the session, or one that it goes on from, has seen what an untrusted tool reads or a tool from outside says.
    Built-in tools that only do something answer in Perdure's own words."""
    for name, effect in runtime.recent.heard(session):
        tool = runtime.tools.get(name)
        if tool is None:
            return True
        speaks = tool.spec.source != "built-in" or effect == "read"
        if speaks and not tool.spec.trusted:
            return True
    return False


def doubts(obligations: Obligations, certain: Certain, prepared: Prepared) -> list[str]:
    """The steps that keep the session from going on to another effect, in words: it is too unsure of them."""
    reads = (prepared.effect or prepared.spec.effect) == "read"
    if reads or certain.session_confidence >= obligations.session_confidence:
        return []
    return [f"unverified so far: {', '.join(certain.unverified) or 'no step, but their verifiers may be wrong'}"]


def _grants(runtime: Runtime, task: Task) -> list[Grant]:
    rows = projections.grants(runtime.ledger.reader, task=task.name)
    return [
        Grant(id=row.grant, rule=row.rule, task=row.task, tool=row.tool, pattern=row.pattern)
        for row in rows
        if row.pattern is not None
    ]
