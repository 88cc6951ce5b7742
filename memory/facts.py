"""Facts with validity, settled from claims: a newer value closes the older one, a person's word outranks an agent's, and
what contradicts it is shown beside it, never averaged in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from perdure.memory.store import Claim, Speaker, fact_key

VALUE_MAX = 4_000  # characters; a longer value is a document, not a fact
SOURCES_MAX = 8  # ledger events that a fact names; how often it was confirmed is counted beyond

Standing: TypeAlias = Literal["current", "superseded", "disputed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """`attribute` of `subject` was `value` from `valid_from` to `valid_to` (None: still). `standing`: current, superseded, or
    disputed (an agent's claim against a person's). `source` names ledger events (`#12`); `confirmed` counts repetitions."""

    id: str
    task: str | None
    subject: str
    attribute: str
    value: str
    valid_from: int
    valid_to: int | None
    source: str
    speaker: Speaker
    standing: Standing = "current"
    superseded_by: str | None = None
    confirmed: int = 1


def settle(claims: Iterable[Claim], *, shared: bool = False) -> list[Fact]:
    """The facts that these claims come to, oldest first. A claim for every task (`task` None) counts for each. With `shared`
    the tasks have one memory: who said it makes no difference."""
    everywhere: dict[str, list[Claim]] = defaultdict(list)
    groups: dict[tuple[str, str], list[Claim]] = defaultdict(list)
    for claim in claims:
        key = fact_key(claim.subject, claim.attribute)
        if claim.task is None or shared:
            everywhere[key].append(claim)
        else:
            groups[claim.task, key].append(claim)
    tasks: dict[str, list[str]] = defaultdict(list)
    for task, key in groups:
        tasks[key].append(task)
    for key, of_all in everywhere.items():
        for task in tasks.get(key, [""]):
            groups[task, key] = sorted([*groups[task, key], *of_all], key=lambda claim: claim.seq)
    facts: dict[tuple[str, str], Fact] = {}
    for (task, _), group_claims in groups.items():
        settling = Settling()
        for claim in group_claims:
            settling.add(claim)
        for fact in settling.facts:
            facts.setdefault((fact.id, "" if fact.task is None else task), fact)
    return sorted(facts.values(), key=lambda fact: (fact.valid_from, fact.id))


class Settling:
    """What the claims about one attribute of one subject come to, taken one by one in the order of the ledger: a further claim
    costs the same however many came before."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self.said: list[list[int]] = []  # of each fact, the ledger events that claimed it
        self._current = 0
        self._disputes: list[int] = []

    def add(self, claim: Claim) -> list[int]:
        """Take the next claim; returns which of `facts` it changed or made."""
        fact = Fact(
            id=f"f{claim.seq}",
            task=claim.task,
            subject=claim.subject,
            attribute=claim.attribute,
            value=claim.value,
            valid_from=claim.at,
            valid_to=None,
            source=f"#{claim.seq}",
            speaker=claim.speaker,
        )
        if not self.facts:
            return [self._new(fact, claim)]
        held = self.facts[self._current]
        open_ones = [self._current, *self._disputes]
        same = next((place for place in open_ones if _same(self.facts[place].value, claim.value)), None)
        outranked = held.speaker == "person" and claim.speaker != "person"
        if same is not None and (same == self._current or outranked):
            twin = self.facts[same]
            speaker: Speaker = "person" if claim.speaker == "person" else twin.speaker
            sources = f"{twin.source} #{claim.seq}" if twin.confirmed < SOURCES_MAX else twin.source
            self.facts[same] = replace(twin, confirmed=twin.confirmed + 1, speaker=speaker, source=sources)
            self.said[same].append(claim.seq)
            return [same]
        if outranked:
            self._disputes.append(self._new(replace(fact, standing="disputed"), claim))
            return [self._disputes[-1]]
        for place in open_ones:
            self.facts[place] = replace(
                self.facts[place], valid_to=claim.at, standing="superseded", superseded_by=fact.id
            )
        self._current, self._disputes = self._new(fact, claim), []
        return [*open_ones, self._current]

    def _new(self, fact: Fact, claim: Claim) -> int:
        self.facts.append(fact)
        self.said.append([claim.seq])
        return len(self.facts) - 1


def _same(one: str, other: str) -> bool:
    return " ".join(one.split()).casefold() == " ".join(other.split()).casefold()
