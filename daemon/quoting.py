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
_WORD = re.compile(r"\w(?:[\w.@:/%+-]*\w)?")
# A short text is looked for between all that divides words, a name within an address also; scripts without blanks by character.
_PART = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
_ESCAPED = re.compile(r'\\(?:u([0-9a-fA-F]{4})|["\\/bfnrt])')  # JSON within a text, as an excerpt shows it

Words = tuple[str, ...]


def quoting(reader: LedgerReader, seqs: Collection[int]) -> list[Event]:
    """The events after the first of `seqs` that still hold words of their payloads, oldest first. Reads every payload since:
    for a command line, not for the loop."""
    said = [text for seq in seqs for text in _said(_payload(reader, seq))]
    runs = {run for text in said if len(_words(text)) > IN_A_ROW for run in _runs(_words(text))}
    instructed = "".join(_parts(text) for seq in seqs for text in _instruction(reader, seq))
    whole = {
        _parts(text) for text in said if len(_words(text)) <= IN_A_ROW and len(text.strip()) >= SHORT_CHARACTERS_MIN
    }
    whole = {text for text in whole if text.strip() and text not in instructed}
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
    for text in _said(payload, names=True):
        if any(run in runs for run in _runs(_words(text))):
            return True
        parts = _parts(text)
        if any(short in parts for short in whole):
            return True
    return False


def _instruction(reader: LedgerReader, seq: int) -> Iterator[str]:
    """What the task's own file says, which is in every context."""
    event = reader.event(seq)
    session = None if event is None else event.body.get("session")
    if session:
        for opened in reader.events(types=("session.opened",), session=str(session)):
            yield from _said(_payload(reader, opened.seq))


def _said(payload: JSON, *, names: bool = False) -> Iterator[str]:
    """Each text in a payload, casefolded; of objects that others made, their `names` as well."""
    if isinstance(payload, dict):
        payload = {name: each for name, each in payload.items() if name not in _OWN}
    yield from _texts(payload, names)


def _texts(value: JSON, names: bool) -> Iterator[str]:
    if isinstance(value, str):
        yield _ESCAPED.sub(lambda found: chr(int(found[1], 16)) if found[1] else " ", value).casefold()
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each, names)
    elif isinstance(value, dict):
        for name, each in value.items():
            if names:
                yield name.casefold()
            yield from _texts(each, names)


def _words(text: str) -> Words:
    return tuple(_WORD.findall(text))


def _runs(words: Sequence[str]) -> Iterator[Words]:
    return zip(*(islice(words, start, None) for start in range(IN_A_ROW)), strict=False)


def _parts(text: str) -> str:
    return f" {' '.join(_PART.findall(text))} "
