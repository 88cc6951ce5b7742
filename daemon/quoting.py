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
SEQS_AT_ONCE = 500
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
    found: list[int] = []
    head = reader.head().seq
    for start in range(min(seqs, default=head), head, SEQS_AT_ONCE) if runs or whole else ():
        sql = "SELECT seq FROM payloads WHERE seq > ? AND seq <= ? ORDER BY seq"
        some = [seq for (seq,) in reader.rows(sql, start, start + SEQS_AT_ONCE) if seq not in seqs]
        found += [seq for seq in some if _quotes(_payload(reader, seq), runs, whole)]
    return [event for seq in found if (event := reader.event(seq)) is not None]


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
