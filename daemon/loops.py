"""The loop guard: a planner that goes round in circles is stopped before it burns its bounds."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from perdure.state.canonical import digest

if TYPE_CHECKING:
    from perdure.daemon.planners.moves import Taken

SAME_MAX = 3  # the same action with the same result this often in a row is a loop
ALTERNATIONS_MAX = 3  # A-B-A-B-A-B likewise
STALE_MAX = 8  # steps in a row that brought nothing new: no result that was not there before, no effect
RETURNS_MAX = 2  # how often a file may be given back a content that it had before the last one
REFUSALS_MAX = 3  # refused steps in a row
GROWING_MAX = 5  # steps without an effect while what the planner says of its plan grows each time


class LoopGuard:
    """Watches the steps of one session, and first those of the sessions that it goes on from: a circle with a park in it is one
    all the same. A playbook is what a person wrote and ends by itself: of it only what repeats exactly counts (`planned`)."""

    def __init__(self, *, planned: bool = False) -> None:
        self._planned = planned
        self._seen: list[tuple[str, str]] = []  # (digest of action and result, tool)
        self._known: set[str] = set()  # digests of results and of effects
        self._stale = 0
        self._refusals = 0
        self._growing: list[int] = []  # lengths of what was said since the last effect
        self._written: dict[str, list[str]] = {}  # file -> digests of its contents after each step that named it
        self._returns: dict[str, int] = {}

    def saw(self, taken: Taken) -> None:
        """Take note of a step as it ended."""
        proposal = taken.proposal
        action = [proposal.tool, taken.digest or dict(proposal.args)]
        outcome = [*action, taken.decision, taken.status, taken.result, taken.error]
        self._seen.append((digest(outcome), proposal.tool))
        came = [taken.status, taken.result, taken.error, taken.reason]
        news = digest([action, *came] if taken.changed else came)
        self._stale = 0 if news not in self._known else self._stale + 1
        self._known.add(news)
        self._refusals = self._refusals + 1 if taken.decision == "deny" else 0
        self._growing = [] if taken.changed else [*self._growing, len(proposal.says)]
        if taken.changed:
            self._wrote(taken)

    def _wrote(self, taken: Taken) -> None:
        for path, content in taken.files.items():
            contents = self._written.setdefault(path, [])
            if content in contents[:-1] and contents[-1] != content:
                self._returns[path] = self._returns.get(path, 0) + 1
            contents.append(content)

    def loop(self) -> str | None:
        """What loop the last steps form, in words; None where there is none."""
        repeated = self._repeated()
        if repeated is not None or self._planned:
            return repeated
        for path, returns in self._returns.items():
            if returns >= RETURNS_MAX:
                return f"loop: {path} was given back an earlier content {returns} times"
        if self._refusals >= REFUSALS_MAX:
            return f"loop: {self._refusals} steps in a row were refused, and nothing else was tried"
        if self._stale >= STALE_MAX:
            return f"loop: {self._stale} steps in a row brought no new information and changed nothing"
        said = self._growing[-GROWING_MAX:]
        if len(said) == GROWING_MAX and all(less < more for less, more in pairwise(said)):
            return f"loop: over {GROWING_MAX} steps the plan grew and nothing was done"
        return None

    def _repeated(self) -> str | None:
        seen = [mark for mark, _ in self._seen]
        if len(seen) >= SAME_MAX and len(set(seen[-SAME_MAX:])) == 1:
            return f"loop: {self._seen[-1][1]} was done {SAME_MAX} times in a row with the same arguments and the same result"
        window = seen[-2 * ALTERNATIONS_MAX :]
        if len(window) == 2 * ALTERNATIONS_MAX and len(set(window)) == 2 and len(set(window[::2])) == 1:
            names = " and ".join(sorted({tool for _, tool in self._seen[-2:]}))
            return f"loop: {names} took turns {ALTERNATIONS_MAX} times with the same results"
        return None
