"""One bounded session: compact, see, then propose – decide – do until finished or a bound, and close with a proven status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from perdure.daemon import resumption
from perdure.daemon.appraisal import Appraisal, accepted_doubts
from perdure.daemon.budget import Budget
from perdure.daemon.claims import false_claim
from perdure.daemon.clock import MICROSECONDS
from perdure.daemon.endings import Ended, Ending
from perdure.daemon.governance import judge, oblige_finish
from perdure.daemon.layout import STOP_FILE
from perdure.daemon.loops import LoopGuard
from perdure.daemon.model_calls import ModelCalls
from perdure.daemon.operations import resume_if_answered
from perdure.daemon.planners.moves import Finish, Malformed, Proposal, Taken, View
from perdure.daemon.planners.voting import FINISH, Ballot, canonical_action
from perdure.daemon.postconditions import Postconditions, failures
from perdure.daemon.provenance import parts_by_source
from perdure.daemon.recollection import Recollection
from perdure.daemon.recovery import go_on_from, tell_if_given_up
from perdure.daemon.resumption import (
    approved_in,
    carried_on,
    chain,
    last_saved,
    recorded_proposal,
    recorded_step,
    recorded_steps,
)
from perdure.daemon.scheduler import ended
from perdure.daemon.settlement import REPEATABLE, settle
from perdure.daemon.sight import see
from perdure.daemon.steps import Parked, Rejected, Steps
from perdure.daemon.tools.model import ToolRefused
from perdure.errors import PerdureError
from perdure.memory.assembly import ContextTooSmall
from perdure.state import projections
from perdure.state.events import JSON, Draft, SessionClosed, SessionOpened, SessionStatus, SlotClosed, StepRejected
from perdure.state.ledger import LedgerUnwritable

if TYPE_CHECKING:
    from perdure.daemon.runtime import Runtime
    from perdure.daemon.tasks import Task
    from perdure.memory.context import Context
    from perdure.policies.model import Obligations
    from perdure.state.projections import EscalationRow, SlotRow

LATE_AFTER_SECONDS = 60
REASON_MAX = 2_000  # characters in the event itself; what is longer is in its payload


class Session:
    """One run of `task` for `slot`. `last_try` False leaves the slot open after a failure, for another try."""

    def __init__(self, runtime: Runtime, task: Task, slot: SlotRow, *, last_try: bool = True) -> None:
        self.runtime, self.task, self.slot, self.last_try = runtime, task, slot, last_try
        self.dry_run = bool(slot.dry_run)
        self.id = runtime.identifiers.new()
        self.planner = runtime.plan(task)
        self.earlier = chain(runtime.ledger.reader, slot.resumes)
        self.escalation: EscalationRow | None = None
        self.last = last_saved(runtime.ledger.reader, task.name)
        self.slot_facts = task.slot_facts(self._first_slot())
        if slot.kind == "resume" and slot.cause is not None:
            self.escalation = projections.escalation(runtime.ledger.reader, slot.cause)
        self.budget = Budget.remaining(task.bounds, self.earlier, caps=runtime.caps, task=task.name)
        self.started = runtime.clock.monotonic()
        self.appraisal = Appraisal(
            calibration=runtime.calibration,
            model=(self.planner.model or self.planner.name) if self.planner.name != "playbook" else None,
            task=task.name,
        )
        self.appraisal.remember(runtime.ledger.reader, self.earlier)
        self.calls = ModelCalls(
            runtime, self.planner, self.budget, session=self.id, task=task.name, seconds_left=self.seconds_left
        )
        self.steps = Steps(
            runtime=runtime,
            task=task,
            session=self.id,
            offered=frozenset(task.tools),
            seconds_left=self.seconds_left,
            dry_run=self.dry_run,
            appraisal=self.appraisal,
        )
        carried = carried_on(runtime.ledger.reader, self.earlier, slot.slot)
        self.postconditions = Postconditions(runtime, task, self.id, self.slot_facts, carried)
        self.taken: list[Taken] = []
        self.rejected: str | None = None
        self.rejections = 0
        self.false_claims = 0
        self.waits_for: str | None = None
        self.rule: str | None = None  # what the slot says about how the session ended
        self.finish = Finish()
        self.guard = LoopGuard(planned=self.planner.name == "playbook")
        self.recollection = Recollection(runtime.ledger.reader, runtime.tools)

    def _first_slot(self) -> SlotRow:
        """The slot that the work is for: a session that goes on writes today's report of the day that it began."""
        row = projections.slot(self.runtime.ledger.reader, self.earlier[0].slot) if self.earlier else None
        return row or self.slot

    def seconds_left(self) -> float:
        """Seconds until this session's time bound."""
        return self.budget.minutes_left * 60 - (self.runtime.clock.monotonic() - self.started)

    async def run(self) -> Ending:
        """Run to the end. Whatever happens short of a ledger that cannot be written, the session closes."""
        self._open()
        try:
            context = await see(self.runtime, self.task, self.slot, self.id, self.planner, self.calls)
            goes_on = await self._act_on_answers()  # first: what is unknown may be what was approved
            await self._settle_earlier()
            if goes_on:
                await self._loop(context)
            status, reason = await self._prove()
        except Ended as end:
            status, reason, self.rule = end.status, end.reason, end.rule
        except Parked as wait:
            self.waits_for = wait.escalation
            status, reason = "parked", f"waits for the answer to {wait.escalation} ({wait.tool})"
        except ContextTooSmall as error:
            status, reason = "failed", str(error)
        except LedgerUnwritable:
            raise
        except PerdureError as error:
            status, reason = "failed", str(error)
        except Exception as error:  # noqa: BLE001 - loud, and the daemon goes on: the session failed by a defect of ours
            status, reason = "failed", f"defect: {type(error).__name__}: {error}"
        return await self._close(status, reason)

    def _open(self) -> None:
        before: dict[str, JSON] = dict(self.postconditions.before)
        # Nothing may come between the gate and this, no pause and no question: not through the queue of the loop's tick.
        self.runtime.ledger.commit(
            SessionOpened(
                session=self.id,
                task=self.task.name,
                slot=self.slot.slot,
                planner=self.planner.name,
                model=self.planner.model,
                bounds=self.budget.bounds(),
                task_digest=self.task.digest,
                policies=self.runtime.policies.digest,
                fence=self.runtime.ledger.fence,
                resumes=self.slot.resumes,
                escalation=self.escalation.escalation if self.escalation else None,
                dry_run=self.dry_run or None,
                payload={"instruction": self.task.instruction, **({"unchanged": before} if before else {})},
            )
        )

    # -- the loop ---------------------------------------------------------------------------------------------------

    async def _loop(self, context: Context) -> None:
        before = recorded_steps(self.runtime.ledger.reader, self.earlier)
        recorded = {taken.proposal.key: taken for taken in before if taken.proposal.key is not None}
        for taken in before:
            self.guard.saw(taken)
        while True:
            self._check_bounds()
            view = self._view(context, before, recorded)
            move = await self.calls.move(view)
            vote: Ballot | None = None
            if isinstance(move, Proposal | Finish) and self.appraisal.model is not None:
                claim = false_claim(move.says, view.taken)
                if claim is not None:
                    await self._reject_claim(claim)
                    continue
                vote = await self._vote(view, move)
                move = (vote.move() if vote is not None else None) or move
            match move:
                case Finish():
                    if await self._may_finish(vote):
                        self.finish = move
                        return
                case Malformed():
                    await self._reject(move)
                case Proposal():
                    if self.budget.steps_left < 1:
                        refusal = Malformed(reason="no-steps-left", detail="the bound on steps is reached")
                        await self._reject(refusal, counted=True, final=False)
                        raise Ended("limited", f"all {self.task.bounds.steps} steps are used")
                    await self._take(move, vote)

    # -- votes --------------------------------------------------------------------------------------------------------

    async def _vote(self, view: View, first: Proposal | Finish) -> Ballot | None:
        """The vote that the policies oblige to for this move; None where they ask for none."""
        examined = self._examine(first, view.taken)
        if examined is None or not (obligations := examined[1]).votes_ahead_by:
            return None

        def examine(move: Proposal | Finish) -> tuple[str, Obligations] | None:
            return self._examine(move, view.taken)

        return await self.calls.vote(view, first, obligations.votes_ahead_by, obligations.votes_max, examine)

    def _examine(self, move: Proposal | Finish, taken: Sequence[Taken]) -> tuple[str, Obligations] | None:
        """What the move is when votes are compared, and what it obliges to; None where a red flag takes it out."""
        if false_claim(move.says, taken) is not None:
            return None
        if isinstance(move, Finish):
            return FINISH, oblige_finish(self.runtime, self.task, self.id, self.budget.steps_used)
        try:
            prepared, obligations = self.steps.look(self.budget.steps_used + 1, move)
        except Rejected:
            return None
        return canonical_action(prepared, texts=obligations.votes_texts), obligations

    async def _may_finish(self, vote: Ballot | None) -> bool:
        """Whether the session ends here. A vote about the end that nobody won is told to the planner like a malformed move."""
        if vote is None:
            return True
        await self.runtime.ledger.write(*self._flush(), self.steps.vote_held(self.budget.steps_used, vote, None))
        standing = vote.standing()
        if standing.verdict == "won":
            return True
        detail = f"no candidate led by {vote.ahead_by} within {vote.draws_max} draws about whether the task is done"
        await self._reject(Malformed(reason="no-winner", detail=detail))
        return False

    def _check_bounds(self) -> None:
        if self.runtime.stopping:
            raise Ended("interrupted", "the daemon was asked to stop")
        if (self.runtime.config.workspace / STOP_FILE).exists():
            raise Ended("interrupted", f"the file {STOP_FILE} lies in the workspace")
        if self.seconds_left() <= 0:
            raise Ended("limited", f"the bound of {self.task.bounds.minutes:g} minutes is reached")
        loop = self.guard.loop()
        if loop is not None:
            raise Ended("failed", loop)

    def _view(self, context: Context, before: Sequence[Taken], recorded: dict[str, Taken]) -> View:
        return View(
            session=self.id,
            task=self.task.name,
            step=self.budget.steps_used + 1,
            context=context,
            tools=[self.runtime.tools[name].spec for name in self.task.tools],
            taken=[*before, *self.taken],
            recorded=recorded,
            slot=self.slot_facts,
            last=self.last,
            rejected=self.rejected,
            steps_left=self.budget.steps_left,
            tokens_left=self.budget.tokens_left,
            behind=self.recollection.of_event,
        )

    async def _take(self, proposal: Proposal, vote: Ballot | None = None) -> None:
        self.budget.use_step()
        before = self._flush()
        try:
            taken = await self.steps.take(self.budget.steps_used, proposal, before, vote=vote)
        except Rejected as error:
            goes_on = proposal.key is not None and proposal.on_error == "continue"
            sources = parts_by_source(proposal.args, proposal.provenance)
            refused = Malformed(reason=error.reason, detail=error.detail, provenance=sources)
            await self._reject(refused, counted=True, final=not goes_on, before=before)
            if goes_on:
                self.taken.append(Taken.refused(self.budget.steps_used, proposal, error.detail))
            return
        if taken.status == "unknown":
            taken = await self._settled(taken)
        self.rejected, self.rejections = None, 0
        self.taken.append(taken)
        self.guard.saw(taken)

    async def _settle_earlier(self) -> None:
        """Settle what the session that this one goes on from left unknown."""
        for row in projections.unknown_actions(self.runtime.ledger.reader):
            unsettled = row.effect in REPEATABLE and any(
                row.attempt_session == earlier.session for earlier in self.earlier
            )
            if unsettled and await settle(self.runtime, row, self.steps) == "unknown":
                question = projections.open_escalation_for(self.runtime.ledger.reader, self.task.name, row.digest)
                raise Parked(question.escalation if question else row.action, row.tool)

    async def _settled(self, taken: Taken) -> Taken:
        """The step after its unknown outcome was settled by effect class; parked where only a person can."""
        reader = self.runtime.ledger.reader
        row = projections.action(reader, taken.action)
        if row is None or await settle(self.runtime, row, self.steps) != "unknown":
            row = projections.action(reader, taken.action)
            return recorded_step(reader, row) if row is not None else taken
        question = projections.open_escalation_for(reader, self.task.name, row.digest)
        raise Parked(question.escalation if question else row.action, row.tool)

    async def _reject(
        self, move: Malformed, *, counted: bool = False, final: bool = True, before: Sequence[Draft] = ()
    ) -> None:
        """A move that is no action: recorded, counted, told to the planner once; the second in a row ends the session."""
        if not counted and self.budget.steps_left > 0:  # what comes beyond the bound is told, and is no step
            self.budget.use_step()
        step = StepRejected(
            session=self.id, task=self.task.name, step=self.budget.steps_used, reason=move.reason,
            payload={"detail": move.detail, "provenance": {name: list(parts) for name, parts in move.provenance.items()}},
        )  # fmt: skip
        await self.runtime.ledger.write(*before, *self._flush(), step)
        self.rejections += 1
        self.appraisal.flags += 1
        unserved = move.reason in ("provider-failed", "provider-timeout")
        if final and (self.planner.name == "playbook" or self.rejections > 1 or self.budget.steps_left < 1):
            why = f"{move.reason}: {move.detail}"
            raise Ended("failed", why, rule=why if unserved else None)
        self.rejected = move.detail

    async def _reject_claim(self, claim: str) -> None:
        """A planner that says it did what no outcome shows is told once; the second time the session fails."""
        self.false_claims += 1
        await self._reject(Malformed(reason="false-claim", detail=claim, provenance={"unknown": [claim]}), final=False)
        if self.false_claims > 1 or self.budget.steps_left < 1:
            raise Ended("failed", f"false-claim: {claim}")

    def _flush(self) -> list[Draft]:
        return self.calls.flush()

    # -- a person's answer ------------------------------------------------------------------------------------------

    async def _act_on_answers(self) -> bool:
        """Carry out what was approved. Returns whether the planner goes on: not where no work waited for the answer."""
        reader = self.runtime.ledger.reader
        parked = resumption.goes_on(reader, self.earlier, self.slot.slot)
        waiting = approved_in(reader, self.earlier) if parked else []
        if self.escalation is not None and self.escalation.state == "approved":
            waiting = [self.escalation, *(other for other in waiting if other.escalation != self.escalation.escalation)]
        for question in waiting:
            await self._act_on(question, parked=parked)
        return parked or self.slot.resumes is None

    async def _act_on(self, question: EscalationRow, *, parked: bool) -> None:
        """Carry out exactly what was approved, once."""
        self._check_bounds()
        reader = self.runtime.ledger.reader
        row = projections.action(reader, question.action)
        if row is None:
            return
        proposal = recorded_proposal(reader, row)
        tool = self.runtime.tools.get(row.tool)
        try:
            prepared = tool.prepare(proposal.args) if tool is not None else None
        except ToolRefused as error:
            raise Ended("failed", f"the approved action can no longer be prepared: {error}") from error
        if tool is None or prepared is None:
            raise Ended("failed", f"the approved action needs the tool {row.tool}, which is gone")
        if prepared.digest != question.digest:
            reason = (
                f"what {question.escalation} approved is not what would run now (its digest changed); it is asked again"
            )
            await self.runtime.alarm("approval-stale", reason, about=question.escalation)
            await self._take(proposal)
            return
        judged = judge(self.runtime, self.task, self.id, prepared, proposal, steps=row.step)
        decision = judged.decision
        if decision.decision == "deny":
            await self.runtime.ledger.write(*self._flush(), self.steps.decided(row.action, judged))
            raise Ended("failed", f"approved, but the policies in force now deny it: {decision.reason}")
        self.budget.use_step()
        if accepted_doubts(reader, question.escalation):
            self.appraisal.certainty.settle()
        attempt = row.attempt + 1
        intent = self.steps.intent(row.action, prepared, attempt=attempt, approval=question.escalation)
        await self.runtime.ledger.write(*self._flush(), intent)
        taken = await self.steps.carry_out(
            row.step,
            replace(proposal, confidence=1.0),
            row.action,
            tool,
            prepared,
            attempt=attempt,
            reason=f"approved by uid {question.uid}" if question.uid is not None else "nobody said no in time",
        )
        if taken.status == "unknown":
            taken = await self._settled(taken)
        if not parked:
            self.taken.append(taken)
            if taken.status != "succeeded":
                raise Ended("failed", f"the approved {row.tool} ended as {taken.status}: {taken.error}")

    # -- the end ----------------------------------------------------------------------------------------------------

    async def _prove(self) -> tuple[SessionStatus, str]:
        """The status that the postconditions prove."""
        await self.runtime.ledger.write(*self._flush())
        if self.dry_run:
            return "unverified", "dry run: effects were decided, not done"
        if not self.task.postconditions:
            return "unverified", "finished; the task declares no postconditions"
        checking = replace(self.steps, offered=frozenset({"run_command", "http_request"}), appraisal=None)
        failed = failures(await self.postconditions.check(checking))
        if failed:
            return "failed", failed
        count = len(self.task.postconditions)
        return (
            "succeeded",
            "finished; its postcondition holds" if count == 1 else f"finished; its {count} postconditions hold",
        )

    async def _close(self, status: SessionStatus, reason: str) -> Ending:
        duration = int((self.runtime.clock.monotonic() - self.started) * MICROSECONDS)
        whole: dict[str, JSON] = {"reason": reason} if len(reason) > REASON_MAX else {}
        if self.finish.provenance is not None:
            whole["provenance"] = {name: list(parts) for name, parts in self.finish.provenance.items()}
        closed = SessionClosed(
            session=self.id,
            task=self.task.name,
            slot=self.slot.slot,
            status=status,
            reason=reason[:REASON_MAX],
            steps=self.budget.steps_used,
            tokens=self.budget.tokens_used,
            cost_usd=self.budget.usd_used,
            duration_us=duration,
            saved=(status in ("succeeded", "unverified") and bool(self.finish.saved)) or None,
            payload={"saved": dict(self.finish.saved), "says": self.finish.says, **whole},
        )
        drafts: list[Draft] = [*self._flush(), closed]
        if status != "failed" or self.last_try:
            drafts.append(self._slot_closed())
        drafts += self._follow_up(status)
        # Nothing may come between having looked for an answer and having parked: not through the queue of the loop's tick.
        self.runtime.ledger.commit(*drafts)
        await tell_if_given_up(self.runtime, drafts)
        if status in ("failed", "limited"):
            await self.runtime.notifier.notify(self.id, f"{self.task.name}: session {status}", reason, kind="failed")
        return Ending(session=self.id, status=status, reason=reason)

    def _follow_up(self, status: SessionStatus) -> list[Draft]:
        """The slot that goes on from here at once: after an interruption, or where the answer came before the session parked."""
        row = projections.session(self.runtime.ledger.reader, self.id)
        if status == "interrupted" and row is not None:
            return go_on_from(self.runtime, row)
        if status == "parked" and self.waits_for is not None:
            return resume_if_answered(self.runtime.ledger.reader, self.waits_for, self.id, self.runtime.now())
        return []

    def _slot_closed(self) -> SlotClosed:
        waited = (self.runtime.now() - self.slot.due) / MICROSECONDS - (self.runtime.clock.monotonic() - self.started)
        late = self.slot.kind == "scheduled" and waited > LATE_AFTER_SECONDS
        rule = self.rule[:REASON_MAX] if self.rule is not None else None
        return ended(self.slot, "late" if late else "ran", session=self.id, rule=rule)
