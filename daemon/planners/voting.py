"""Voting among a model's independent draws: first to be ahead by k (MAKER, arXiv 2511.09030, after the sequential probability
ratio test). Pure counting: no calls, no clock, and no order: what counts is how many draws each action got."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from perdure.daemon.planners.moves import Finish, Proposal
from perdure.state.canonical import canonical
from perdure.state.events import JSON

if TYPE_CHECKING:
    from perdure.daemon.tools.model import Prepared

FINISH = "finish"  # what the end of the session is called where draws are counted
INTEGERS_EXACT = 2.0**53

Verdict: TypeAlias = Literal["won", "open", "lost"]


@dataclass(frozen=True, slots=True)
class Draw:
    """One valid draw: the canonical action it is a vote for, and the move itself."""

    action: str
    move: Proposal | Finish


@dataclass(frozen=True, slots=True)
class Standing:
    """How a vote stands. `margin` is the leader's lead over the next (all its votes where there is no other)."""

    verdict: Verdict
    leader: str | None
    margin: int
    draws: int
    flagged: int


def canonical_action(prepared: Prepared, *, texts: bool = False) -> str:
    """The action as votes compare it: same tool, and arguments that mean the same. Paths are those they lead to, numbers are
    compared by value, runs of white space count as one space, and arguments declared as free text are left out unless `texts`."""
    spec = prepared.spec
    args: dict[str, JSON] = {}
    for name, value in prepared.args.items():
        if name in spec.free_text and not texts:
            continue
        resolved = prepared.paths.get(name)
        args[name] = list(resolved) if resolved else _meaning(value)
    return canonical([spec.name, args, prepared.cwd]).decode()


def _meaning(value: JSON) -> JSON:
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, float) and value.is_integer() and abs(value) < INTEGERS_EXACT:
        return int(value)
    if isinstance(value, Mapping):
        return {key: _meaning(element) for key, element in value.items()}
    if isinstance(value, Sequence):
        return [_meaning(element) for element in value]
    return value


def standing(votes: Iterable[str], flagged: int, *, ahead_by: int, draws_max: int) -> Standing:
    """How the vote stands after these votes and `flagged` draws that were no valid proposal. It is lost as soon as no action
    can lead by `ahead_by` within `draws_max` any more."""
    counts: dict[str, int] = {}
    for vote in votes:
        counts[vote] = counts.get(vote, 0) + 1
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    first = ranked[0][1] if ranked else 0
    second = ranked[1][1] if len(ranked) > 1 else 0
    margin, draws = first - second, sum(counts.values()) + flagged
    leader = ranked[0][0] if ranked and margin else None
    verdict: Verdict = "open"
    if leader is not None and margin >= ahead_by:
        verdict = "won"
    elif margin + max(0, draws_max - draws) < ahead_by:
        verdict = "lost"
    return Standing(verdict, leader, margin, draws, flagged)


class Ballot:
    """The draws of one step's vote, and what to do next. Its answers depend on which draws it holds, not on their order."""

    def __init__(self, ahead_by: int, draws_max: int) -> None:
        self.ahead_by = ahead_by
        self.draws_max = draws_max
        self._draws: list[Draw] = []
        self._flagged = 0

    def add(self, draw: Draw | None) -> None:
        """Count a draw; None is one that a red flag took out."""
        if draw is None:
            self._flagged += 1
        else:
            self._draws.append(draw)

    def ask_for(self, ahead_by: int, draws_max: int) -> None:
        """Ask for more: the action in the lead is of a kind with stricter obligations than the first draw's."""
        self.ahead_by = max(self.ahead_by, ahead_by)
        self.draws_max = max(self.draws_max, draws_max)

    def standing(self) -> Standing:
        """How the vote stands now."""
        votes = (draw.action for draw in self._draws)
        return standing(votes, self._flagged, ahead_by=self.ahead_by, draws_max=self.draws_max)

    def draws_needed(self) -> int:
        """How many more draws it takes at the least to decide: so many can be asked for at once without one too many. A draw
        for the leader brings it one nearer to winning; one against it costs a vote of its lead and one of those that are left.
        """
        now = self.standing()
        if now.verdict != "open":
            return 0
        to_win = self.ahead_by - now.margin
        to_lose = (now.margin + self.draws_max - now.draws - self.ahead_by) // 2 + 1
        return max(1, min(to_win, to_lose))

    def move(self) -> Proposal | Finish | None:
        """The leading move, or where several lead, one of them; None without a single valid draw. Its stated confidence is the
        mean of the draws that agree, and of the texts that differ only in what is not compared it has the smallest."""
        leader = self.standing().leader or min((draw.action for draw in self._draws), default=None)
        same = [draw.move for draw in self._draws if draw.action == leader]
        proposals = [move for move in same if isinstance(move, Proposal)]
        if not proposals:
            return min((move for move in same if isinstance(move, Finish)), key=lambda move: move.says, default=None)
        chosen = min(proposals, key=lambda move: (canonical(dict(move.args)), move.says))
        mean = math.fsum(move.confidence for move in proposals) / len(proposals)
        return replace(chosen, confidence=min(1.0, mean))

    def candidates(self) -> list[JSON]:
        """What was voted for, most votes first, for the question to a person and the ledger."""
        found: list[tuple[int, str, JSON]] = []
        for action in {draw.action for draw in self._draws}:
            moves = [draw.move for draw in self._draws if draw.action == action]
            proposals = [move for move in moves if isinstance(move, Proposal)]
            shown: JSON = {"tool": FINISH, "args": {}, "votes": len(moves)}
            if proposals:
                args = min((dict(move.args) for move in proposals), key=canonical)
                shown = {"tool": proposals[0].tool, "args": args, "votes": len(moves)}
            found.append((len(moves), action, shown))
        return [shown for _, _, shown in sorted(found, key=lambda one: (-one[0], one[1]))]
