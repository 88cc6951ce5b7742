"""Finding what matters for a query: full-text and vector search, fused by score, with neighbours, people before agents, and
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

CANDIDATES = 400
QUERY_CHARACTERS_MAX = 4_000
TERMS_MAX = 12  # the rarest words of a query; an OR over all of them costs 150 ms at 100,000 records
MATCHES_MAX = 6_000  # records that the words may match before the commoner ones are left out
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
    """How search results become one order. Chosen on half of the benchmark's conversations, measured on the other half
    (tests/benchmarks/bench_memory.py). Scores, each divided by the best, are added: reciprocal ranks throw away how much
    better the best is, and found all evidence in 4 to 8 % fewer questions."""

    words: float = 0.5  # of the score; the rest is the vectors'
    neighbours: tuple[float, ...] = (0.3, 0.1)  # of a hit's score, to the records one and two places away
    spread_from: int = 100  # hits whose neighbours are looked up
    session: float = 0.2  # of the best score in its session, to each record found there
    feedback: float = (
        0.3  # of the best hits' mean vector, added to the query's before all is scored again (Rocchio 1971)
    )
    feedback_from: int = 3
    person: float = 1.15
    recency: float = 0.03  # more costs old evidence (0.1: half a percent); the story tells what is recent
    recency_days: float = 30.0


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
        return f"recalled: {', '.join(parts)}; score {self.score:.4f}"


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
    matched = dict(by_words)
    held = {} if vector is None else store.vectors(sorted({*candidates, *matched}))
    similarity = _similarity(held, vector)
    records = {id: each for id, each in store.records(list({**matched, **similarity})).items() if _visible(each, scope)}
    base = _fused(matched, similarity, records, weights)
    scores, beside = _with_neighbours(store, base, records, scope, weights)
    best_of_session: dict[str, float] = {}
    for id, score in scores.items():
        if session := records[id].session:
            best_of_session[session] = max(score, best_of_session.get(session, 0.0))
    word_rank = {id: rank for rank, (id, _) in enumerate(by_words, 1)}
    vector_rank = {
        id: rank for rank, id in enumerate(sorted(similarity, key=lambda each: (-similarity[each], each)), 1)
    }
    found = [
        Found(
            record=record,
            score=(scores[id] + weights.session * best_of_session.get(record.session or "", 0.0))
            * _standing(record, now, weights),
            word_rank=word_rank.get(id),
            vector_rank=vector_rank.get(id),
            similarity=similarity.get(id),
            beside=beside.get(id),
        )
        for id, record in records.items()
        if id in scores
    ]
    return sorted(found, key=lambda each: (-each.score, -each.record.seq, each.record.id))


def _fused(
    matched: Mapping[str, float], similarity: Mapping[str, float], records: Mapping[str, Record], weights: Weights
) -> dict[str, float]:
    """BM25 and cosine, each divided by its best, weighted and added."""
    most_words = max(matched.values(), default=0.0) or 1.0
    nearest = max(similarity.values(), default=0.0)
    return {
        id: weights.words * matched.get(id, 0.0) / most_words
        + (1.0 - weights.words) * (max(0.0, similarity.get(id, 0.0)) / nearest if nearest > 0.0 else 0.0)
        for id in records
    }


def _with_neighbours(
    store: Store, base: Mapping[str, float], records: dict[str, Record], scope: str, weights: Weights
) -> tuple[dict[str, float], dict[str, str]]:
    """Each record's score with what the hits around it lend. Neighbours that no search found are added to `records`."""
    scores = dict(base)
    beside: dict[str, str] = {}
    lent: dict[str, float] = {}
    places = store.places(list(base))
    standing = {place: id for id, place in places.items()}
    reach = [distance * side for distance in range(1, len(weights.neighbours) + 1) for side in (-1, 1)]
    best = sorted((id for id in base if id in places), key=lambda each: (-base[each], each))
    unseen = {
        (places[id][0], places[id][1] + step) for id in best[: weights.spread_from] for step in reach
    } - standing.keys()
    for place, neighbour in store.standing_at(sorted(unseen)).items():
        if _visible(neighbour, scope):
            records[neighbour.id] = neighbour
            standing[place] = neighbour.id
    for id in best:
        session, at = places[id]
        for step in reach:
            near = standing.get((session, at + step))
            if near is None:
                continue
            gift = base[id] * weights.neighbours[abs(step) - 1]
            scores[near] = scores.get(near, 0.0) + gift
            if near not in base and gift > lent.get(near, 0.0):
                lent[near], beside[near] = gift, id
    return scores, beside


def by_word_search(store: Store, scope: str, query: str) -> list[tuple[str, float]]:
    """Ids and BM25 of the records that hold the query's words, best first (BM25, stemmed, any of the words)."""
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
    return store.matching(f"{scopes}text : ({words})", CANDIDATES)


def query_terms(query: str) -> list[str]:
    """The words of a query that are worth looking for, without repetition."""
    found = _TERM.findall(query[:QUERY_CHARACTERS_MAX].replace("\x00", " "))
    terms = {word.casefold().removesuffix("'s") for word in found}
    return sorted(term for term in terms if term not in STOPWORDS and len(term) < 200)[:64]


def _similarity(held: Mapping[str, Vectors], vector: Vectors | None) -> dict[str, float]:
    """The cosine of each vector with the query's."""
    if vector is None or not held:
        return {}
    cosines = np.stack(list(held.values())) @ vector
    return dict(zip(held, cosines.tolist(), strict=True))


def _visible(record: Record, scope: str) -> bool:
    return scope == WORKSPACE or record.task is None or record.task == scope


def _standing(record: Record, now: int, weights: Weights) -> float:
    days = max(0, now - record.at) / DAY_US
    factor = 1.0 + weights.recency * math.exp(-days / weights.recency_days)
    if record.speaker == "person":
        factor *= weights.person
    return factor
