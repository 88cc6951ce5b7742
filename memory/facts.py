"""Facts with validity, settled from claims: a newer value closes the older one, a person's word outranks an agent's, and
what contradicts it is shown beside it, never averaged in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from perdure.memory.store import Claim, Speaker, fact_key

VALUE_MAX = 4_000  # characters; a longer value is a document, not a fact


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
    standing: Literal["current", "superseded", "disputed"] = "current"
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
        for fact in _settle_one(group_claims):
            facts.setdefault((fact.id, "" if fact.task is None else task), fact)
    return sorted(facts.values(), key=lambda fact: (fact.valid_from, fact.id))


def _settle_one(claims: list[Claim]) -> list[Fact]:
    settled: list[Fact] = []
    current: int | None = None  # where in `settled` the current fact stands
    disputes: list[int] = []
    for claim in claims:
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
        if current is None:
            settled.append(fact)
            current = len(settled) - 1
            continue
        held = settled[current]
        same = next((i for i in (current, *disputes) if _same(settled[i].value, claim.value)), None)
        outranked = held.speaker == "person" and claim.speaker != "person"
        if same is not None and (same == current or outranked):
            twin = settled[same]
            speaker: Speaker = "person" if claim.speaker == "person" else twin.speaker
            sources = f"{twin.source} #{claim.seq}" if twin.confirmed < 8 else twin.source
            settled[same] = replace(twin, confirmed=twin.confirmed + 1, speaker=speaker, source=sources)
        elif outranked:
            settled.append(replace(fact, standing="disputed"))
            disputes.append(len(settled) - 1)
        else:
            for index in (current, *disputes):
                settled[index] = replace(
                    settled[index], valid_to=claim.at, standing="superseded", superseded_by=fact.id
                )
            settled.append(fact)
            current, disputes = len(settled) - 1, []
    return settled


def _same(one: str, other: str) -> bool:
    return " ".join(one.split()).casefold() == " ".join(other.split()).casefold()
