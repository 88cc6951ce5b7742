"""What else in the ledger says what a payload says: the contexts, requests, replies and proposals after it that quote it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from perdure.state.events import JSON

if TYPE_CHECKING:
    from perdure.state.events import Event
    from perdure.state.reading import LedgerReader

IN_A_ROW = 5  # words: so many that stand in the same order elsewhere are a quotation
SHORT_CHARACTERS_MIN = 8  # of a text with fewer words, which is looked for as a whole
# What Perdure itself wrote into a payload, beside what was said.
_OWN = frozenset({"provenance", "paths", "cwd", "manifest", "left_out", "candidates", "candidates_by", "covers"})
_WORD = re.compile(r"\w[\w.@:/%+-]*")
_ESCAPED = re.compile(r'\\[nrt"]')  # JSON within a text, as an excerpt shows it

Words = tuple[str, ...]


def quoting(reader: LedgerReader, seqs: Collection[int]) -> list[Event]:
    """The events after the first of `seqs` that still hold words of their payloads, oldest first. Reads every payload since:
    for a command line, not for the loop."""
    said = [words for seq in seqs for words in _said(_payload(reader, seq))]
    runs = {run for words in said if len(words) > IN_A_ROW for run in _runs(words)}
    instructed = "".join(_joined(words) for seq in seqs for words in _instruction(reader, seq))
    whole = {_joined(words) for words in said if len(words) <= IN_A_ROW}
    whole = {text for text in whole if len(text) - 2 >= SHORT_CHARACTERS_MIN and text not in instructed}
    if not runs and not whole:
        return []
    return [
        event
        for event in reader.events(after=min(seqs))
        if event.payload_hash and event.seq not in seqs and _quotes(_payload(reader, event.seq), runs, whole)
    ]


def _payload(reader: LedgerReader, seq: int) -> JSON:
    try:
        return reader.payload(seq)
    except ValueError:  # damaged bytes, which `perdure verify` names
        return None


def _quotes(payload: JSON, runs: Collection[Words], whole: Collection[str]) -> bool:
    for words in _said(payload):
        if any(run in runs for run in _runs(words)):
            return True
        text = _joined(words)
        if any(short in text for short in whole):
            return True
    return False


def _instruction(reader: LedgerReader, seq: int) -> Iterator[Words]:
    """What the task's own file says, which is in every context."""
    event = reader.event(seq)
    session = None if event is None else event.body.get("session")
    if session:
        for opened in reader.events(types=("session.opened",), session=str(session)):
            yield from _said(_payload(reader, opened.seq))


def _said(payload: JSON) -> Iterator[Words]:
    """The words of each text in a payload."""
    if isinstance(payload, str):
        yield tuple(_WORD.findall(_ESCAPED.sub(" ", payload).casefold()))
    elif isinstance(payload, list):
        for each in payload:
            yield from _said(each)
    elif isinstance(payload, dict):
        for name, each in payload.items():
            if name not in _OWN:
                yield from _said(each)


def _runs(words: Sequence[str]) -> Iterator[Words]:
    return zip(*(islice(words, start, None) for start in range(IN_A_ROW)), strict=False)


def _joined(words: Sequence[str]) -> str:
    return f" {' '.join(words)} "
