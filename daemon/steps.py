"""One step of a session: a proposal is prepared, decided, and — only with its intent on disk — carried out once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from perdure.daemon.clock import MICROSECONDS
from perdure.daemon.contents import contents
from perdure.daemon.governance import Certain, Judgement, as_policies_see, judge, oblige
from perdure.daemon.planners.moves import Proposal, Taken
from perdure.daemon.questions import describe, tell
from perdure.daemon.tools.model import Call, Prepared, Result, Tool, ToolInterrupted, ToolRefused
from perdure.state import projections
from perdure.state.events import (
    JSON,
    ActionDecided,
    ActionEnded,
    ActionIntended,
    ActionProposed,
    ActionStatus,
    ActionVerified,
    Draft,
    EscalationJoined,
    EscalationOpened,
    VoteHeld,
)

if TYPE_CHECKING:
    from perdure.daemon.appraisal import Appraisal
    from perdure.daemon.confidence import Assessment
    from perdure.daemon.planners.voting import Ballot
    from perdure.daemon.proofs import PostconditionEntry
    from perdure.daemon.runtime import Runtime
    from perdure.daemon.tasks import Task
    from perdure.policies.model import Decision, Obligations

STOP_GRACE_SECONDS = 20.0  # how long a running tool may go on once the daemon has been asked to stop


class Rejected(Exception):
    """The proposal cannot become an action; `reason` is a code and `detail` is told to the planner."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Parked(Exception):
    """The session waits for a person's answer to `escalation`."""

    def __init__(self, escalation: str, tool: str) -> None:
        super().__init__(escalation)
        self.escalation = escalation
        self.tool = tool


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Takes the steps of one session. `seconds_left` bounds each tool call; a dry run decides everything and executes
    reads only."""

    runtime: Runtime
    task: Task
    session: str
    offered: frozenset[str]
    seconds_left: Callable[[], float]
    dry_run: bool = False
    asked_by: int | None = None  # the uid of the person whose own command this is: a question would be for them
    appraisal: Appraisal | None = None  # None: not a planner's steps

    def look(self, step: int, proposal: Proposal) -> tuple[Prepared, Obligations]:
        """First pass over a proposal: what it would be and what must hold before it may be automatic. Raises Rejected."""
        _, prepared = self._prepare(proposal)
        proposal = replace(proposal, provenance=_complete(proposal, prepared))
        return prepared, oblige(self.runtime, self.task, self.session, prepared, proposal, step)

    async def take(
        self, step: int, proposal: Proposal, before: Sequence[Draft] = (), *, vote: Ballot | None = None
    ) -> Taken:
        """Decide the proposal and do what was decided. `before` are events that ride the same commit; `vote` is the one that
        was held about this step.

        Raises Rejected (nothing was recorded but what the caller records) and Parked (the question is on disk).
        """
        tool, prepared = self._prepare(proposal)
        proposal = replace(proposal, provenance=_complete(proposal, prepared))
        assessment: Assessment | None = None
        certain = Certain()
        if self.appraisal is not None:
            proposal, assessment = self.appraisal.of(proposal, vote)
            certain = self.appraisal.certain(vote)
        action = self.runtime.identifiers.new()
        judged = judge(self.runtime, self.task, self.session, prepared, proposal, steps=step, certain=certain)
        if judged.unsure:
            proposal = replace(proposal, on_escalate="park")  # a session that is too unsure goes on to nothing else
        if self.asked_by is not None and judged.decision.decision == "escalate":
            own = replace(judged.decision, decision="auto", reason=f"asked for by uid {self.asked_by}")
            judged = replace(judged, decision=own)
        decision = judged.decision
        proposed = self._proposed(action, step, prepared, proposal, assessment)
        held = (self.vote_held(step, vote, action),) if vote is not None else ()
        record = (*before, proposed, *held, self.decided(action, judged))
        if decision.decision == "deny":
            await self.runtime.ledger.write(*record)
            return _taken(
                step, proposal, action, prepared, "deny", decision.reason, None, None, f"refused: {decision.reason}"
            )
        effect = prepared.effect or prepared.spec.effect
        if self.dry_run and (decision.decision == "escalate" or effect != "read"):
            await self.runtime.ledger.write(*record)
            return _taken(
                step,
                proposal,
                action,
                prepared,
                decision.decision,
                "dry run: decided, not done",
                "succeeded",
                {"dry_run": True},
            )
        if decision.decision == "escalate":
            question = describe(prepared, proposal, decision, vote=vote, certain=certain)
            return await self._ask(step, proposal, action, prepared, decision, record, question)
        await self.runtime.ledger.write(*record, self.intent(action, prepared, attempt=1))
        return await self.carry_out(step, proposal, action, tool, prepared, attempt=1, reason=decision.reason)

    def _prepare(self, proposal: Proposal) -> tuple[Tool, Prepared]:
        tool = self.runtime.tools.get(proposal.tool) if proposal.tool in self.offered else None
        if tool is None:
            raise Rejected(
                "unknown-tool", f"no tool {proposal.tool!r} is offered here; offered: {', '.join(sorted(self.offered))}"
            )
        try:
            return tool, tool.prepare(proposal.args)
        except ToolRefused as error:
            raise Rejected("bad-arguments", str(error)) from error

    def vote_held(self, step: int, vote: Ballot, action: str | None) -> VoteHeld:
        """The record of a vote: how it stood when it ended, and what was voted for."""
        standing = vote.standing()
        return VoteHeld(
            session=self.session,
            task=self.task.name,
            step=step,
            ahead_by=vote.ahead_by,
            draws_max=vote.draws_max,
            draws=standing.draws,
            flagged=standing.flagged,
            margin=standing.margin,
            won=standing.verdict == "won",
            action=action,
            payload={"candidates": vote.candidates()},
        )

    def _proposed(
        self, action: str, step: int, prepared: Prepared, proposal: Proposal, assessment: Assessment | None
    ) -> ActionProposed:
        payload: dict[str, JSON] = {
            "args": dict(prepared.args),
            "provenance": {name: list(sources) for name, sources in proposal.provenance.items()},
            "paths": {name: list(paths) for name, paths in prepared.paths.items()},
            "cwd": prepared.cwd,
            "says": proposal.says,
            "on_escalate": proposal.on_escalate,
            "on_error": proposal.on_error,
        }
        if prepared.argv is not None or prepared.url is not None:  # what edited policies would be asked again about
            seen = as_policies_see(prepared, proposal)
            payload["seen"] = {
                "argv": list(seen.argv) if seen.argv is not None else None,
                "script": seen.script,
                "host": seen.host,
                "method": seen.method,
                "targets": {text: list(paths) for text, paths in seen.targets.items()}
                if seen.targets is not None
                else None,
            }
        if assessment is not None:
            payload["confidence"] = asdict(assessment)
        return ActionProposed(
            action=action,
            session=self.session,
            task=self.task.name,
            step=step,
            tool=prepared.spec.name,
            effect=prepared.effect or prepared.spec.effect,
            digest=prepared.digest,
            confidence=proposal.confidence,
            key=proposal.key,
            stated=assessment.stated if assessment is not None else None,
            score=round(assessment.score, 6) if assessment is not None else None,
            voted=(assessment.margin > 0 or None) if assessment is not None else None,
            payload=payload,
        )

    def decided(self, action: str, judged: Judgement) -> ActionDecided:
        """The record of what the policies said, and of the facts they said it on."""
        decision = judged.decision
        return ActionDecided(
            action=action,
            session=self.session,
            task=self.task.name,
            decision=decision.decision,
            rules=[
                {"name": hit.name, "file": hit.file, "line": hit.line, "decide": hit.decide} for hit in decision.rules
            ],
            reason=decision.reason,
            policies=decision.policies,
            grant=decision.grant,
            shadow=decision.shadow,
            facts=judged.recorded_facts(),
        )

    def intent(self, action: str, prepared: Prepared, *, attempt: int, approval: str | None = None) -> ActionIntended:
        """The record that must be durable before the effect."""
        return ActionIntended(
            action=action,
            session=self.session,
            task=self.task.name,
            tool=prepared.spec.name,
            effect=prepared.effect or prepared.spec.effect,
            digest=prepared.digest,
            attempt=attempt,
            approval=approval,
        )

    # -- asking a person --------------------------------------------------------------------------------------------

    async def _ask(
        self,
        step: int,
        proposal: Proposal,
        action: str,
        prepared: Prepared,
        decision: Decision,
        record: tuple[Draft, ...],
        question: JSON,
    ) -> Taken:
        reader, now = self.runtime.ledger.reader, self.runtime.now()
        asked = projections.escalation_to_join(reader, self.task.name, prepared.digest, now)
        parks = proposal.on_escalate == "park"
        if asked is not None:
            escalation = asked.escalation
            joined = EscalationJoined(escalation=escalation, action=action, session=self.session, task=self.task.name)
            await self.runtime.ledger.write(*record, joined)
        else:
            escalation = self.runtime.identifiers.new()
            opened = EscalationOpened(
                escalation=escalation,
                action=action,
                digest=prepared.digest,
                session=self.session,
                task=self.task.name,
                tool=prepared.spec.name,
                expires=now + decision.expires_seconds * MICROSECONDS,
                on_expiry=decision.on_expiry,
                parks=parks,
                payload={"question": question},
            )
            await self.runtime.ledger.write(*record, opened)
            await tell(self.runtime, escalation)
        if parks:
            raise Parked(escalation, prepared.spec.name)
        return _taken(step, proposal, action, prepared, "escalate", f"asked a person ({escalation})", None, None)

    # -- carrying out -----------------------------------------------------------------------------------------------

    async def carry_out(
        self, step: int, proposal: Proposal, action: str, tool: Tool, prepared: Prepared, *, attempt: int, reason: str
    ) -> Taken:
        """Run the action whose intent is on disk; record how it ended at once, then check it by its probe."""
        started = self.runtime.clock.monotonic()
        seconds = max(1.0, self.seconds_left())
        call = Call(
            action=action, session=self.session, attempt=attempt, seconds_max=seconds, scope=memory_scope(self.task)
        )
        status: ActionStatus
        try:
            result = await self._bounded(tool.run(prepared, call), seconds)
            status = "succeeded" if result.ok else "failed"
        except ToolInterrupted as error:
            result, status = Result(ok=False, value=None, error=str(error)), "unknown"
        except ToolRefused as error:
            result, status = Result(ok=False, value=None, error=str(error)), "failed"
        except Exception as error:  # noqa: BLE001 - a tool's own defect must not take the daemon along; nobody knows what it did
            result, status = Result(ok=False, value=None, error=f"{type(error).__name__}: {error}"), "unknown"
        value, text = self.runtime.redact(result.value), self.runtime.redact(result.error)
        error_text = text if isinstance(text, str) else None
        more: dict[str, JSON] = {} if result.whole is None else {"whole": self.runtime.redact(result.whole)}
        files: dict[str, str] = {}
        if status == "succeeded" and self.appraisal is not None and self.appraisal.model is not None:
            if (prepared.effect or prepared.spec.effect) != "read":
                files = await asyncio.to_thread(contents, prepared, self.runtime.config.workspace)
            more |= {"files": dict(files)} if files else {}
        ended = ActionEnded(
            action=action,
            session=self.session,
            task=self.task.name,
            tool=prepared.spec.name,
            attempt=attempt,
            status=status,
            duration_us=int((self.runtime.clock.monotonic() - started) * MICROSECONDS),
            undo=result.undo or None,
            payload={"result": value, "error": error_text, "truncated": result.truncated, **more},
        )
        await self.runtime.ledger.write(ended)
        if status == "succeeded":
            if self.appraisal is not None:
                effect = prepared.effect or prepared.spec.effect
                self.appraisal.certainty.did(action, step, prepared.spec.name, effect, proposal.confidence)
            await self._verify(action, tool, prepared, call, value)
        taken = _taken(step, proposal, action, prepared, "auto", reason, status, value, error_text)
        return replace(taken, files=files)

    async def _bounded(self, running: asyncio.Future[Result] | object, seconds: float) -> Result:
        """Wait for a tool, and no longer than its bound; once the daemon is stopping, no longer than the grace."""
        task: asyncio.Task[Result] = asyncio.ensure_future(running)  # type: ignore[arg-type]  # a coroutine
        await asyncio.sleep(0)
        if task.done() and not task.cancelled():  # it waited for nothing
            return task.result()
        deadline = self.runtime.clock.monotonic() + seconds + 5.0
        stop_at: float | None = None
        while not task.done():
            await asyncio.wait({task}, timeout=0.2)
            now = self.runtime.clock.monotonic()
            if self.runtime.stopping and stop_at is None:
                stop_at = now + STOP_GRACE_SECONDS
            if not task.done() and now > min(deadline, stop_at or deadline):
                task.cancel()
                await asyncio.wait({task}, timeout=5.0)
                raise ToolInterrupted(
                    "finish", "the tool call", "its time ran out", "The outcome is unknown and will be settled"
                )
        if task.cancelled():
            raise ToolInterrupted(
                "finish", "the tool call", "it was cancelled", "The outcome is unknown and will be settled"
            )
        return task.result()

    async def _verify(self, action: str, tool: Tool, prepared: Prepared, call: Call, value: JSON) -> None:
        """Have everything look at the effect that can: the tool's own probe, and what `verify` asks for."""
        reliability = self.runtime.config.confidence.verifier
        looked: list[tuple[str, bool]] = []
        if prepared.spec.probeable:
            passed = await tool.probe(prepared, call)
            if passed is not None:
                looked.append(("probe", passed))
        operated = self.runtime.config.tools.get(prepared.spec.name)
        if operated is not None and operated.verify:
            reliability = operated.verifier or reliability
            looked += await self._looked(operated.verify, prepared, value)
        for verifier, passed in looked:
            verified = ActionVerified(
                action=action,
                session=self.session,
                task=self.task.name,
                verifier=verifier,
                passed=passed,
                reliability=reliability,
            )
            await self.runtime.ledger.write(verified)
            if self.appraisal is not None:
                self.appraisal.certainty.verified(action, passed=passed, reliability=reliability)

    async def _looked(
        self, entries: Sequence[PostconditionEntry], prepared: Prepared, value: JSON
    ) -> list[tuple[str, bool]]:
        """Look at what `verify` of the operator's tool asks for; programs and requests are actions of their own."""
        from perdure.daemon.checks import Checks
        from perdure.daemon.postconditions import CHECKING_TOOLS, carry_out_check, effects_gone

        checking = replace(self, offered=CHECKING_TOOLS, appraisal=None)

        async def act(tool: str, args: dict[str, JSON]) -> Taken:
            return await carry_out_check(checking, tool, args, f"verify {prepared.spec.name}")

        async def there(tool: str) -> list[str]:
            return await effects_gone(self.runtime, self.task, [self.session], tool)

        variables: dict[str, JSON] = {"args": dict(prepared.args), "result": value}
        checks = Checks(config=self.runtime.config, variables=variables, act=act, there=there)
        conditions = [entry.postcondition() for entry in entries]
        return [(condition.kind, (await checks.look(condition)).passed) for condition in conditions]


def _complete(proposal: Proposal, prepared: Prepared) -> dict[str, Sequence[str]]:
    """The source of every argument: a default that the tool filled in is the configuration's, and what nobody vouched for
    is the planner's own."""
    return {
        name: proposal.provenance.get(name) or (("model",) if name in proposal.args else ("config",))
        for name in prepared.args
    }


def memory_scope(task: Task) -> str:
    """Whose memory the task reads and writes: its own, or that of the whole workspace."""
    return "workspace" if task.memory == "workspace" else task.name


def _taken(
    step: int,
    proposal: Proposal,
    action: str,
    prepared: Prepared,
    decision: str,
    reason: str,
    status: ActionStatus | None,
    result: JSON,
    error: str | None = None,
) -> Taken:
    return Taken(
        step=step,
        proposal=proposal,
        action=action,
        decision=decision,  # type: ignore[arg-type]  # one of the three words
        reason=reason,
        status=status,
        result=result,
        error=error,
        digest=prepared.digest,
        effect=prepared.effect or prepared.spec.effect,
    )
