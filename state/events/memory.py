"""What memory makes of the ledger, and what people ask of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from perdure.state.events.drafts import Draft


@dataclass(slots=True, kw_only=True, eq=False)
class CompactionFinished(Draft):
    """Memory's receipt: ledger events `after`..`until` became so many records, facts and summaries. `tokens_before` is what
    the summaries were made from and `tokens_after` what they have; `left_out` records are in no line of theirs. The payload
    is `{"summaries": [{"summary", "records", "left_out", "tokens_before", "tokens_after", "made_by"}]}`. An `ineffective`
    pass made nothing smaller; `model_stopped` says that no model is asked for summaries until a person lets it go on."""

    type: ClassVar[str] = "compaction.finished"
    session: str | None = None
    task: str
    after: int
    until: int
    events: int
    records: int
    facts: int
    summaries: int
    tokens_before: int
    tokens_after: int
    duration_us: int
    left_out: int | None = None
    ineffective: bool | None = None
    model_stopped: bool | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class CompactionFailed(Draft):
    type: ClassVar[str] = "compaction.failed"
    session: str | None = None
    task: str
    reason: str


@dataclass(slots=True, kw_only=True, eq=False)
class CompactionStopped(Draft):
    """So many passes in a row were ineffective: no more of them until a person lets it go on. `what` is `compaction`, or
    `model-summaries` where only the model's answers were of no use."""

    type: ClassVar[str] = "compaction.stopped"
    what: Literal["compaction", "model-summaries"]
    passes: int
    reason: str


@dataclass(slots=True, kw_only=True, eq=False)
class CompactionResumed(Draft):
    type: ClassVar[str] = "compaction.resumed"
    uid: int


@dataclass(slots=True, kw_only=True, eq=False)
class SummaryMade(Draft):
    """A model's summary of a closed period (`start` to `end`, microseconds UTC) that passed every check; it takes the place of
    the extractive one. The payload is `{"text": …, "covers": [record…]}`: what it was made from, all of it."""

    type: ClassVar[str] = "summary.made"
    session: str
    task: str
    summary: str
    call: str
    model: str
    tokens_before: int
    tokens_after: int
    untrusted: bool


@dataclass(slots=True, kw_only=True, eq=False)
class SummaryRefused(Draft):
    """The extractive summary of this period stays: `reason` is budget (no call was made), too-much (what must stay does not fit;
    no call), provider, unusable (no text), or checks. The payload is `{"why": […]}`, in words."""

    type: ClassVar[str] = "summary.refused"
    session: str
    task: str
    summary: str
    reason: Literal["budget", "too-much", "provider", "unusable", "checks"]
    call: str | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class MemoryPinned(Draft):
    """A person's standing instruction; the payload is `{"text": …}`. `task` None: for every task."""

    type: ClassVar[str] = "memory.pinned"
    pin: str
    task: str | None = None
    uid: int


@dataclass(slots=True, kw_only=True, eq=False)
class MemoryUnpinned(Draft):
    type: ClassVar[str] = "memory.unpinned"
    pin: str
    uid: int


@dataclass(slots=True, kw_only=True, eq=False)
class MemoryCorrected(Draft):
    """A person corrects a fact; the payload is `{"subject", "attribute", "value"}`."""

    type: ClassVar[str] = "memory.corrected"
    task: str | None = None
    uid: int


@dataclass(slots=True, kw_only=True, eq=False)
class MemoryForgotten(Draft):
    """A tombstone: the record is never shown or rebuilt again. `record` is its id."""

    type: ClassVar[str] = "memory.forgotten"
    record: str
    uid: int


@dataclass(slots=True, kw_only=True, eq=False)
class PayloadErased(Draft):
    """A tombstone for the payload (and salt) of event `erased`; `reason` is a person's or `payloads.keep`."""

    type: ClassVar[str] = "payload.erased"
    erased: int
    reason: str
    uid: int | None = None
