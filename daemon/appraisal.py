"""What a session knows of its own certainty: each proposal's calibrated confidence, and the product over unverified effects."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from perdure.daemon.certainty import Certainty
from perdure.daemon.governance import Certain
from perdure.state import projections

if TYPE_CHECKING:
    from collections.abc import Sequence

    from perdure.daemon.confidence import Assessment, Calibration
    from perdure.daemon.planners.moves import Proposal
    from perdure.daemon.planners.voting import Ballot
    from perdure.state.ledger import LedgerReader
    from perdure.state.projections import SessionRow


@dataclass(slots=True, kw_only=True)
class Appraisal:
    """`model` None: a playbook, whose steps a person wrote; its confidence is what it says, 1. `flags` counts red flags."""

    calibration: Calibration
    model: str | None
    task: str
    certainty: Certainty = field(default_factory=Certainty)
    flags: int = 0

    def of(self, proposal: Proposal, vote: Ballot | None) -> tuple[Proposal, Assessment | None]:
        """The proposal with its calibrated confidence, and how that came about."""
        if self.model is None:
            return proposal, None
        standing = vote.standing() if vote is not None else None
        assessment = self.calibration.assess(
            self.model,
            proposal.tool,
            self.task,
            stated=proposal.confidence,
            margin=standing.margin if standing is not None else 0,
            flags=self.flags + (standing.flagged if standing is not None else 0),
        )
        return replace(proposal, stated=proposal.confidence, confidence=round(assessment.value, 4)), assessment

    def certain(self, vote: Ballot | None) -> Certain:
        """How certain the session is now, for the policies."""
        return Certain(
            votes_ahead=vote.standing().margin if vote is not None else 0,
            session_confidence=self.certainty.value,
            unverified=self.certainty.unverified(),
        )

    def remember(self, reader: LedgerReader, sessions: Sequence[SessionRow]) -> None:
        """Take over what the sessions that this one goes on from have done."""
        for session in sessions:
            for row in projections.actions(reader, session=session.session):
                if row.approval is not None and accepted_doubts(reader, row.approval):
                    self.certainty.settle()
                if row.status != "succeeded":
                    continue
                sure = 1.0 if row.approval is not None else row.confidence
                self.certainty.did(row.action, row.step, row.tool, row.effect, sure)
                for event in reader.events(action=row.action, types=("action.verified",)):
                    reliability = event.body.get("reliability")
                    self.certainty.verified(row.action, passed=event.body["passed"], reliability=reliability)


def accepted_doubts(reader: LedgerReader, escalation: str) -> bool:
    """Whether the question named unverified steps: who approved it has accepted them."""
    row = projections.escalation(reader, escalation)
    payload = reader.payload(row.seq) if row is not None else None
    question = payload.get("question") if isinstance(payload, dict) else None
    return isinstance(question, dict) and bool(question.get("unverified"))
