"""A session's model calls: each reserved and on disk before it is made, settled when it is over, and drawn anew for votes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from perdure.daemon.endings import Ended
from perdure.daemon.planners.moves import Finish, Malformed, Move, Proposal, Reply, Request, Usage, View
from perdure.daemon.planners.voting import Ballot, Draw
from perdure.errors import PerdureError
from perdure.state.events import ContextShortened, Draft, ModelReplied, ModelRequested, TokensDrifted

if TYPE_CHECKING:
    from perdure.daemon.budget import Budget
    from perdure.daemon.planners.moves import Planner
    from perdure.daemon.runtime import Runtime
    from perdure.policies.model import Obligations

ALARMS_READ_MAX = 200
SUMMARIES_SHARE = 0.25  # of a session's tokens and time that summaries of what was before it may take
DRIFT_MAX = 0.02  # a provider's count that differs more than this from ours is an event
Examine = Callable[[Proposal | Finish], "tuple[str, Obligations] | None"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    call: str
    view: View | None  # what a planner is asked about; None: a summary
    request: Request


def _once(examine: Examine) -> Examine:
    """`examine`, which looks at paths, programs and policies, asked once about draws that say the same."""
    known: list[tuple[Proposal | Finish, tuple[str, Obligations] | None]] = []

    def examined(move: Proposal | Finish) -> tuple[str, Obligations] | None:
        for seen, found in known:
            if seen == move:
                return found
        known.append((move, examine(move)))
        return known[-1][1]

    return examined


class ModelCalls:
    """`waiting` holds events that ride the session's next commit."""

    def __init__(
        self,
        runtime: Runtime,
        planner: Planner,
        budget: Budget,
        *,
        session: str,
        task: str,
        seconds_left: Callable[[], float],
    ) -> None:
        self._runtime, self._planner, self._budget = runtime, planner, budget
        self._session, self._task, self._seconds_left = session, task, seconds_left
        self._for_summaries: int | None = None  # tokens that they may still take
        self.waiting: list[Draft] = []

    def flush(self) -> list[Draft]:
        """What waits, for a commit that is about to be made."""
        drafts, self.waiting = self.waiting, []
        return drafts

    async def move(self, view: View) -> Move:
        """The planner's next move. Raises Ended where the budget does not pay for the call."""
        request = self._planner.request(view)
        if request is None:
            return (await self._planner.propose(view, None, self._seconds())).move
        refusal = self._budget.reserve(request)
        if refusal is not None:
            raise Ended("limited", refusal)
        call, drafts = self._reserved(view, request, "propose")
        await self._runtime.ledger.write(*self.flush(), *drafts)
        return (await self._asked(call)).move

    async def summary(self, request: Request, ask: Callable[[float], Awaitable[Reply]]) -> tuple[str, Reply] | str:
        """A call for a summary by `ask`, which is given its seconds: reserved, recorded and charged like every other, from a
        share of what the session has, so that its own steps are not starved. The call's id and its reply, or in words why
        the budget does not pay for it."""
        if self._for_summaries is None:
            self._for_summaries = int(SUMMARIES_SHARE * self._budget.tokens_left)
        most = request.prompt_tokens + request.completion_cap
        if most > self._for_summaries:
            return (
                f"the call may take {most} tokens; {self._for_summaries} are left of the session's share for summaries"
            )
        refusal = self._budget.reserve(request)
        if refusal is not None:
            return refusal
        self._for_summaries -= most
        call, drafts = self._reserved(None, request, "summarise")
        await self._runtime.ledger.write(*self.flush(), *drafts)
        reply = await self._settled(call, await ask(max(1.0, SUMMARIES_SHARE * self._seconds_left())))
        return call.call, reply

    async def vote(
        self, view: View, first: Proposal | Finish, ahead_by: int, draws_max: int, examine: Examine
    ) -> Ballot:
        """Draw until one canonical action leads by enough, or cannot any more. `first`, the proposal that made a vote necessary,
        is the first draw. `examine` gives a move's canonical action and what its policies oblige to, or None where a red
        flag takes the draw out.

        As many draws as are needed at the least are made at once, so that the order in which answers arrive is without
        consequence; where the planner can, in one call whose prompt is paid for once. Raises Ended where the budget pays for
        no further draw."""
        ballot = Ballot(ahead_by, draws_max)
        examine = _once(examine)
        self._count(ballot, first, examine)
        number = 1
        while needed := ballot.draws_needed():
            if self._seconds_left() <= 0:
                raise Ended("limited", "the time bound was reached while a vote was held")
            calls, drafts, refusal = self._reserve_draws(view, number, needed)
            if not calls:
                raise Ended("limited", f"a vote of up to {ballot.draws_max} draws was not finished: {refusal}")
            await self._runtime.ledger.write(*self.flush(), *drafts)
            ended = await asyncio.gather(*(self._asked(call) for call in calls), return_exceptions=True)
            for error in (one for one in ended if isinstance(one, BaseException)):
                raise error  # only now, when every call is settled
            replies = [one for one in ended if isinstance(one, Reply)]
            for reply in replies:
                for move in (reply.move, *reply.others):
                    self._count(ballot, move, examine)
            number += sum(call.request.draws for call in calls)
            if all(reply.failed for reply in replies):
                break  # no provider answers: whoever leads has not won
        return ballot

    def _reserve_draws(self, view: View, number: int, needed: int) -> tuple[list[_Call], list[Draft], str | None]:
        calls: list[_Call] = []
        drafts: list[Draft] = []
        last = number + needed
        while number < last:
            drawing = replace(view, draw=number, draws=last - number)
            request = self._planner.request(drawing)
            if request is None:
                return calls, drafts, "the planner makes no calls"
            refusal = self._budget.reserve(request)
            if refusal is not None:
                return calls, drafts, refusal
            call, reserved = self._reserved(drawing, request, "vote")
            calls.append(call)
            drafts += reserved
            number += request.draws
        return calls, drafts, None

    def _count(self, ballot: Ballot, move: Move, examine: Examine) -> None:
        examined = examine(move) if not isinstance(move, Malformed) else None
        if examined is None or isinstance(move, Malformed):
            ballot.add(None)
            return
        action, obligations = examined
        ballot.add(Draw(action, move))
        if obligations.votes_ahead_by and ballot.standing().leader == action:
            ballot.ask_for(obligations.votes_ahead_by, obligations.votes_max)

    # -- one call -----------------------------------------------------------------------------------------------------

    def _seconds(self) -> float:
        return max(1.0, self._seconds_left())

    def _reserved(self, view: View | None, request: Request, purpose: str) -> tuple[_Call, list[Draft]]:
        call = self._runtime.identifiers.new()
        drafts: list[Draft] = [
            ModelRequested(
                session=self._session,
                task=self._task,
                call=call,
                model=request.model,
                purpose=purpose,
                prompt_tokens=request.prompt_tokens,
                completion_cap=request.completion_cap,
                reserved_tokens=request.prompt_tokens + request.completion_cap,
                reserved_usd=request.usd_max,
                payload=request.body,
            )
        ]
        body = request.body if isinstance(request.body, dict) else {}
        shortened, dropped = body.get("shortened"), body.get("dropped")
        actions = shortened if isinstance(shortened, list) else []
        if view is not None and view.draw == 0 and (actions or dropped):
            receipt = ContextShortened(
                session=self._session,
                task=self._task,
                call=call,
                shortened=len(actions),
                dropped=dropped if isinstance(dropped, int) else 0,
                prompt_tokens=request.prompt_tokens,
                payload={"actions": actions},
            )
            drafts.append(receipt)
        return _Call(call=call, view=view, request=request), drafts

    async def _asked(self, call: _Call) -> Reply:
        assert call.view is not None
        try:
            reply = await self._planner.propose(call.view, call.request, self._seconds())
        except PerdureError as error:  # it could not even begin: no key, no package, no model file
            failure = Malformed(reason="provider-failed", detail=str(error))
            nothing = Usage(input_tokens=0, output_tokens=0)
            await self._settled(call, Reply(move=failure, usage=nothing, raw={"error": str(error)}, failed="failed"))
            raise
        return await self._settled(call, reply)

    async def _settled(self, call: _Call, reply: Reply) -> Reply:
        charged = self._budget.settle(reply, call.request)
        usage = reply.usage
        self.waiting.append(
            ModelReplied(
                session=self._session,
                task=self._task,
                call=call.call,
                status=reply.failed or "replied",
                input_tokens=usage.input_tokens if usage else None,
                output_tokens=usage.output_tokens if usage else None,
                charged_tokens=charged.tokens,
                charged_usd=charged.usd,
                error=reply.move.reason if reply.failed and isinstance(reply.move, Malformed) else None,
                payload=reply.raw,
            )
        )
        self._reconcile(call, reply)
        self.waiting += self._runtime.circuits.changes()
        # At once: what was not used is free for other sessions from here on, and a crash must not charge it in full then.
        await self._runtime.ledger.write(*self.flush())
        await self._warn()
        return reply

    async def _warn(self) -> None:
        """Raise an alarm for each cap that is used up to 80 %, once in its window."""
        for about, window, words in self._runtime.caps.near(self._task):
            since = self._runtime.now() - window
            if self._runtime.warned.get(about, 0) > since:
                continue
            alarms = self._runtime.ledger.reader.events(
                types=("alarm.raised",), newest_first=True, limit=ALARMS_READ_MAX
            )
            known = any(
                alarm.at > since and alarm.body["code"] == "budget-warning" and alarm.body.get("about") == about
                for alarm in alarms
            )
            self._runtime.warned[about] = self._runtime.now()
            if not known:
                await self._runtime.alarm("budget-warning", words, about=about)

    def _reconcile(self, call: _Call, reply: Reply) -> None:
        """Compare the provider's count with ours; a drift that is new is an event, and the factor learned from it is kept."""
        body = call.request.body if isinstance(call.request.body, dict) else {}
        counted, model = body.get("counted"), body.get("answered_by", call.request.model)
        reported = reply.usage.input_tokens if reply.usage is not None else None
        if reply.failed or not isinstance(counted, int) or not isinstance(model, str) or not reported or counted <= 0:
            return
        drift = reported / counted - 1
        if abs(drift) <= DRIFT_MAX or abs(drift - self._runtime.drifts.get(model, 0.0)) <= DRIFT_MAX:
            return
        self._runtime.drifts[model] = drift
        self.waiting.append(
            TokensDrifted(
                session=self._session,
                task=self._task,
                call=call.call,
                model=model,
                counted=counted,
                reported=reported,
                factor=self._planner.factor,
            )
        )
