"""The loop guard: a planner that does the same thing and gets the same result is stopped before it burns its bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perdure.state.canonical import digest

if TYPE_CHECKING:
    from perdure.daemon.planners.moves import Taken

SAME_MAX = 3  # the same action with the same result this often in a row is a loop
ALTERNATIONS_MAX = 3  # A-B-A-B-A-B likewise


class LoopGuard:
    """Watches the steps of one session."""

    def __init__(self) -> None:
        self._seen: list[tuple[str, str]] = []  # (digest of action and result, tool)

    def saw(self, taken: Taken) -> None:
        """Take note of a step as it ended."""
        outcome = [
            taken.proposal.tool,
            dict(taken.proposal.args),
            taken.decision,
            taken.status,
            taken.result,
            taken.error,
        ]
        self._seen.append((digest(outcome), taken.proposal.tool))

    def loop(self) -> str | None:
        """What loop the last steps form, in words; None where there is none."""
        seen = [mark for mark, _ in self._seen]
        if len(seen) >= SAME_MAX and len(set(seen[-SAME_MAX:])) == 1:
            return f"loop: {self._seen[-1][1]} was done {SAME_MAX} times in a row with the same arguments and the same result"
        window = seen[-2 * ALTERNATIONS_MAX :]
        if len(window) == 2 * ALTERNATIONS_MAX and len(set(window)) == 2 and len(set(window[::2])) == 1:
            names = " and ".join(sorted({tool for _, tool in self._seen[-2:]}))
            return f"loop: {names} took turns {ALTERNATIONS_MAX} times with the same results"
        return None
