"""What a model's summary must pass before it is kept: nothing open lost, nothing invented, every line leading back."""

from __future__ import annotations

import re
from collections.abc import Sequence

from perdure.memory import tokens
from perdure.memory.excerpts import hides
from perdure.memory.rows import Record

HEADINGS = ("Done", "Failed", "Open")
# The kinds of records whose names and numbers no summary may drop.
MUST_STAY = frozenset({"question", "failure", "refusal", "answer"})
CANARIES_MAX = 60  # of a period with more, the newest count

# Words that may be names; which of them are is decided word by word, in time that grows with the text and no faster.
_WORD = re.compile(r"[\w./-]+")
_HEXADECIMAL = re.compile(r"[0-9a-f]{8,}")
_HOST = re.compile(r"[\w-]{2,}(?:\.[\w-]{2,})+")
_FILES = (".md", ".log", ".yaml", ".json", ".txt", ".toml", ".py", ".sh")
_REFERENCE = re.compile(r"\[(r\d+)\]")
_MARK = re.compile(r"\[r\d+\](?: \(untrusted\))?")


def identifiers(text: str) -> set[str]:
    """The names and numbers in a text that a summary may neither drop (where they matter) nor invent: what somebody could act
    on, such as addresses, hosts, paths, file names, versions, long numbers, hexadecimal digests, host-1 and the like."""
    words = {word.strip(".-_/").casefold() for word in _WORD.findall(_MARK.sub(" ", text))}
    return {word for word in words if _is_name(word)}


def _is_name(word: str) -> bool:
    digits = sum(character.isdigit() for character in word)
    if "/" in word or word.endswith(_FILES) or _HEXADECIMAL.fullmatch(word) or _HOST.fullmatch(word):
        return True
    return digits >= 3 if digits == len(word) else digits > 0 and any(mark in word for mark in "-_.")


def canaries(records: Sequence[Record]) -> set[str]:
    """The identifiers of what failed, is open, was refused or was said by a person."""
    weighty = [record for record in records if record.kind in MUST_STAY or record.speaker == "person"][-CANARIES_MAX:]
    return {name for record in weighty for name in identifiers(record.text)}


def open_matters(records: Sequence[Record]) -> list[str]:
    """The records of questions to people and of actions whose end nobody knew: a summary names each."""
    return [
        record.id
        for record in records
        if record.kind == "question" or (record.kind == "failure" and ") unknown" in record.text)
    ][-CANARIES_MAX:]


def violations(text: str, records: Sequence[Record], tokens_max: int, *, shown: str = "") -> list[str]:
    """Why a model's summary of these records is not kept; empty where it is. `shown` is how they were shown to the model,
    where that says more than their texts (times)."""
    source = "\n".join(record.text for record in records)
    size, limit = tokens.count(text), min(tokens_max, tokens.count(source) - 1)
    if size > limit:
        return [f"it has {size} tokens, and may have {limit}"]  # whatever else it is: nobody reads it all
    found: list[str] = []
    lines = [line for line in text.splitlines() if line.strip()]
    headings = [line.strip() for line in lines if line.lstrip().startswith("#")]
    missing = [heading for heading in HEADINGS if f"## {heading}" not in headings]
    if missing:
        found.append(f"headings are missing: {', '.join(missing)}")
    elif headings != [f"## {heading}" for heading in HEADINGS]:
        found.append(f"other headings, or in another order: {', '.join(headings)[:120]!r}")
    if lines and not lines[0].startswith("#"):
        found.append("there is text before the first heading")
    if hides(text):
        found.append("there are characters that hide or reorder text")
    known = {record.id for record in records}
    told = [line for line in lines if not line.lstrip().startswith("#")]
    if loose := [line for line in told if not known.intersection(_REFERENCE.findall(line))]:
        found.append(f"{len(loose)} lines name no record, the first: {loose[0][:80]!r}")
    if foreign := sorted(set(_REFERENCE.findall(text)) - known):
        found.append(f"records named that it was not given: {', '.join(foreign[:5])}")
    named = identifiers(text)
    if invented := sorted(named - identifiers(f"{source}\n{shown}")):
        found.append(f"names and numbers that the source does not have: {', '.join(invented[:5])}")
    if lost := sorted(canaries(records) - named):
        found.append(f"names and numbers of failed, open or answered matters are lost: {', '.join(lost[:5])}")
    if open_lost := [id for id in open_matters(records) if f"[{id}]" not in text]:
        found.append(f"open matters are lost: {', '.join(open_lost[:5])}")
    return found
