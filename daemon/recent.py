"""What decisions ask of the ledger at every step, held ready: how often a tool was called lately, what was spent, and what a
session has heard. Read once, then kept up with each commit, so that a step costs the same however long the ledger is."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from perdure.daemon.clock import MICROSECONDS
from perdure.daemon.resumption import chain
from perdure.state import projections
from perdure.state.events import ActionIntended

if TYPE_CHECKING:
    from perdure.state.events import EffectClass, Event
    from perdure.state.ledger import Ledger
    from perdure.state.projections import Spend

HOUR = 3_600 * MICROSECONDS
DAY = 24 * HOUR
FORGOTTEN_MAX = 1_000  # calls of a tool older than a day that are held before they are dropped


class Recent:
    """Follows one ledger, from the moment it is made."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._reader = ledger.reader
        self._started: dict[str, list[int]] = {}  # tool -> when its calls of about the last day were started, ascending
        self._since: dict[str, int] = {}  # tool -> from when on these are all of them
        self._last_model_call = projections.last_call_at(self._reader)
        self._lines: dict[str, tuple[str, ...]] = {}  # session -> itself and those that it goes on from
        self._heard: dict[str, set[tuple[str, EffectClass]]] = {}  # session -> tools that ended there
        self._running: dict[str, EffectClass] = {}  # open intent -> its effect class
        self._successes: dict[tuple[str, str], tuple[int, int]] = {}  # (task, tool) -> actions tried, and succeeded
        ledger.subscribe(self.feed)

    def feed(self, events: Iterable[Event]) -> None:
        """Take note of what has just been committed."""
        for event in events:
            if event.type == "action.intended":
                self._intended(event)
            elif event.type == "action.ended":
                self._ended(event)
            elif event.type == "action.verified":
                if not event.body["passed"]:  # rare: what it changes is read again
                    self._successes.clear()
                    self._running.pop(event.body["action"], None)
            elif event.type == "model.requested":
                self._last_model_call = max(self._last_model_call, event.at)
            elif event.type == "session.closed":
                for session in self._lines.pop(event.body["session"], ()):
                    self._heard.pop(session, None)

    def _intended(self, event: Event) -> None:
        body = event.body
        self._running[body["action"]] = body["effect"]
        if body["attempt"] > 1:  # the ledger counts an action when it was started last
            self._started.pop(body["tool"], None)
        elif (started := self._started.get(body["tool"])) is not None:
            insort(started, event.at)

    def _ended(self, event: Event) -> None:
        body = event.body
        effect = self._running.pop(body["action"], None)
        self._count(body, again=effect is None)
        heard = self._heard.get(body["session"])
        if heard is None:
            return
        if effect is None and (row := projections.action(self._reader, body["action"])) is not None:
            effect = row.effect
        heard.add((body["tool"], effect or "read"))

    def _count(self, body: Mapping[str, Any], *, again: bool) -> None:
        known = self._successes.get(key := (body["task"], body["tool"]))
        if known is None:
            return
        if again or body["attempt"] > 1:
            del self._successes[key]
        else:
            self._successes[key] = known[0] + 1, known[1] + (body["status"] == "succeeded")

    def success_rate(self, task: str, tool: str) -> float:
        """The share of this tool's ended actions in this task that succeeded and that no verification contradicted; -1: none
        yet."""
        known = self._successes.get((task, tool))
        if known is None:
            known = self._successes[task, tool] = projections.successes(self._reader, task, tool)
        tried, succeeded = known
        return succeeded / tried if tried else -1.0

    def calls(self, tool: str, now: int) -> tuple[int, int]:
        """How many actions of this tool were started in the last hour, and in the last day: those that other sessions have
        just decided on, in the same tick of the loop, too."""
        since = now - DAY
        started = self._started.get(tool)
        if started is None or since < self._since[tool]:  # or the clock was set back
            started = self._started[tool] = projections.call_times(self._reader, tool, since)
            self._since[tool] = since
        first = bisect_left(started, since)
        hour, day = len(started) - bisect_left(started, now - HOUR), len(started) - first
        if first > FORGOTTEN_MAX:
            del started[:first]
            self._since[tool] = since
        deciding = sum(isinstance(draft, ActionIntended) and draft.tool == tool for draft in self._ledger.waiting)
        return hour + deciding, day + deciding

    def spent(self, session: str, now: int) -> tuple[Spend, Spend, Spend]:
        """What the model calls of the session, of the last hour, and of the last day cost."""
        nothing = projections.NOTHING_SPENT
        if self._last_model_call == 0:
            return nothing, nothing, nothing
        session_spent = projections.spend(self._reader, 0, session=session)
        if self._last_model_call < now - DAY:
            return session_spent, nothing, nothing
        return session_spent, projections.spend(self._reader, now - HOUR), projections.spend(self._reader, now - DAY)

    def heard(self, session: str) -> set[tuple[str, EffectClass]]:
        """The tools, each with its effect class, that answered in the session or in one that it goes on from."""
        line = self._lines.get(session)
        if line is None:
            line = tuple(row.session for row in chain(self._reader, session))
            if line:  # it has been opened
                self._lines[session] = line
        found: set[tuple[str, EffectClass]] = set()
        for one in line:
            heard = self._heard.get(one)
            if heard is None:
                heard = self._heard[one] = projections.tools_ended(self._reader, one)
            found |= heard
        return found
