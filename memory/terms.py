"""The words of a text that say what it is about."""

from __future__ import annotations

import re

QUERY_CHARACTERS_MAX = 4_000
SUBJECT_WITHIN = 80  # characters of a text's beginning in which its first word stands

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


def query_terms(query: str) -> list[str]:
    """The words of a query that are worth looking for, without repetition."""
    found = _TERM.findall(query[:QUERY_CHARACTERS_MAX].replace("\x00", " "))
    terms = {word.casefold().removesuffix("'s") for word in found}
    return sorted(term for term in terms if term not in STOPWORDS and len(term) < 200)[:64]


def subject(text: str) -> str:
    """The word that a text begins with: who speaks, the tool that was called, what a fact is about."""
    found = _TERM.search(text[:SUBJECT_WITHIN])
    return "" if found is None else found[0].casefold()
