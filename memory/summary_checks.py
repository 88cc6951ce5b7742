"""What a model's summary must pass before it is kept: nothing open lost, nothing invented, every line leading back."""

from __future__ import annotations

import re
from collections.abc import Sequence

from perdure.memory import tokens
from perdure.memory.rows import Record

HEADINGS = ("Done", "Failed", "Open")
MUST_STAY = frozenset(
    {"question", "failure", "refusal", "answer"}
)  # records whose names and numbers no summary may drop
CANARIES_MAX = 60  # of a period with more, the newest count

# Names that somebody could act on: addresses, paths, file names, versions, long numbers, hexadecimal digests, host-1 and the like.
_IDENTIFIER = re.compile(
    r"(?:\d{1,3}\.){3}\d{1,3}|[0-9a-f]{8,}|(?:[\w.-]*/)+[\w.-]+|\b\w+(?:[-_.]\w+)*[-_.]\w*\d\w*\b|\b\w+\.(?:md|log|yaml|json|txt|toml|py|sh)\b|\b\d{3,}\b",
    re.IGNORECASE,
)
_REFERENCE = re.compile(r"\[(r\d+)\]")


def identifiers(text: str) -> set[str]:
    """The names and numbers in a text that a summary may neither drop (where they matter) nor invent."""
    return {found.strip(".-_/").casefold() for found in _IDENTIFIER.findall(_REFERENCE.sub(" ", text))} - {""}


def canaries(records: Sequence[Record]) -> set[str]:
    """The identifiers of what failed, is open, was refused or was said by a person."""
    weighty = [record for record in records if record.kind in MUST_STAY or record.speaker == "person"][-CANARIES_MAX:]
    return {name for record in weighty for name in identifiers(record.text)}


def violations(text: str, records: Sequence[Record], tokens_max: int) -> list[str]:
    """Why a model's summary of these records is not kept; empty where it is."""
    found: list[str] = []
    missing = [heading for heading in HEADINGS if not re.search(rf"^#+ {heading}\s*$", text, re.MULTILINE)]
    if missing:
        found.append(f"headings are missing: {', '.join(missing)}")
    source = "\n".join(record.text for record in records)
    size, limit = tokens.count(text), min(tokens_max, tokens.count(source))
    if size > limit:
        found.append(f"it has {size} tokens, and may have {limit}")
    known = {record.id for record in records}
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if loose := [line for line in lines if not known.intersection(_REFERENCE.findall(line))]:
        found.append(f"{len(loose)} lines name no record, the first: {loose[0][:80]!r}")
    if foreign := sorted(set(_REFERENCE.findall(text)) - known):
        found.append(f"records named that it was not given: {', '.join(foreign[:5])}")
    named = identifiers(text)
    if invented := sorted(named - identifiers(source)):
        found.append(f"names and numbers that the source does not have: {', '.join(invented[:5])}")
    if lost := sorted(canaries(records) - named):
        found.append(f"names and numbers of failed, open or answered matters are lost: {', '.join(lost[:5])}")
    return found
