"""The facts of one store, settled once and then kept in step with its claims: what a context asks of them costs what it asks
for, and not what there is."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

from perdure.memory.facts import Fact, Settling
from perdure.memory.rows import WORKSPACE, Claim, fact_key
from perdure.memory.store import Store
from perdure.memory.terms import query_terms


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
        self._with_word: dict[str, set[str]] = defaultdict(set)  # of these, who has a word
        self._ranked: dict[
            str, int
        ] = {}  # these, in the order where no query prefers any, and their places; empty: not known
        self.superseded: set[str] = set()  # the records that say what holds no longer
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
            left = [claim for claim in self._claims.pop(key) if claim.seq != seq]
            for claim in left:
                self._claims[key].append(claim)
                self._settle(key, claim)

    def relevant(self, query: str, limit: int) -> list[Fact]:
        """Facts that hold or are disputed: those that share most words with the query first, then a person's, then the newest."""
        if not self._ranked:
            self._ranked = {id: place for place, id in enumerate(sorted(self._held, key=self._rank))}
        shared = Counter(id for word in query_terms(query) for id in self._with_word.get(word, ()))
        ranked = sorted((-count, self._ranked[id], id) for id, count in shared.items())
        chosen = [id for _, _, id in ranked[:limit]]
        if len(chosen) < limit:
            chosen += islice((id for id in self._ranked if id not in shared), limit - len(chosen))
        return [self._held[id] for id in chosen]

    def _rank(self, id: str) -> tuple[int, int, str]:
        fact = self._held[id]
        return (0 if fact.speaker == "person" else 1, -fact.valid_from, id)

    def _settle(self, key: str, claim: Claim) -> None:
        settling = self._settling[key]
        changed = settling.add(claim)
        for place in changed:
            fact = settling.facts[place]
            self._drop(fact.id)
            if fact.standing == "superseded":
                self.superseded.update(map(_record, settling.said[place]))
            else:
                self._held[fact.id] = fact
                for word in _words(fact):
                    self._with_word[word].add(fact.id)
        self.fact_of[_record(claim.seq)] = settling.facts[changed[-1]].id

    def _drop(self, id: str) -> None:
        self._ranked = {}
        fact = self._held.pop(id, None)
        for word in () if fact is None else _words(fact):
            self._with_word[word].discard(id)
            if not self._with_word[word]:
                del self._with_word[word]


def _words(fact: Fact) -> list[str]:
    return query_terms(f"{fact.subject} {fact.attribute} {fact.value}")


def _record(seq: int) -> str:
    return f"r{seq}"
