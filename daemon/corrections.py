"""What a person corrects: standing instructions, facts, records to forget, payloads to erase; each becomes ledger events."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from perdure.daemon.retention import drop_stashes
from perdure.errors import PerdureError
from perdure.memory.copies import summaries_made_from
from perdure.memory.extraction import Extraction
from perdure.memory.rows import Pin, Record, event_number
from perdure.state.events import (
    JSON,
    CompactionResumed,
    MemoryCorrected,
    MemoryForgotten,
    MemoryPinned,
    MemoryUnpinned,
)
from perdure.state.retention import erase

if TYPE_CHECKING:
    from perdure.daemon.clock import Identifiers
    from perdure.state.ledger import Ledger
    from perdure.state.reading import LedgerReader

NAME_CHARACTERS_MAX = 400  # of what a fact is about
VALUE_CHARACTERS_MAX = 4_000  # of a fact; memory takes no longer one
PIN_CHARACTERS_MAX = 4_000  # pinned text goes into every context, verbatim
Answer = dict[str, JSON]


def pin(ledger: Ledger, identifiers: Identifiers, now: int, uid: int, *, text: str, task: str | None = None) -> Answer:
    """Keep a standing instruction: it stands verbatim in every later context of `task` (None: of every task)."""
    del now
    if not text.strip() or len(text) > PIN_CHARACTERS_MAX:
        cause = f"it has {len(text):,} characters" if text.strip() else "it is empty"
        raise PerdureError(
            "pin",
            "the instruction",
            cause,
            f"Say it in 1 to {PIN_CHARACTERS_MAX:,} characters: it costs tokens in every session",
        )
    name = identifiers.new()
    ledger.commit(MemoryPinned(pin=name, task=task, uid=uid, payload={"text": text}))
    return {"pin": name, "task": task}


def unpin(ledger: Ledger, identifiers: Identifiers, now: int, uid: int, *, pin: str) -> Answer:
    """Let go of a standing instruction; `pin` is its id or the beginning or end of it."""
    del identifiers, now
    fitting = [
        name
        for name in pins(ledger.reader)
        if name.lower().startswith(pin.lower()) or name.lower().endswith(pin.lower())
    ]
    if len(fitting) != 1 or not pin:
        cause = f"several fit: {', '.join(fitting)}" if fitting and pin else "none of that id is in force"
        raise PerdureError("unpin", f"the instruction {pin}", cause, "`perdure memory pins` lists them")
    ledger.commit(MemoryUnpinned(pin=fitting[0], uid=uid))
    return {"pin": fitting[0]}


def correct(
    ledger: Ledger,
    identifiers: Identifiers,
    now: int,
    uid: int,
    *,
    subject: str,
    attribute: str,
    value: str,
    task: str | None = None,
) -> Answer:
    """Put a fact right: from the next compaction on, this is its value, and the old one is history."""
    del identifiers, now
    for name, said, most in (
        ("subject", subject, NAME_CHARACTERS_MAX),
        ("attribute", attribute, NAME_CHARACTERS_MAX),
        ("value", value, VALUE_CHARACTERS_MAX),
    ):
        if not said.strip() or len(said) > most:
            cause = f"its {name} has {len(said):,} characters" if said.strip() else f"its {name} is empty"
            raise PerdureError(
                "correct", "the fact", cause, f"Say it in 1 to {most:,} characters; a longer text is a document"
            )
    fact: dict[str, JSON] = {"subject": subject, "attribute": attribute, "value": value}
    (event,) = ledger.commit(MemoryCorrected(task=task, uid=uid, payload=fact))
    return {**fact, "task": task, "seq": event.seq}


def forget(ledger: Ledger, identifiers: Identifiers, now: int, uid: int, *, record: str) -> Answer:
    """Never show or rebuild this memory record (`r12`), fact (`f12`) or standing instruction again. The ledger's own events
    stay (see `erase`)."""
    del identifiers, now
    number = event_number(record)
    if record not in pins(ledger.reader) and not (number and _is_told(ledger.reader, number)):
        cause = "there is no record, fact or standing instruction of this id"
        raise PerdureError("forget", record, cause, "`perdure memory search TEXT`, `facts` and `pins` name them")
    (event,) = ledger.commit(MemoryForgotten(record=record, uid=uid))
    return {"record": record, "seq": event.seq}


def _is_told(reader: LedgerReader, seq: int) -> bool:
    """Whether memory makes anything of this event: a record, or a standing instruction."""
    event = reader.event(seq)
    changes = [] if event is None else Extraction(reader).changes(event)
    return any(isinstance(change, Record | Pin) for change in changes)


def resume_compaction(ledger: Ledger, identifiers: Identifiers, now: int, uid: int) -> Answer:
    """Let compaction, and asking a model for summaries, go on after they stopped themselves."""
    del identifiers, now
    (event,) = ledger.commit(CompactionResumed(uid=uid))
    return {"resumed": True, "seq": event.seq}


def erase_payloads(
    ledger: Ledger, identifiers: Identifiers, now: int, uid: int, *, seqs: Sequence[int], reason: str
) -> Answer:
    """Take the payloads of these events away for good; their hashes stay in the chain, with tombstones that say who and why.
    A model's summaries that were made from them go too, and what was kept to undo their actions; memory forgets what it made of
    them, and makes its summaries again from what is left."""
    del identifiers, now
    if not reason.strip():
        raise PerdureError("erase", "payloads", "no reason is given", "Say why with --reason: auditors will ask")
    told = summaries_made_from(ledger.reader, seqs)
    erase(ledger, [*seqs, *told], reason=reason, uid=uid)
    return {"erased": list(seqs), "summaries": [*told], "not_undoable": [*drop_stashes(ledger, seqs)]}


def pins(reader: LedgerReader) -> Mapping[str, tuple[str | None, int, int]]:
    """The standing instructions in force, oldest first: id -> (task, sequence number, microseconds UTC)."""
    held: dict[str, tuple[str | None, int, int]] = {}
    for event in reader.events(types=("memory.pinned", "memory.unpinned")):
        if event.type == "memory.pinned":
            held[event.body["pin"]] = (event.body.get("task"), event.seq, event.at)
        else:
            held.pop(event.body["pin"], None)
    return held


OPERATIONS: Mapping[str, Callable[..., Answer]] = {
    "memory.pin": pin,
    "memory.unpin": unpin,
    "memory.correct": correct,
    "memory.forget": forget,
    "memory.resume": resume_compaction,
    "ledger.erase": erase_payloads,
}
