"""Edited policies over what an agent really did: every recorded decision asked again with the facts of then, and what flips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from perdure.policies.decisions import PolicySet
from perdure.policies.model import Decided, Decision, Facts, ProposedAction

EXAMPLES_MAX = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One past decision: the action and the facts as they were, and what was decided. `paths` are those resolved then."""

    id: str
    at: int
    action: ProposedAction
    facts: Facts
    decided: Decided


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """One past action that the edited policies decide differently."""

    recorded: Recorded
    decision: Decision

    @property
    def loosens(self) -> bool:
        """Whether the edited policies would ask or refuse less."""
        return _RANK[self.decision.decision] < _RANK[self.recorded.decided]


@dataclass(slots=True)
class Replayed:
    """The sum of a replay: how many decisions, how they were and would be decided, and examples of each kind of flip by tool."""

    decisions: int = 0
    before: Counter[str] = field(default_factory=Counter)
    after: Counter[str] = field(default_factory=Counter)
    flips: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # (tool, was, would be)
    examples: dict[tuple[str, str, str], list[Flip]] = field(default_factory=dict)

    @property
    def flipped(self) -> int:
        return sum(self.flips.values())

    @property
    def loosened(self) -> int:
        """How many decisions would be looser: what a reviewer reads first."""
        return sum(count for (_, was, now), count in self.flips.items() if _RANK[now] < _RANK[was])


_RANK: Mapping[str, int] = {"auto": 0, "escalate": 1, "deny": 2}


def decisions(policies: PolicySet, recorded: Iterable[Recorded]) -> Iterator[tuple[Recorded, Decision]]:
    """Each recorded action with what these policies decide about it. Grants are left out: they are answers to old rules."""
    for one in recorded:
        yield one, policies.answer(policies.question(one.action, one.facts))


def replay(policies: PolicySet, recorded: Iterable[Recorded]) -> Replayed:
    """The whole comparison. Pure: hand in an iterator that shows progress, if a person waits."""
    result = Replayed()
    for one, decision in decisions(policies, recorded):
        result.decisions += 1
        result.before[one.decided] += 1
        result.after[decision.decision] += 1
        if decision.decision != one.decided:
            kind = (one.action.tool, one.decided, decision.decision)
            result.flips[kind] += 1
            examples = result.examples.setdefault(kind, [])
            if len(examples) < EXAMPLES_MAX:
                examples.append(Flip(recorded=one, decision=decision))
    return result
