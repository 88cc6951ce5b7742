"""Finding what matters for a query: full-text and vector search, fused by score, with neighbours, people before agents, and
recency. Given the same records, query vector and candidates, the answer is the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from perdure.memory.catalogue import NONE, Catalogue, Rows
from perdure.memory.dates import named_days
from perdure.memory.embedding import Vectors
from perdure.memory.facts import Standing
from perdure.memory.keys import similarities
from perdure.memory.store import Record
from perdure.memory.terms import QUERY_CHARACTERS_MAX, query_terms
from perdure.memory.words import word_search

CANDIDATES = 400
DAY_US = 86_400_000_000
TOLD_WITHIN_US = 7 * DAY_US

Scores: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """How search results become one order. Chosen on half of the benchmark's conversations, measured on the other half
    (tests/benchmarks/bench_memory.py). Scores, each divided by the best, are added: reciprocal ranks throw away how much
    better the best is, and found all evidence in 4 to 8 % fewer questions."""

    words: float = 0.4  # of the score; the rest is the vectors'
    keys: float = 0.6  # of the vectors' score, the best sentence's; the rest is the whole text's
    sharpness: float = 1.5  # power of a cosine: they lie close together
    neighbours: tuple[float, ...] = (0.3, 0.1)  # of a hit's score, to the records one and two places away
    spread_from: int = 30  # best hits that lend to their neighbours; the others' are noise
    session: float = 0.1  # of the best score in its session, to each record found there
    subject: float = 1.4  # what begins with a word of the query: its speaker, its tool, what a fact is about
    dated: float = 2.0  # what is of a day that the query names, or was told up to a week later
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalled:
    """One record that answers a query. `source` names ledger events; `untrusted` marks a tool's words; `standing` says how the
    fact stands that it tells of (None: it tells of none)."""

    id: str
    text: str
    score: float
    source: str
    at: int
    kind: str
    speaker: str
    untrusted: bool
    standing: Standing | None
    why: str


def search(
    catalogue: Catalogue,
    scope: str,
    query: str,
    *,
    vector: Vectors | None,
    candidates: Rows,
    now: int,
    tokens_max: int | None = None,
    weights: Weights | None = None,
    words: tuple[Rows, Scores] | None = None,
) -> list[Found]:
    """What to recall, best first, as far as the best come to `tokens_max`. `candidates` are what a vector search came up
    with; they are scored again exactly. `words` is what the search by words gave, where that was done already."""
    weights = weights or Weights()
    visible = catalogue.visible(scope)
    by_words, word_scores = words or word_search(catalogue, visible, query, CANDIDATES)
    near = np.union1d(by_words, candidates[visible[candidates]])
    by_vector, similarity = _similarity(catalogue, near, vector, weights)
    base = np.zeros(catalogue.count)
    _add(base, by_words, word_scores, weights.words)
    if vector is not None:  # what has none yet is judged by its words alone, and not as if it were far away
        without = ~np.isin(by_words, by_vector)
        base[by_words[without]] /= weights.words
    _add(base, by_vector, np.maximum(similarity, 0.0) ** weights.sharpness, 1.0 - weights.words)
    scores, beside = _with_neighbours(catalogue, base, visible, weights)
    hits = np.flatnonzero(scores)
    weight = _standing(catalogue, hits, now, weights) * _fit(catalogue, hits, query, now, weights)
    scores = (scores[hits] + weights.session * _best_of_session(catalogue, scores, hits)) * weight
    order = np.lexsort((-hits, -scores))
    if tokens_max is not None:
        order = order[: int(np.searchsorted(np.cumsum(catalogue.length[hits[order]]), tokens_max)) + 1]
    ranked = hits[order]
    records = catalogue.records(np.concatenate([ranked, beside[ranked][beside[ranked] != NONE]]))
    word_rank = {row: rank for rank, row in enumerate(by_words.tolist(), 1)}
    nearest = np.lexsort((-by_vector, -similarity))
    vector_rank = {row: rank for rank, row in enumerate(by_vector[nearest].tolist(), 1)}
    cosine = dict(zip(by_vector.tolist(), similarity.tolist(), strict=True))
    return [
        Found(
            record=records[row],
            score=score,
            word_rank=word_rank.get(row),
            vector_rank=vector_rank.get(row),
            similarity=cosine.get(row),
            beside=records[lender].id if base[row] == 0.0 and lender in records else None,
        )
        for row, score, lender in zip(ranked.tolist(), scores[order].tolist(), beside[ranked].tolist(), strict=True)
        if row in records
    ]


def _similarity(catalogue: Catalogue, rows: Rows, vector: Vectors | None, weights: Weights) -> tuple[Rows, Scores]:
    """Those of `rows` that have vectors, and their exact cosine with the query's: of the whole and of the best sentence."""
    if vector is None:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    held, blobs = catalogue.exact(rows)
    exact, best = similarities(blobs, vector)
    return held, ((1.0 - weights.keys) * exact + weights.keys * best).astype(np.float64)


def _add(base: Scores, rows: Rows, scores: Scores, weight: float) -> None:
    """Scores divided by their best, so that BM25 and cosines can be added."""
    if len(rows) and (best := float(scores.max())) > 0.0:
        base[rows] += weight * scores / best


def _with_neighbours(
    catalogue: Catalogue, base: Scores, visible: NDArray[np.bool_], weights: Weights
) -> tuple[Scores, NDArray[np.int64]]:
    """Each record's score with what the hits around it lend, and of each the hit that lent most."""
    scores = base.copy()
    lenders = np.full(len(base), NONE, dtype=np.int64)
    hits = np.flatnonzero(base)
    hits = hits[np.argsort(base[hits], kind="stable")][
        -weights.spread_from :
    ]  # who lends most comes last, and is the one remembered
    for column in (catalogue.before, catalogue.after):
        near: Rows = hits
        lender: Rows = hits
        for share in weights.neighbours:
            near = column[near].astype(np.int64)
            near, lender = near[near != NONE], lender[near != NONE]
            seen = visible[near]
            np.add.at(scores, near[seen], share * base[lender[seen]])
            lenders[near[seen]] = lender[seen]
    return scores, lenders


def _best_of_session(catalogue: Catalogue, scores: Scores, hits: Rows) -> Scores:
    """The best score in the session of each hit; those of no session stand for themselves."""
    session = catalogue.session[hits]
    best = np.zeros(catalogue.sessions + 1)
    np.maximum.at(best, session, scores[hits])
    best[NONE] = 0.0
    return best[session]


def _standing(catalogue: Catalogue, rows: Rows, now: int, weights: Weights) -> Scores:
    """People before agents, the recent before the old."""
    days = np.maximum(0, now - catalogue.at[rows]) / DAY_US
    recent = 1.0 + weights.recency * np.exp(-days / weights.recency_days)
    return recent * np.where(catalogue.person[rows], weights.person, 1.0)


def _fit(catalogue: Catalogue, rows: Rows, query: str, now: int, weights: Weights) -> Scores:
    """What the query's own names and dates point at."""
    fit = np.where(catalogue.begins_with(rows, query_terms(query)), weights.subject, 1.0)
    if len(rows):
        at = catalogue.at[rows]
        told = np.zeros(len(rows), dtype=np.bool_)
        for start, end in named_days(query[:QUERY_CHARACTERS_MAX], int(at.min()), now):
            told |= (at >= start - DAY_US) & (at < end + TOLD_WITHIN_US)
        fit[told] *= weights.dated
    return fit
