"""Summaries by somebody else than ourselves, a model: what it is given, and what its text must pass before the ledger keeps it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from perdure.memory import tokens
from perdure.memory.excerpts import one_line
from perdure.memory.rows import Record, Summary
from perdure.memory.summaries import LINE_MAX, TOKENS_MAX, Extractive, weightiest
from perdure.memory.summary_checks import canaries, open_matters, violations
from perdure.state.events import SummaryMade, SummaryRefused

SOURCE_TOKENS_MAX = 6_000  # of one brief; of what has more, the extractive summariser chooses
MUST_STAY_SHARE = 0.6  # of a summary: where names that must stay need more, no call is made

_REFERENCES = re.compile(r"\[(r\d+)\](?: \(untrusted\))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Brief:
    """What a summary is to be made from: `text` holds the records' lines, `records` what they say, `must_stay` the names and
    references that may not be lost."""

    summary: Summary
    text: str
    records: tuple[Record, ...]
    must_stay: tuple[str, ...]
    tokens_max: int
    tokens_before: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What came back. `text` None: nothing, for the reason `failed` (budget: no call was made) and `why` in words."""

    text: str | None
    model: str
    call: str | None = None
    failed: Literal["budget", "provider", "unusable"] = "unusable"
    why: str = ""


class Author(Protocol):
    """Writes summaries. The calls it makes for that are its own to reserve, record and charge."""

    source_tokens_max: int

    async def write(self, brief: Brief) -> Written: ...


def brief(summary: Summary, records: Sequence[Record], source_tokens_max: int) -> Brief | None:
    """What an author needs for this period; None where the extractive summary has all of it word for word anyway."""
    before = sum(record.tokens for record in records)
    if before <= TOKENS_MAX[summary.level]:
        return None
    chosen = Extractive().summarise(weightiest(records), min(SOURCE_TOKENS_MAX, source_tokens_max))
    # What stands in a line is all that the author sees, so it is all that can be asked of it.
    told = set(re.findall(r"\[(r\d+)\]", chosen.text))
    seen = tuple(replace(each, text=one_line(each.text, LINE_MAX)) for each in records if each.id in told)
    return Brief(
        summary=replace(summary, covers=chosen.covers, untrusted=chosen.untrusted), text=chosen.text, records=seen,
        must_stay=(*sorted(canaries(seen)), *(f"[{id}]" for id in open_matters(seen))),
        tokens_max=TOKENS_MAX[summary.level], tokens_before=before,
    )  # fmt: skip


def fits(asked: Brief) -> bool:
    """Whether what must stay leaves room to say something about it."""
    return tokens.count(", ".join(asked.must_stay)) <= MUST_STAY_SHARE * asked.tokens_max


def refused(asked: Brief, session: str, reason: Literal["too-much"], why: str) -> SummaryRefused:
    """No call is made for it."""
    summary = asked.summary
    return SummaryRefused(session=session, task=summary.task, summary=summary.id, reason=reason, payload={"why": [why]})


def judged(asked: Brief, written: Written, session: str) -> SummaryMade | SummaryRefused:
    """The event that keeps the text, each line of it that tells of a tool's words marked so, or that says why it is not kept."""
    summary = asked.summary
    if written.text is None or written.call is None:
        return SummaryRefused(
            session=session, task=summary.task, summary=summary.id, reason=written.failed, call=written.call,
            payload={"why": [written.why]},
        )  # fmt: skip
    untrusted = {record.id for record in asked.records if record.untrusted}
    text = _marked(written.text.strip(), untrusted)
    wrong = violations(text, asked.records, asked.tokens_max, shown=asked.text)
    if wrong:
        return SummaryRefused(
            session=session, task=summary.task, summary=summary.id, reason="checks", call=written.call,
            payload={"why": list(wrong)},
        )  # fmt: skip
    return SummaryMade(
        session=session, task=summary.task, summary=summary.id, call=written.call, model=written.model,
        tokens_before=asked.tokens_before, tokens_after=tokens.count(text), untrusted=summary.untrusted,
        payload={"text": text, "covers": list(summary.covers)},
    )  # fmt: skip


def _marked(text: str, untrusted: set[str]) -> str:
    """The text with every reference to a tool's words marked as such, and no other."""

    def mark(found: re.Match[str]) -> str:
        return f"[{found[1]}]" + (" (untrusted)" if found[1] in untrusted else "")

    return _REFERENCES.sub(mark, text)
