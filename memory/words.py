"""Full-text search: the rarest words of a query, by BM25. FTS5 finds who holds a word; the scores are added up here, because
its own ranking reads every match (28 ms for 7,000, against 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from perdure.memory.catalogue import Catalogue, Rows, best_first
from perdure.memory.terms import query_terms

TERMS_MAX = 12  # the rarest words of a query; an OR over all of them costs 150 ms at 100,000 records
MATCHES_MAX = 6_000  # records that the words may match before the commoner ones are left out
SATURATION, LENGTH_SHARE = 1.2, 0.75  # k1 and b of BM25, as FTS5 has them


def word_search(
    catalogue: Catalogue, visible: NDArray[np.bool_], query: str, limit: int
) -> tuple[Rows, NDArray[np.float64]]:
    """The records that hold any of the query's words (stemmed) and their BM25, best first, newest of equals first.

    How often a record holds a word does not count: records are short, and FTS5 would have to read each match to tell.
    """
    score = np.zeros(catalogue.count)
    length = catalogue.length[: catalogue.count]
    living = catalogue.living
    mean = max(1.0, float(length[catalogue.alive[: catalogue.count]].mean())) if living else 1.0
    for term in _rarest(catalogue, query_terms(query)):
        sql = "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rowid DESC LIMIT ?"
        found = catalogue.store.query(sql, (_expression(term), MATCHES_MAX)).fetchall()
        rows = catalogue.rows_at(np.array(found, dtype=np.int64).reshape(-1))
        rarity = math.log1p((living - len(rows) + 0.5) / (len(rows) + 0.5))
        score[rows] += (
            rarity * (SATURATION + 1) / (1 + SATURATION * (1 - LENGTH_SHARE + LENGTH_SHARE * length[rows] / mean))
        )
    score *= visible
    hits = best_first(np.flatnonzero(score), score, limit)
    return hits, score[hits]


def _rarest(catalogue: Catalogue, terms: Sequence[str]) -> list[str]:
    """The terms that are searched for, the rarest first. One that too many hold is searched for only if all are such, and
    then among the newest."""
    sql = "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT ?)"
    held: dict[str, int] = {}
    for term in terms:
        if term in catalogue.common_terms:
            held[term] = MATCHES_MAX + 1
            continue
        held[term] = int(catalogue.store.query(sql, (_expression(term), MATCHES_MAX + 1)).fetchone()[0])
        if held[term] > MATCHES_MAX:
            catalogue.common_terms.add(term)
    chosen: list[str] = []
    matches = 0
    for term in sorted((term for term in held if held[term]), key=lambda term: (held[term], term)):
        if chosen and (len(chosen) >= TERMS_MAX or matches + held[term] > MATCHES_MAX):
            break
        chosen.append(term)
        matches += held[term]
    return chosen


def _expression(term: str) -> str:
    """FTS5's for one term; one of several parts (an address, a path) is a phrase."""
    return 'text : "' + term.replace('"', '""') + '"'
