"""The facts of one store, settled once and then kept in step with its claims: what a context asks of them costs what it asks
for, and not what there is."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from heapq import nsmallest
from itertools import chain, islice
from typing import TypeAlias

from perdure.memory.facts import Fact, Settling, Standing
from perdure.memory.rows import WORKSPACE, Claim, fact_key
from perdure.memory.store import Store
from perdure.memory.terms import query_terms

Rank: TypeAlias = tuple[
    int, int, str
]  # where a fact stands where no query prefers any: a person's first, then the newest


class Settled:
    """The facts that each scope sees, made when it first asks. `refresh` first."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._scopes: dict[str, FactsOfScope] = {}
        self._last = 0  # the newest claim that the scopes have

    def refresh(self) -> None:
        """Take in what was claimed, and take out what was removed, since the last time."""
        removed = self._store.take_removed_claims()
        if removed is None:  # nobody knows: a transaction that removed was rolled back
            self._scopes.clear()
        for facts in self._scopes.values():
            facts.remove(removed or ())
        for claim in self._store.claims_after(self._last) if self._scopes else ():
            for scope, facts in self._scopes.items():
                if scope == WORKSPACE or claim.task in {None, scope}:
                    facts.add(claim)
            self._last = claim.seq

    def of(self, scope: str) -> FactsOfScope:
        """The facts that a scope sees."""
        if scope not in self._scopes:
            facts = FactsOfScope()
            for claim in self._store.claims(scope):
                facts.add(claim)
            self._scopes[scope] = facts
            self._last = self._store.last_claim()  # nothing was claimed since the others were refreshed
        return self._scopes[scope]


class FactsOfScope:
    """The facts that one scope sees, and what a context asks about them."""

    def __init__(self) -> None:
        self._claims: dict[str, list[Claim]] = defaultdict(list)  # by what they speak of, oldest first
        self._key: dict[int, str] = {}  # of each claim
        self._settling: dict[str, Settling] = defaultdict(Settling)
        self._held: dict[str, Fact] = {}  # those that hold and those disputed
        self._rank: dict[str, Rank] = {}
        # What finds them is made when somebody asks, of those that hold then: most of a long history holds no longer.
        self._ranked: list[Rank] | None = None  # in order
        self._with_word: dict[str, set[str]] = defaultdict(set)  # who has a word
        self.superseded: set[str] = set()  # the records that say what holds no longer
        self.disputed: set[str] = set()  # those that say otherwise than a person did
        self.fact_of: dict[str, str] = {}  # the fact that a record tells of

    def add(self, claim: Claim) -> None:
        """The next claim, in the order of the ledger."""
        key = fact_key(claim.subject, claim.attribute)
        self._claims[key].append(claim)
        self._key[claim.seq] = key
        self._settle(key, claim)

    @contextmanager
    def with_more(self, claims: Sequence[Claim]) -> Iterator[None]:
        """As it will be when these, which memory has not read yet, are taken in at their place."""
        for claim in claims:
            self.add(claim)
        try:
            yield
        finally:
            self.remove([claim.seq for claim in claims])

    def remove(self, seqs: Iterable[int]) -> None:
        """Nobody claimed this: what else was claimed of the same is settled again."""
        for seq in seqs:
            key = self._key.pop(seq, None)
            if key is None:
                continue
            settled = self._settling.pop(key)
            for fact, said in zip(settled.facts, settled.said, strict=True):
                self._drop(fact.id)
                for each in said:
                    del self.fact_of[_record(each)]
                    self.superseded.discard(_record(each))
                    self.disputed.discard(_record(each))
            left = [claim for claim in self._claims.pop(key) if claim.seq != seq]
            for claim in left:
                self._claims[key].append(claim)
                self._settle(key, claim)

    def standing(self, record: str) -> Standing | None:
        """How the fact stands that this record tells of; None where it tells of none."""
        if record not in self.fact_of:
            return None
        return "superseded" if record in self.superseded else "disputed" if record in self.disputed else "current"

    def relevant(self, query: str, limit: int) -> list[Fact]:
        """Facts that hold or are disputed: those that share most words with the query first, then a person's, then the newest."""
        if self._ranked is None:
            self._ranked = sorted(self._rank.values())
            for fact in self._held.values():
                self._index(fact)
        shared = Counter(chain.from_iterable(self._with_word.get(word, ()) for word in query_terms(query)))
        sharing: dict[int, list[str]] = defaultdict(list)
        for id, count in shared.items():
            sharing[count].append(id)
        chosen: list[str] = []
        for count in sorted(sharing, reverse=True):
            ranks = map(self._rank.__getitem__, sharing[count])
            chosen += [rank[-1] for rank in nsmallest(limit - len(chosen), ranks)]
        if len(chosen) < limit:
            chosen += islice((id for *_, id in self._ranked if id not in shared), limit - len(chosen))
        return [self._held[id] for id in chosen]

    def _settle(self, key: str, claim: Claim) -> None:
        settling = self._settling[key]
        changed = settling.add(claim)
        for place in changed:
            fact = settling.facts[place]
            self._drop(fact.id)
            if fact.standing == "superseded":
                said = set(map(_record, settling.said[place]))
                self.superseded |= said
                self.disputed -= said
            else:
                self._hold(fact)
        fact = settling.facts[changed[-1]]
        self.fact_of[_record(claim.seq)] = fact.id
        if fact.standing == "disputed":
            self.disputed.add(_record(claim.seq))

    def _hold(self, fact: Fact) -> None:
        self._held[fact.id] = fact
        self._rank[fact.id] = rank = (0 if fact.speaker == "person" else 1, -fact.valid_from, fact.id)
        if self._ranked is not None:
            insort(self._ranked, rank)
            self._index(fact)

    def _index(self, fact: Fact) -> None:
        for word in _words(fact):
            self._with_word[word].add(fact.id)

    def _drop(self, id: str) -> None:
        fact, rank = self._held.pop(id, None), self._rank.pop(id, None)
        if fact is None or rank is None or self._ranked is None:
            return
        del self._ranked[bisect_left(self._ranked, rank)]
        for word in _words(fact):
            self._with_word[word].discard(id)
            if not self._with_word[word]:
                del self._with_word[word]


def _words(fact: Fact) -> list[str]:
    return query_terms(f"{fact.subject} {fact.attribute} {fact.value}")


def _record(seq: int) -> str:
    return f"r{seq}"
