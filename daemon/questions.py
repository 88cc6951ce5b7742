"""Questions to people: what they say, and making sure that somebody hears of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from perdure.state import projections
from perdure.state.events import JSON

if TYPE_CHECKING:
    from perdure.daemon.governance import Certain
    from perdure.daemon.planners.moves import Proposal
    from perdure.daemon.planners.voting import Ballot
    from perdure.daemon.runtime import Runtime
    from perdure.daemon.tools.model import Prepared
    from perdure.policies.model import Decision


def describe(
    prepared: Prepared,
    proposal: Proposal,
    decision: Decision,
    *,
    vote: Ballot | None = None,
    certain: Certain | None = None,
) -> JSON:
    """What the person sees: exactly what will run, where each argument came from, and which rules counted; the candidates of
    a vote, and what the session has done that nobody verified."""
    question: dict[str, JSON] = {
        "tool": prepared.spec.name,
        "args": dict(prepared.args),
        "provenance": {name: list(sources) for name, sources in proposal.provenance.items()},
        "paths": {name: list(paths) for name, paths in prepared.paths.items()},
        "argv": list(prepared.argv) if prepared.argv is not None else None,
        "script": prepared.script,
        "cwd": prepared.cwd,
        "url": prepared.url,
        "method": prepared.method,
        "effect": prepared.effect or prepared.spec.effect,
        "rules": [asdict(hit) for hit in decision.rules],
        "answerable": list(decision.answerable),
        "reason": decision.reason,
        "says": proposal.says,
        "confidence": proposal.confidence,
    }
    if proposal.stated is not None:
        question["stated"] = proposal.stated
    if vote is not None:
        standing = vote.standing()
        question["vote"] = {"ahead_by": vote.ahead_by, "draws_max": vote.draws_max, "draws": standing.draws,
                            "flagged": standing.flagged, "margin": standing.margin,
                            "candidates": vote.candidates()}  # fmt: skip
    if certain is not None and certain.session_confidence < 1.0:
        question["session_confidence"] = round(certain.session_confidence, 4)
        question["unverified"] = list(certain.unverified)
    return question


async def tell(runtime: Runtime, escalation: str) -> None:
    """Tell a person of a question that is on disk."""
    row = projections.escalation(runtime.ledger.reader, escalation)
    if row is None:
        return
    payload = runtime.ledger.reader.payload(row.seq)
    question = payload.get("question") if isinstance(payload, dict) else None
    reason = question.get("reason") if isinstance(question, dict) else "its text was erased"
    text = f"{reason}. Look: perdure inbox show {escalation}. Answer: perdure approve {escalation}, or perdure deny {escalation}"
    await runtime.notifier.notify(escalation, f"{row.task} asks: {row.tool}", text, kind="question")


async def tell_of_untold(runtime: Runtime) -> None:
    """Tell of open questions that a crash kept from being told."""
    reader = runtime.ledger.reader
    waiting = projections.escalations(reader, open_only=True)
    since = min((row.seq for row in waiting), default=reader.head().seq)
    told = {event.body["about"] for event in reader.events(types=("notification.sent",), after=since)}
    for row in waiting:
        if row.escalation not in told:
            await tell(runtime, row.escalation)
