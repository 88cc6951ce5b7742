"""A red flag: a planner that says it has done what no outcome in the ledger shows.

Only plain claims count: "I wrote reports/x.md", "sent the message to ops@…": a verb of doing in the past with a path, and
in the first person also without one. Plans, wishes, refusals and quotations of what was read are no claims."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perdure.daemon.planners.moves import Taken
    from perdure.state.events import JSON

_DOING = (
    r"wrote|written|saved|created|generated|produced|appended|updated|overwrote|overwritten|stored|moved|renamed|copied|"
    r"deleted|removed|sent|posted|uploaded|notified|published|executed"
)
_DONE = re.compile(rf"\b({_DOING})\b", re.IGNORECASE)
_FIRST_PERSON = re.compile(
    rf"\b(?:i|we)(?:'ve| have| just| already| also| successfully)*\s+(?:{_DOING})\b"
    rf"|\b(?:has|have) been (?:successfully )?(?:{_DOING})\b",
    re.IGNORECASE,
)
_UNDONE = re.compile(
    r"\b(?:not|n't|never|no|will|would|should|could|can|cannot|must|may|might|shall|going to|need|needs|want|plan|plans|"
    r"about to|to be|if|once|when|after|before|until|unless|please|earlier|previous|previously|last|yesterday|already "
    r"(?:there|exists)|failed to|unable)\b|n't\b",
    re.IGNORECASE,
)
_READING = re.compile(
    r"\b(?:from|of|using|in|against|for|read|reading|found|saw|seen|listed|checked|based on|about|see|per)\b",
    re.IGNORECASE,
)
_PATH = re.compile(r"(?<![\w/.-])(?:~?/|\.{1,2}/)?[\w.-]+(?:/[\w.-]+)*(?:\.[A-Za-z][A-Za-z0-9]{0,7}|/[\w-]+)(?![\w/])")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+|;\s+")
SENTENCES_MAX = 60
SHOWN = 160


def false_claim(says: str, taken: Sequence[Taken]) -> str | None:
    """What the text claims that no successful effect among `taken` bears out, in words for the planner; None where there is
    no such claim."""
    if not says or _DONE.search(says) is None:
        return None
    effects = [step for step in taken if step.changed]
    shown = [text for step in effects for text in (*_texts(dict(step.proposal.args)), *_texts(step.result))]
    for sentence in _SENTENCE.split(says)[:SENTENCES_MAX]:
        if _UNDONE.search(sentence) is not None:
            continue
        for path in _claimed(sentence):
            if not any(_bears_out(text, path) for text in shown):
                return (
                    f"you say {_quoted(sentence)}, but no action of this session that succeeded did anything to {path}; "
                    "do it, or do not claim it"
                )
        if not effects and _FIRST_PERSON.search(sentence) is not None:
            return f"you say {_quoted(sentence)}, but no action of this session has changed anything; do it, or do not claim it"
    return None


def _claimed(sentence: str) -> Iterator[str]:
    """The paths that the sentence says something was done to: those that a verb of doing governs."""
    marks = [(match.start(), "done") for match in _DONE.finditer(sentence)]
    marks += [(match.start(), "read") for match in _READING.finditer(sentence)]
    marks.sort()
    for match in _PATH.finditer(sentence):
        before = [kind for at, kind in marks if at < match.start()]
        governed = before[-1] if before else None
        passive = not before and any(at > match.end() for at, kind in marks if kind == "done")
        if governed == "done" or passive:
            yield match.group().rstrip(".")


def _bears_out(text: str, path: str) -> bool:
    name = PurePosixPath(path).as_posix().removeprefix("./")
    return name in text or text.endswith("/" + name) or (len(text) > 2 and name.endswith("/" + text.removeprefix("./")))


def _texts(value: JSON) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for element in value.values():
            yield from _texts(element)
    elif isinstance(value, list):
        for element in value:
            yield from _texts(element)


def _quoted(sentence: str) -> str:
    line = " ".join(sentence.split())
    return repr(line if len(line) <= SHOWN else line[:SHOWN] + "…")
