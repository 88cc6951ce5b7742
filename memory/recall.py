"""Finding what matters for a query: full-text and vector search, fused by rank, with neighbours, people before agents, and
recency. Given the same records, query vector and candidates, the answer is the same."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from perdure.memory.embedding import Vectors
from perdure.memory.schema import scope_word
from perdure.memory.store import WORKSPACE, Record, Store

CANDIDATES = 200
QUERY_CHARACTERS_MAX = 4_000
TERMS_MAX = 12  # the rarest words of a query; an OR over all of them costs 150 ms at 100,000 records
MATCHES_MAX = 20_000  # records that the words may match before the commoner ones are left out
DAY_US = 86_400_000_000

_TERM = re.compile(r"\w[\w.:/@+-]*\w|\w")
# English function words: they match nearly everything and say nothing.
STOPWORDS = frozenset(
    _TERM.findall(
        "a about above after again all also am an and any are as at be because been before being below between both but by can"
        " could did do does doing down during each few for from further had has have having he her here hers him his how i if"
        " in into is it its just me more most my no nor not now of off on once only or other our out over own same she should so"
        " some such than that the their them then there these they this those through to too under until up very was we were"
        " what when where which while who whom why will with would you your yours"
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """How search results become one order. Chosen on half of the benchmark's conversations (tests/benchmarks)."""

    rank_constant: float = 60.0  # of reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009)
    words: float = 1.0
    vectors: float = 1.0
    neighbours: int = 2
    decay: float = 0.5  # of the score, for each place away from a hit
    spread_from: int = 60  # hits whose neighbours are looked at
    person: float = 1.15
    recency: float = 0.1
    recency_days: float = 30.0
    noise: Mapping[str, float] | None = None  # factor of each kind of record


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A record with its score and how it came: ranks count from 1, None where that search did not find it."""

    record: Record
    score: float
    word_rank: int | None
    vector_rank: int | None
    similarity: float | None
    beside: str | None = None  # the hit whose neighbour it is

    @property
    def why(self) -> str:
        """In words, for the manifest."""
        parts = [f"words #{self.word_rank}"] if self.word_rank else []
        parts += [f"vector #{self.vector_rank} ({self.similarity:.3f})"] if self.vector_rank else []
        parts += [f"beside {self.beside}"] if self.beside else []
        return f"recalled: {', '.join(parts)}; score {self.score:.5f}"


class ExactVectors:
    """Every vector of a scope as one matrix, kept in memory while the index is not ready and extended by what is new."""

    def __init__(self) -> None:
        self._scope: str | None = None
        self._ids: list[str] = []
        self._matrix: Vectors = np.zeros((0, 0), dtype=np.float32)
        self._place = 0
        self._version = -1

    def nearest(self, store: Store, scope: str, vector: Vectors, limit: int) -> list[str]:
        """The ids nearest to `vector`, best first."""
        if scope != self._scope or store.vectors_version != self._version:
            self.drop()
        ids, matrix, self._place = store.scope_vectors(scope, self._place)
        if ids:
            self._ids = [*self._ids, *ids]
            self._matrix = np.concatenate([self._matrix, matrix]) if self._matrix.size else matrix
        self._scope, self._version = scope, store.vectors_version
        if not self._ids:
            return []
        scores = self._matrix @ vector
        best = np.argpartition(-scores, limit)[:limit] if limit < len(scores) else np.arange(len(scores))
        order = sorted(best.tolist(), key=lambda index: (-float(scores[index]), self._ids[index]))
        return [self._ids[index] for index in order]

    def drop(self) -> None:
        """Give the memory back: the index serves again, or records were removed."""
        self._scope, self._ids, self._place = None, [], 0
        self._matrix = np.zeros((0, 0), dtype=np.float32)


def search(
    store: Store,
    scope: str,
    query: str,
    *,
    vector: Vectors | None,
    candidates: Sequence[str],
    now: int,
    weights: Weights | None = None,
) -> list[Found]:
    """What to recall, best first. `candidates` are the ids that a vector search came up with; they are scored again exactly."""
    weights = weights or Weights()
    by_words = by_word_search(store, scope, query)
    similarity = _exact(store, vector, candidates)
    by_vector = sorted(similarity, key=lambda each: (-similarity[each], each))[:CANDIDATES]
    word_rank = {id: rank for rank, id in enumerate(by_words, 1)}
    vector_rank = {id: rank for rank, id in enumerate(by_vector, 1)}
    fused = {
        id: _reciprocal(weights.words, word_rank.get(id), weights.rank_constant)
        + _reciprocal(weights.vectors, vector_rank.get(id), weights.rank_constant)
        for id in {**word_rank, **vector_rank}
    }
    records = store.records(list(fused))
    fused = {id: score for id, score in fused.items() if id in records and _visible(records[id], scope)}
    beside: dict[str, str] = {}
    scores = dict(fused)
    for id in sorted(fused, key=lambda each: (-fused[each], each))[: weights.spread_from]:
        for place, neighbour in store.neighbours(records[id], weights.neighbours):
            if not _visible(neighbour, scope):
                continue
            lent = fused[id] * weights.decay ** abs(place)
            records.setdefault(neighbour.id, neighbour)
            if lent > scores.get(neighbour.id, 0.0):
                scores[neighbour.id] = lent
                beside[neighbour.id] = id
    found = [
        Found(
            record=records[id],
            score=score * _standing(records[id], now, weights),
            word_rank=word_rank.get(id),
            vector_rank=vector_rank.get(id),
            similarity=similarity.get(id),
            beside=beside.get(id),
        )
        for id, score in scores.items()
    ]
    return sorted(found, key=lambda each: (-each.score, -each.record.seq, each.record.id))


def by_word_search(store: Store, scope: str, query: str) -> list[str]:
    """The ids of records that hold the query's words, best first (BM25, stemmed, any of the words)."""
    terms = query_terms(query)
    if not terms:
        return []
    stems = {term: store.stems(term) for term in terms}
    stems = {term: parts for term, parts in stems.items() if parts}
    frequency = store.frequencies(sorted({part for parts in stems.values() for part in parts}))
    # A term of several parts (an address, a path) is a phrase: it is at most as common as its rarest part.
    common = {term: min(frequency.get(part, 0) for part in parts) for term, parts in stems.items()}
    chosen: list[str] = []
    matches = 0
    for term in sorted((term for term in common if common[term]), key=lambda term: (common[term], term)):
        if chosen and (len(chosen) >= TERMS_MAX or matches + common[term] > MATCHES_MAX):
            break
        chosen.append(term)
        matches += common[term]
    if not chosen:
        return []
    words = " OR ".join('"' + term.replace('"', '""') + '"' for term in sorted(chosen))
    scopes = "" if scope == WORKSPACE else f'scope : ("{scope_word(scope)}" OR "{scope_word(None)}") AND '
    return [id for id, _ in store.matching(f"{scopes}text : ({words})", CANDIDATES)]


def query_terms(query: str) -> list[str]:
    """The words of a query that are worth looking for, without repetition."""
    found = _TERM.findall(query[:QUERY_CHARACTERS_MAX].replace("\x00", " "))
    terms = {word.casefold().removesuffix("'s") for word in found}
    return sorted(term for term in terms if term not in STOPWORDS and len(term) < 200)[:64]


def _reciprocal(weight: float, rank: int | None, constant: float) -> float:
    return 0.0 if rank is None else weight / (constant + rank)


def _exact(store: Store, vector: Vectors | None, candidates: Sequence[str]) -> dict[str, float]:
    if vector is None:
        return {}
    held = store.vectors(sorted(set(candidates)))
    return {id: float(np.dot(found, vector)) for id, found in held.items()}


def _visible(record: Record, scope: str) -> bool:
    return scope == WORKSPACE or record.task is None or record.task == scope


def _standing(record: Record, now: int, weights: Weights) -> float:
    days = max(0, now - record.at) / DAY_US
    factor = 1.0 + weights.recency * math.exp(-days / weights.recency_days)
    if record.speaker == "person":
        factor *= weights.person
    return factor * (weights.noise or {}).get(record.kind, 1.0)
